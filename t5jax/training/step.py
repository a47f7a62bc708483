"""The training step: one program, the same on one device and on many."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from t5jax.errors import check_at_least
from t5jax.models import ComputePolicy, Params, T5Config, bind, get_family, init_params
from t5jax.parallel import (
    BATCH_AXES,
    BATCH_SPEC,
    Sharder,
    check_batch_size,
    check_lengths,
    infer_shardings,
    matches_path,
    path_name,
    with_shardings,
)
from t5jax.training import loss

Metrics = dict[str, Array]
# Logits of one chunk of the vocabulary take about this much of a device's memory.
_CHUNK_BYTES = 2**26
# Decay of the running mean of gradient norms, and steps before it is compared with.
_NORM_DECAY, _SPIKE_WARMUP_STEPS = 0.98, 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepConfig:
    """Options of a training step, besides those of the model and the optimizer.

    Attributes:
      z_loss: Weight of the z-loss.
      label_smoothing: Share of every target that is spread over the whole vocabulary, in the loss
        that is trained with but not in evaluations.
      accumulate: Parts that a batch is computed in, one after the other: the same gradient with
        less memory, though another dropout.
      vocab_chunks: Parts of the vocabulary that logits are computed in, one after the other;
        without it, as many as keep the logits of a part below 64 MiB a device.
      spike_factor: Leave parameters as they are in steps whose gradient norm is more than this
        many times its running mean; those with a loss or a gradient that is not finite are left
        out in any case.
      frozen: Parameters to leave as they are: regular expressions that fit whole '/'-separated
        parts of a path, such as 'encoder' or 'token_embedder'.
      ema_decay: Keep an exponential moving average of the parameters too, with this decay a step;
        it is what is evaluated and used.
    """

    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    accumulate: int = 1
    vocab_chunks: int | None = None
    spike_factor: float | None = None
    frozen: tuple[str, ...] = ()
    ema_decay: float | None = None

    def __post_init__(self):
        check_at_least(0, "T5 uses 1e-4", z_loss=self.z_loss)
        check_at_least(1, accumulate=self.accumulate, vocab_chunks=self.vocab_chunks)
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing must be in [0, 1), got {self.label_smoothing}; 0.1 is usual."
            )
        if self.spike_factor is not None and self.spike_factor <= 1:
            raise ValueError(
                f"spike_factor must be above 1, got {self.spike_factor}; 10 is a sane choice."
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in (0, 1), got {self.ema_decay}; 0.9999 is usual.")


class GradientNorms(NamedTuple):
    """Gradient norms of the steps that were not skipped.

    Attributes:
      mean: Running mean, float32.
      num_steps: Number of steps in it.
    """

    mean: Float[Array, ""]
    num_steps: Int[Array, ""]


class TrainState(NamedTuple):
    """The training state: everything that a step changes.

    Attributes:
      ema_params: Exponential moving average of the parameters, if one is kept.
      norms: Gradient norms of the steps so far, if spikes are skipped.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    ema_params: Params | None = None
    norms: GradientNorms | None = None


def init_state(
    config: T5Config,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    seed: int,
    options: StepConfig | None = None,
    params: Params | None = None,
) -> TrainState:
    """Initialize a training state, every array on the devices that hold it.

    Args:
      config: of the model.
      optimizer: as from `make_optimizer`.
      mesh: to train on.
      seed: of random parameters.
      options: of the training step.
      params: parameters to start from instead, which are consumed.
    """
    options = options or StepConfig()
    abstract = abstract_state(config, optimizer, mesh=mesh, options=options)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    if params is not None:
        start = functools.partial(_start, optimizer, options)
        start = jax.jit(
            start, in_shardings=(shardings.params,), out_shardings=shardings, donate_argnums=0
        )
        return start(jax.tree.map(lambda x, y: x.astype(y.dtype), params, abstract.params))
    init = functools.partial(_init, config, optimizer, options)
    return jax.jit(init, out_shardings=shardings)(seed)


