"""The training step: one program, the same on one device and on many."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Array, Int

from t5jax.data import Batch
from t5jax.models import PARTITION_RULES, Params, T5Config, bind, init_params
from t5jax.parallel import (
    BATCH_AXES,
    BATCH_SPEC,
    global_batch_size,
    infer_shardings,
    num_batch_shards,
    num_shards,
    shard_rows,
    with_shardings,
)
from t5jax.training import freezing, loss, step_skipping

Metrics = dict[str, Array]


# Logits of one chunk of the vocabulary take about this much of a device's memory.
_CHUNK_BYTES = 2**26


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepConfig:
    """What a training step computes, besides the model and the optimizer."""

    z_loss: float = 1e-4
    """Weight of the z-loss."""
    label_smoothing: float = 0.0
    """Share of every target that is spread over the whole vocabulary, in the loss that is trained
    with but not in evaluations."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after the other: the same gradient with less memory,
    though another dropout."""
    vocab_chunks: int | None = None
    """Parts of the vocabulary that logits are computed in, one after the other; without it, as many
    as keep the logits of a part below 64 MiB a device."""
    spike_factor: float | None = None
    """Leave parameters as they are in steps whose gradient norm is more than this many times its
    running mean; those with a loss or a gradient that is not finite are left out in any case."""
    frozen: tuple[str, ...] = ()
    """Parameters to leave as they are: regular expressions that fit whole '/'-separated parts of a
    path, such as 'encoder' or 'token_embedder'."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the parameters too, with this decay a step; it is what
    is evaluated and used."""

    def __post_init__(self):
        if self.z_loss < 0:
            raise ValueError(f"z_loss must be at least 0, got {self.z_loss}; T5 uses 1e-4.")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing must be in [0, 1), got {self.label_smoothing}; 0.1 is usual."
            )
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, got {self.accumulate}.")
        if self.vocab_chunks is not None and self.vocab_chunks < 1:
            raise ValueError(f"vocab_chunks must be at least 1, got {self.vocab_chunks}.")
        if self.spike_factor is not None and self.spike_factor <= 1:
            raise ValueError(
                f"spike_factor must be above 1, got {self.spike_factor}; 10 is a sane choice."
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in (0, 1), got {self.ema_decay}; 0.9999 is usual.")


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    average: Params | None = None
    """Moving average of the parameters, if one is kept."""
    norms: step_skipping.GradientNorms | None = None
    """If spikes are looked for."""


def init_state(
    config: T5Config,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    seed: int,
    options: StepConfig | None = None,
    params: Params | None = None,
) -> TrainState:
    """Parameters and a fresh optimizer, each made where it will live.

    The parameters are `params`, where they are given, which are consumed, and otherwise random.
    """
    options = options or StepConfig()
    abstract = abstract_state(config, optimizer, mesh=mesh, options=options)
    where = jax.tree.map(lambda x: x.sharding, abstract)
    if params is not None:
        start = functools.partial(_start, optimizer, options)
        take = jax.jit(start, in_shardings=(where.params,), out_shardings=where, donate_argnums=0)
        return take(jax.tree.map(lambda x, y: x.astype(y.dtype), params, abstract.params))
    return jax.jit(functools.partial(_init, config, optimizer, options), out_shardings=where)(seed)


def abstract_state(
    config: T5Config,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    options: StepConfig | None = None,
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
    make = functools.partial(_init, config, optimizer, options or StepConfig())
    abstract = jax.eval_shape(make, 0)
    where = infer_shardings(abstract, mesh=mesh, rules=PARTITION_RULES)
    return with_shardings(abstract, where)


class MeshJit:
    """A jitted function under `jax.set_mesh`, where `constrain_activations` takes effect."""

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
    options: StepConfig,
    seed: int,
) -> MeshJit:
    """The compiled `step(state, batch) -> (state, metrics)`; it consumes the state it is given.

    Dropout depends on `seed` and the step alone, so a resumed run draws what the first one would.

    Args:
      config: of the model.
      optimizer: as from `make_optimizer`.
      schedule: for the metrics, of the updates made; the optimizer has its own.
      mesh: to compute on.
      options: as for `init_state`.
      seed: of dropout.
    Returns:
      The step.  Metrics are float32 scalars: `loss` (with smoothed targets and z-loss) and
      `cross_entropy` (without), in nats a target token, `accuracy`, `grad_norm`, `learning_rate`,
      and `skipped`, which is 1 where parameters and optimizer were left as they are, and else 0.
    """
    where = jax.tree.map(
        lambda x: x.sharding, abstract_state(config, optimizer, mesh=mesh, options=options)
    )

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        _check_shapes(batch, options, mesh)
        # 1 apart from the key that parameters were drawn from.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), state.step)
        trained, kept = freezing.partition_params(state.params, options.frozen)
        places, _ = freezing.partition_params(where.params, options.frozen)
        weight = jnp.maximum(jnp.sum(batch["decoder_loss_weights"]), 1.0)

        def part_loss(trained, part, key):
            dropout_key = key if config.dropout_rate else None
            params = freezing.merge_params(trained, kept)
            result = _loss(config, params, part, options=options, dropout_key=dropout_key)
            return result.total / weight, result

        grads, result = _gradients(part_loss, trained, batch, key, options.accumulate, places)
        norm = optax.tree.norm(grads)
        sound, norms = step_skipping.should_apply(
            state.norms, result.total, norm, options.spike_factor
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        new: Any = optax.apply_updates(trained, updates)
        params = freezing.merge_params(step_skipping.select_tree(sound, new, trained), kept)
        # What `make_optimizer` returns counts updates; a skipped step makes none.
        updates_made = getattr(state.opt_state, "count", state.step)
        average = state.average
        if options.ema_decay is not None:
            average = _average(average, params, sound, options.ema_decay)
        metrics = {
            **_means(result),
            "grad_norm": norm,
            "learning_rate": jnp.asarray(schedule(updates_made)),
            "skipped": 1.0 - sound.astype(jnp.float32),
        }
        opt_state = step_skipping.select_tree(sound, opt_state, state.opt_state)
        return TrainState(state.step + 1, params, opt_state, average, norms), metrics

    compiled = jax.jit(
        step,
        in_shardings=(where, NamedSharding(mesh, BATCH_SPEC)),
        out_shardings=(where, NamedSharding(mesh, P())),
        donate_argnums=0,
    )
    return MeshJit(compiled, mesh)


def make_eval_step(config: T5Config, *, mesh: Mesh) -> Callable[[Params, Any], loss.LossSums]:
    """The compiled `step(params, batch) -> Loss`: sums, without dropout, smoothing or z-loss."""
    options = StepConfig(z_loss=0.0)

    def step(params: Params, batch: Any) -> loss.LossSums:
        _check_shapes(batch, options, mesh)
        return _loss(config, params, batch, options=options, dropout_key=None)

    return MeshJit(jax.jit(step, out_shardings=NamedSharding(mesh, P())), mesh)


def check_batch_size(batch_size: int, *, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises ValueError unless the devices divide every part of a batch."""
    ways = num_batch_shards(mesh)
    if batch_size % (ways * accumulate):
        rule = f"data x fsdp = {ways}"
        if accumulate > 1:
            rule = f"accumulate x data x fsdp = {accumulate} x {ways}"
        raise ValueError(f"the batch size must be a multiple of {rule}, got {batch_size}.")


