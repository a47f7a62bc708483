"""The training step: one program, the same on one device and on many."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from t5jax import loss, sharding
from t5jax.batches import Batch
from t5jax.config import T5Config
from t5jax.model import PARTITION_RULES, Params, bind, init_params

Metrics = dict[str, Array]


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: Int[Array, ""]
    params: Params
    opt_state: Any


def init_state(
    config: T5Config, optimizer: optax.GradientTransformation, *, mesh: Mesh, seed: int
) -> TrainState:
    """Random parameters and a fresh optimizer, each made where it will live."""
    make = functools.partial(_init, config, optimizer)
    where = jax.tree.map(lambda x: x.sharding, abstract_state(config, optimizer, mesh=mesh))
    return jax.jit(make, out_shardings=where)(seed)


def abstract_state(
    config: T5Config, optimizer: optax.GradientTransformation, *, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of `init_state`, without computing anything.

    Raises:
      ValueError: an axis of the mesh does not divide what it shards.
    """
    if config.num_heads % mesh.shape["tensor"]:
        raise ValueError(
            f"mesh axis tensor = {mesh.shape['tensor']} must divide num_heads = "
            f"{config.num_heads}; choose a divisor."
        )
    abstract = jax.eval_shape(functools.partial(_init, config, optimizer), 0)
    where = sharding.shardings(abstract, mesh=mesh, rules=PARTITION_RULES)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, where
    )


class OnMesh:
    """A jitted function under `jax.set_mesh`, where `sharding.divide_batch` takes effect."""

    def __init__(self, function: Any, mesh: Mesh):
        self._function, self._mesh = function, mesh

    def __call__(self, *args: Any) -> Any:
        with jax.set_mesh(self._mesh):
            return self._function(*args)

    def lower(self, *args: Any) -> Any:
        """As `jax.jit(...).lower`: the program for these arguments, which may be shapes only."""
        with jax.set_mesh(self._mesh):
            return self._function.lower(*args)


def make_train_step(
    config: T5Config,
    optimizer: optax.GradientTransformation,
    *,
    schedule: optax.Schedule,
    mesh: Mesh,
    z_loss: float,
    seed: int,
) -> OnMesh:
    """The compiled `step(state, batch) -> (state, metrics)`; it consumes the state it is given.

    Dropout depends on `seed` and the step alone, so a resumed run draws what the first one would.

    Args:
      config: of the model.
      optimizer: as from `optimizer.make`.
      schedule: for the metrics; the optimizer has its own.
      mesh: to compute on.
      z_loss: weight of the z-loss.
      seed: of dropout.
    Returns:
      The step.  Metrics are float32 scalars: `loss` (with z-loss) and `cross_entropy`, in nats a
      target token, `accuracy`, `grad_norm`, `learning_rate`.
    """

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        # 1 apart from the key that parameters were drawn from.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), state.step)
        dropout_key = key if config.dropout_rate else None

        def mean_loss(params):
            result = _loss(config, params, batch, z_loss=z_loss, dropout_key=dropout_key)
            return result.total / jnp.maximum(result.weight, 1.0), result

        grads, result = jax.grad(mean_loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = {
            **_means(result),
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(schedule(state.step)),
        }
        params: Any = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    where = jax.tree.map(lambda x: x.sharding, abstract_state(config, optimizer, mesh=mesh))
    compiled = jax.jit(
        step,
        in_shardings=(where, NamedSharding(mesh, sharding.BATCH)),
        out_shardings=(where, NamedSharding(mesh, P())),
        donate_argnums=0,
    )
    return OnMesh(compiled, mesh)


def make_eval_step(config: T5Config, *, mesh: Mesh) -> Callable[[Params, Any], loss.Loss]:
    """The compiled `step(params, batch) -> Loss`: sums, without dropout or z-loss."""

    def step(params: Params, batch: Any) -> loss.Loss:
        return _loss(config, params, batch, z_loss=0.0, dropout_key=None)

    return OnMesh(jax.jit(step, out_shardings=NamedSharding(mesh, P())), mesh)


def check_batch_size(batch_size: int, *, mesh: Mesh) -> None:
    """Raises ValueError unless the devices divide a batch."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % ways:
        raise ValueError(
            f"the batch size must be a multiple of data x fsdp = {ways}, got {batch_size}."
        )


def device_batch(batch: Batch, *, mesh: Mesh) -> dict[str, jax.Array]:
    """Places a batch on the mesh, its examples divided over the devices."""
    check_batch_size(len(batch["encoder_input_tokens"]), mesh=mesh)
    where = NamedSharding(mesh, sharding.BATCH)
    return {k: jax.make_array_from_process_local_data(where, v) for k, v in batch.items()}


def evaluate(
    eval_step: Callable[[Params, Any], loss.Loss], params: Params, batches: Any, *, mesh: Mesh
) -> dict[str, float]:
    """Token-weighted means over all batches: `loss` in nats a target token, and `accuracy`."""
    sums = [eval_step(params, device_batch(batch, mesh=mesh)) for batch in batches]
    weight = max(sum(float(part.weight) for part in sums), 1.0)
    return {
        "loss": sum(float(part.cross_entropy) for part in sums) / weight,
        "accuracy": sum(float(part.correct) for part in sums) / weight,
    }


def _init(config: T5Config, optimizer: optax.GradientTransformation, seed: Any) -> TrainState:
    params = init_params(config, jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def _loss(config: T5Config, params: Params, batch: Any, *, z_loss: float, dropout_key: Any):
    encoder_tokens = batch["encoder_input_tokens"]
    segments = batch.get("encoder_segment_ids")
    logits = bind(config, params)(
        encoder_tokens,
        batch["decoder_input_tokens"],
        encoder_mask=encoder_tokens != config.pad_id if segments is None else segments > 0,
        encoder_segment_ids=segments,
        decoder_segment_ids=batch.get("decoder_segment_ids"),
        dropout_key=dropout_key,
    )
    targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
    return loss.cross_entropy(logits, targets, weights, z_loss=z_loss)


def _means(result: loss.Loss) -> Metrics:
    weight = jnp.maximum(result.weight, 1.0)
    return {
        "loss": result.total / weight,
        "cross_entropy": result.cross_entropy / weight,
        "accuracy": result.correct / weight,
    }