def abstract_state(
    config: T5Config,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    options: StepConfig | None = None,
) -> TrainState:
    """Return shapes, dtypes and shardings of `init_state` without computing anything.

    Raises:
      ValueError: an axis of the mesh does not divide an axis that it shards.
    """
    if config.num_heads % mesh.shape["tensor"]:
        raise ValueError(
            f"mesh axis tensor = {mesh.shape['tensor']} must divide num_heads = "
            f"{config.num_heads}; choose a divisor."
        )
    init = functools.partial(_init, config, optimizer, options or StepConfig())
    abstract = jax.eval_shape(init, 0)
    shardings = infer_shardings(abstract, mesh=mesh, rules=get_family(config).partition_rules)
    return with_shardings(abstract, shardings)


class MeshJit:
    """A jitted function under `jax.set_mesh`, where a model finds its mesh."""

    def __init__(self, function: Any, mesh: Mesh):
        self._function, self._mesh = function, mesh

    def __call__(self, *args: Any) -> Any:
        with jax.set_mesh(self._mesh):
            return self._function(*args)

    def lower(self, *args: Any) -> Any:
        """Lower the program for these arguments, which may be shapes, as `jax.jit(...).lower`."""
        with jax.set_mesh(self._mesh):
            return self._function.lower(*args)


def make_train_step(
    config: T5Config,
    optimizer: optax.GradientTransformation,
    *,
    policy: ComputePolicy,
    schedule: optax.Schedule,
    mesh: Mesh,
    options: StepConfig,
    seed: int,
) -> MeshJit:
    """Compile `step(state, batch) -> (state, metrics)`, which consumes the state.

    Dropout depends on `seed` and the step alone, so a resumed run repeats what the first one would
    have drawn.

    Args:
      config: of the model.
      optimizer: as from `make_optimizer`.
      policy: how the model computes.
      schedule: learning rate of each update, for the metrics; the optimizer has its own.
      mesh: to compute on.
      options: as for `init_state`.
      seed: of dropout.
    Returns:
      The step.  Metrics are float32 scalars: `loss` (with smoothed targets and z-loss) and
      `cross_entropy` (without), in nats per target token, `accuracy`, `grad_norm`, `learning_rate`,
      and `skipped`, which is 1 if parameters and optimizer were left unchanged, and else 0.
    """
    shardings = jax.tree.map(
        lambda x: x.sharding, abstract_state(config, optimizer, mesh=mesh, options=options)
    )
    trained_shardings, _ = partition_params(shardings.params, options.frozen)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        _check_shapes(batch, options, mesh)
        # 1 apart from the key that parameters were drawn from.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), state.step)
        trained, frozen = partition_params(state.params, options.frozen)
        weight = jnp.maximum(jnp.sum(batch["decoder_loss_weights"]), 1.0)

        def part_loss(trained, part, key):
            dropout_key = key if config.dropout_rate else None
            params = merge_params(trained, frozen)
            sums = batch_loss(
                config, params, part, policy=policy, options=options, dropout_key=dropout_key
            )
            return sums.total / weight, sums

        # Gradient.
        grads, sums = _gradients(
            part_loss, trained, batch, key, options.accumulate, trained_shardings
        )
        norm = optax.tree.norm(grads)
        applied, norms = should_apply(state.norms, sums.total, norm, options.spike_factor)
        # Update, unless the step is skipped.
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        updated: Any = optax.apply_updates(trained, updates)
        trained, opt_state = select_tree(applied, (updated, opt_state), (trained, state.opt_state))
        params = merge_params(trained, frozen)
        ema_params = state.ema_params
        if options.ema_decay is not None:
            ema_params = _update_ema(ema_params, params, applied, options.ema_decay)
        # What `make_optimizer` returns counts updates; a skipped step makes none.
        updates_before = getattr(state.opt_state, "count", state.step)
        metrics = {
            **_means(sums),
            "grad_norm": norm,
            "learning_rate": jnp.asarray(schedule(updates_before)),
            "skipped": 1.0 - applied.astype(jnp.float32),
        }
        return TrainState(state.step + 1, params, opt_state, ema_params, norms), metrics

    compiled = jax.jit(
        step,
        in_shardings=(shardings, NamedSharding(mesh, BATCH_SPEC)),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        donate_argnums=0,
    )
    return MeshJit(compiled, mesh)