def check_lengths(lengths: Mapping[str, int], *, mesh: Mesh) -> None:
    """Raises ValueError unless the mesh divides all lengths of rows, here by name."""
    for name, length in lengths.items():
        if length % mesh.shape["sequence"]:
            raise ValueError(
                f"mesh axis sequence = {mesh.shape['sequence']} must divide the length of {name}, "
                f"{length}; make it a multiple, or choose a divisor."
            )


def shard_batch(batch: Batch, *, mesh: Mesh) -> dict[str, jax.Array]:
    """Places a batch on the mesh, its examples divided over the devices.

    Args:
      batch: its examples that this process needs, as `local_rows` numbers them: all of them,
        where there is one process.
      mesh: of all processes.
    """
    num_rows = len(batch["encoder_input_tokens"])
    check_batch_size(global_batch_size(num_rows, mesh=mesh), mesh=mesh)
    return {name: shard_rows(value, mesh=mesh) for name, value in batch.items()}


def evaluate_loss(
    eval_step: Callable[[Params, Any], loss.LossSums], params: Params, batches: Any, *, mesh: Mesh
) -> dict[str, float]:
    """Token-weighted means over all batches: `loss` in nats a target token, and `accuracy`."""
    sums = [eval_step(params, shard_batch(batch, mesh=mesh)) for batch in batches]
    weight = max(sum(float(part.weight) for part in sums), 1.0)
    return {
        "loss": sum(float(part.cross_entropy) for part in sums) / weight,
        "accuracy": sum(float(part.correct) for part in sums) / weight,
    }


def state_to_trees(state: TrainState) -> dict[str, Any]:
    """The named pytrees that a checkpoint of a state holds."""
    trees = {"params": state.params, "optimizer": state.opt_state}
    for name in ("average", "norms"):
        if getattr(state, name) is not None:
            trees[name] = getattr(state, name)
    return trees


def state_from_trees(step: Int[Array, ""], trees: dict[str, Any]) -> TrainState:
    """The state that `state_to_trees` took apart."""
    norms = step_skipping.GradientNorms(*trees["norms"]) if "norms" in trees else None
    return TrainState(step, trees["params"], trees["optimizer"], trees.get("average"), norms)


def _init(
    config: T5Config, optimizer: optax.GradientTransformation, options: StepConfig, seed: Any
) -> TrainState:
    return _start(optimizer, options, init_params(config, jax.random.key(seed)))


def _start(
    optimizer: optax.GradientTransformation, options: StepConfig, params: Params
) -> TrainState:
    trained, _ = freezing.partition_params(params, options.frozen)
    average = None if options.ema_decay is None else jax.tree.map(jnp.copy, params)
    norms = None if options.spike_factor is None else step_skipping.init_norms()
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trained), average, norms)


def _check_shapes(batch: Any, options: StepConfig, mesh: Mesh) -> None:
    rows = len(batch["encoder_input_tokens"])
    check_batch_size(rows, mesh=mesh, accumulate=options.accumulate)
    names = ("encoder_input_tokens", "decoder_input_tokens")
    check_lengths({name: batch[name].shape[1] for name in names}, mesh=mesh)


def _gradients(
    part_loss: Callable[..., Any],
    trained: Params,
    batch: Any,
    key: Array,
    count: int,
    places: Any,
) -> tuple[Params, loss.LossSums]:
    """The gradient of the sum of `part_loss` over `count` parts of a batch, and the sums."""
    grad = jax.grad(part_loss, has_aux=True)
    if count == 1:
        return grad(trained, batch, key)
    # Every part takes rows from every device: no row moves.
    parts = jax.tree.map(
        lambda x: x.reshape(len(x) // count, count, *x.shape[1:]).swapaxes(0, 1), batch
    )

    def add(carry, part_and_key):
        return jax.tree.map(jnp.add, carry, grad(trained, *part_and_key)), None

    # The type of a parameter is that of its gradient.
    zeros = jax.lax.with_sharding_constraint(jax.tree.map(jnp.zeros_like, trained), places)
    none = loss.LossSums(*[jnp.zeros((), jnp.float32)] * len(loss.LossSums._fields))
    total, _ = jax.lax.scan(add, (zeros, none), (parts, jax.random.split(key, count)))
    return total


def _average(average: Any, params: Any, sound: Array, decay: float) -> Any:
    share = jnp.where(sound, 1.0 - decay, 0.0)
    return jax.tree.map(lambda mean, x: mean + share.astype(x.dtype) * (x - mean), average, params)


def _loss(
    config: T5Config, params: Params, batch: Any, *, options: StepConfig, dropout_key: Any
) -> loss.LossSums:
    encoder_tokens = batch["encoder_input_tokens"]
    segments = batch.get("encoder_segment_ids")
    model = bind(config, params)
    states = model.decoder_hidden_states(
        encoder_tokens,
        batch["decoder_input_tokens"],
        encoder_mask=encoder_tokens != config.pad_id if segments is None else segments > 0,
        encoder_segment_ids=segments,
        decoder_segment_ids=batch.get("decoder_segment_ids"),
        dropout_key=dropout_key,
    )
    kernel, vocab_axis = model.output_embedding()
    return loss.chunked_cross_entropy(
        states,
        kernel,
        batch["decoder_target_tokens"],
        batch["decoder_loss_weights"],
        vocab_axis=vocab_axis,
        scale=config.logit_scale,
        z_loss=options.z_loss,
        label_smoothing=options.label_smoothing,
        num_chunks=options.vocab_chunks or _num_chunks(states.shape[:2], config.vocab_size),
        num_parts=num_shards(jax.sharding.get_abstract_mesh(), ("tensor",)),
    )


def _num_chunks(shape: tuple[int, ...], vocab_size: int) -> int:
    """Chunks of the vocabulary whose logits take a device no more than `_CHUNK_BYTES`."""
    mesh = jax.sharding.get_abstract_mesh()
    rows = math.prod(shape) // num_shards(mesh, (*BATCH_AXES, "sequence"))
    return -(-4 * rows * vocab_size // (num_shards(mesh, ("tensor",)) * _CHUNK_BYTES))


def _means(result: loss.LossSums) -> Metrics:
    weight = jnp.maximum(result.weight, 1.0)
    return {
        "loss": result.total / weight,
        "cross_entropy": result.cross_entropy / weight,
        "accuracy": result.correct / weight,
    }