def inference_params(state: TrainState) -> Params:
    """Return the parameters to evaluate and to use: their moving average, if one is kept."""
    return state.params if state.ema_params is None else state.ema_params


def state_to_trees(state: TrainState) -> dict[str, Any]:
    """Return the named pytrees that a checkpoint of a state holds."""
    trees = {"params": state.params, "optimizer": state.opt_state}
    if state.ema_params is not None:
        trees["average"] = state.ema_params
    if state.norms is not None:
        trees["norms"] = state.norms
    return trees


def state_from_trees(step: Int[Array, ""], trees: dict[str, Any]) -> TrainState:
    """Return the state that `state_to_trees` took apart."""
    norms = GradientNorms(*trees["norms"]) if "norms" in trees else None
    return TrainState(step, trees["params"], trees["optimizer"], trees.get("average"), norms)


def partition_params(tree: Any, patterns: Sequence[str]) -> tuple[Any, Any]:
    """Split parameters into two trees of the same structure, with None where the other has a leaf.

    The loss is differentiated by the trained ones alone; `optax.selective_transform` would compute
    the gradient of all parameters first, and count frozen ones in its norm.

    Args:
      tree: a nested dict of parameters.
      patterns: regular expressions over whole '/'-separated parts of a path, such as `encoder` or
        `(encoder|decoder)/.*/relative_bias`; parameters that match one of them are frozen.
    Returns:
      Trained and frozen parameters.
    Raises:
      ValueError: a pattern matches no parameter, or nothing is left to train.
    """
    paths = [path_name(path) for path, _ in jax.tree.leaves_with_path(tree)]
    for pattern in patterns:
        if not any(matches_path(pattern, path) for path in paths):
            raise ValueError(
                f"frozen must name parameters of this model, got {pattern!r}, which fits none; "
                f"there are {', '.join(sorted({path.partition('/')[0] for path in paths}))}, and "
                f"paths below them such as {paths[0]}."
            )

    def frozen(path: Any) -> bool:
        return any(matches_path(pattern, path_name(path)) for pattern in patterns)

    trained = jax.tree.map_with_path(lambda path, x: None if frozen(path) else x, tree)
    if not jax.tree.leaves(trained):
        raise ValueError(f"frozen must leave something to train, got {list(patterns)}.")
    return trained, jax.tree.map_with_path(lambda path, x: x if frozen(path) else None, tree)


def merge_params(trained: Any, frozen: Any) -> Any:
    """Merge the trees that `partition_params` returned."""
    return jax.tree.map(
        lambda x, y: y if x is None else x, trained, frozen, is_leaf=lambda x: x is None
    )


def _init(
    config: T5Config, optimizer: optax.GradientTransformation, options: StepConfig, seed: Any
) -> TrainState:
    return _start(optimizer, options, init_params(config, jax.random.key(seed)))


def _start(
    optimizer: optax.GradientTransformation, options: StepConfig, params: Params
) -> TrainState:
    trained, _ = partition_params(params, options.frozen)
    ema_params = None if options.ema_decay is None else jax.tree.map(jnp.copy, params)
    norms = None if options.spike_factor is None else init_norms()
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trained), ema_params, norms)


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
    shardings: Any,
) -> tuple[Params, loss.LossSums]:
    """Return the gradient of the sum of `part_loss` over `count` parts of a batch, and the sums."""
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
    zeros = jax.lax.with_sharding_constraint(jax.tree.map(jnp.zeros_like, trained), shardings)
    none = loss.LossSums(*[jnp.zeros((), jnp.float32)] * len(loss.LossSums._fields))
    total, _ = jax.lax.scan(add, (zeros, none), (parts, jax.random.split(key, count)))
    return total


def init_norms() -> GradientNorms:
    """Return the norms before the first step."""
    return GradientNorms(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))


def should_apply(
    norms: GradientNorms | None, total: Array, norm: Array, spike_factor: float | None
) -> tuple[Bool[Array, ""], GradientNorms | None]:
    """Decide whether to apply the update of a step.

    `optax.apply_if_finite` does not replace this: it looks at updates and not at the loss, knows no
    spikes, and applies what is not finite after too many skipped steps, where the trainer raises
    an error.  Its counters would become part of the optimizer state in checkpoints.

    Args:
      norms: gradient norms of the steps before; None disables spike detection.
      total: loss of the step.
      norm: norm of its gradient.
      spike_factor: a norm above this many times the mean is a spike.
    Returns:
      True to apply the update, and the norms that later steps are compared with.
    """
    applied = jnp.isfinite(total) & jnp.isfinite(norm)
    if norms is None or spike_factor is None:
        return applied, norms
    applied &= (norms.num_steps < _SPIKE_WARMUP_STEPS) | (norm <= spike_factor * norms.mean)
    # A plain mean at first, a fading one later.
    share = jnp.maximum(1.0 / (norms.num_steps + 1).astype(jnp.float32), 1.0 - _NORM_DECAY)
    mean = norms.mean + share * (norm - norms.mean)
    return applied, select_tree(applied, GradientNorms(mean, norms.num_steps + 1), norms)


def select_tree(applied: Bool[Array, ""], new: Any, old: Any) -> Any:
    """Return the new tree if the update is applied, else the old one."""
    return jax.tree.map(lambda x, y: jnp.where(applied, x, y), new, old)


def _update_ema(ema_params: Any, params: Any, applied: Array, decay: float) -> Any:
    """Update the moving average, if the update of the parameters was applied.

    `optax.incremental_update` computes `share * x + (1 - share) * mean`, which rounds differently:
    runs begun before would not continue bit for bit.
    """
    share = jnp.where(applied, 1.0 - decay, 0.0)
    return jax.tree.map(
        lambda mean, x: mean + share.astype(x.dtype) * (x - mean), ema_params, params
    )


def batch_loss(
    config: T5Config,
    params: Params,
    batch: Any,
    *,
    policy: ComputePolicy,
    options: StepConfig,
    dropout_key: Any,
) -> loss.LossSums:
    """Return the loss sums of a batch; `dropout_key` is None without dropout."""
    encoder_tokens = batch["encoder_input_tokens"]
    segments = batch.get("encoder_segment_ids")
    model = bind(config, params, policy=policy)
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
        scale=model.logit_scale,
        z_loss=options.z_loss,
        label_smoothing=options.label_smoothing,
        num_chunks=options.vocab_chunks
        or _num_chunks(states.shape[:2], config.vocab_size, model.sharder),
        sharder=model.sharder,
        num_parts=model.sharder.num_shards(("tensor",)),
    )


def _num_chunks(shape: tuple[int, ...], vocab_size: int, sharder: Sharder) -> int:
    """Return the number of chunks that keeps their logits below `_CHUNK_BYTES` a device."""
    rows = math.prod(shape) // sharder.num_shards((*BATCH_AXES, "sequence"))
    return -(-4 * rows * vocab_size // (sharder.num_shards(("tensor",)) * _CHUNK_BYTES))


def _means(result: loss.LossSums) -> Metrics:
    weight = jnp.maximum(result.weight, 1.0)
    return {
        "loss": result.total / weight,
        "cross_entropy": result.cross_entropy / weight,
        "accuracy": result.correct / weight,
    }
