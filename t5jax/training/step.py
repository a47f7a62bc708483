"""Training step: one jitted program for any number of devices."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jax.tree_util import KeyPath
from jaxtyping import Array, Bool, Float, Int, PyTree

from t5jax.errors import check_at_least
from t5jax.models import ComputePolicy, Params, T5Config, bind, get_family, init_params
from t5jax.parallel import (
    BATCH_AXES,
    BATCH_SPEC,
    DeviceBatch,
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
# Default memory limit per device for the logits of one vocabulary chunk.
_CHUNK_BYTES = 2**26
# Decay of the running mean of gradient norms, and number of steps before spikes are skipped.
_NORM_DECAY, _SPIKE_WARMUP_STEPS = 0.98, 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepConfig:
    """Options of the training step.

    Attributes:
      z_loss: weight of the z-loss, the penalty on log^2 of the softmax normalizer.
      label_smoothing: probability spread over the vocabulary in training targets; evaluations do
        not smooth.
      accumulate: number of gradient accumulation microbatches per batch; same gradient with less
        memory, except for different dropout masks.
      vocab_chunks: number of vocabulary chunks for the logits, computed in turn to save memory;
        by default, enough to keep a chunk below 64 MiB per device.
      spike_factor: skip the update if the gradient norm exceeds this multiple of its running mean;
        None disables it.  Steps with a non-finite loss or gradient are always skipped.
      frozen: parameters to freeze, as regular expressions that match whole '/'-separated parts of
        their paths, such as 'encoder' or 'token_embedder'.
      ema_decay: decay per step of an exponential moving average (EMA) of the parameters, used for
        evaluation and as the result; None disables it.

    Examples:
      >>> options = t5jax.training.StepConfig(accumulate=4, ema_decay=0.999)
      >>> options.z_loss
      0.0001
      >>> t5jax.training.StepConfig(spike_factor=1.0)
      Traceback (most recent call last):
      ValueError: spike_factor must be above 1, got 1.0; 10 is a good start.
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
                f"spike_factor must be above 1, got {self.spike_factor}; 10 is a good start."
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in (0, 1), got {self.ema_decay}; 0.9999 is usual.")


class GradientNorms(NamedTuple):
    """Gradient norm statistics of the steps that were not skipped.

    Attributes:
      mean: running mean, float32.
      num_steps: number of steps in the mean, int32.
    """

    mean: Float[Array, ""]
    num_steps: Int[Array, ""]


class TrainState(NamedTuple):
    """Training state: everything that a training step updates.

    Attributes:
      step: number of completed steps, skipped ones included, int32.
      params: parameters, see `t5jax.models.init_params`.
      opt_state: optimizer state of the trainable parameters.
      ema_params: exponential moving average of the parameters; None without `ema_decay`.
      norms: gradient norm statistics; None without `spike_factor`.

    Examples:
      >>> step = jnp.zeros((), jnp.int32)
      >>> state = t5jax.training.TrainState(step, params, opt_state=())
      >>> int(state._replace(step=state.step + 1).step)
      1
    """

    step: Int[Array, ""]
    params: Params
    opt_state: PyTree
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
    """Initialize a sharded training state.

    Args:
      config: architecture.
      optimizer: optax transformation, such as from `t5jax.optim.make_optimizer`.
      mesh: device mesh to shard over.
      seed: random seed for the parameters.
      options: options of the training step; defaults to `StepConfig()`.
      params: initial parameters to use instead of random ones; their buffers are donated.
    Returns:
      State at step 0, with float32 parameters.
    Raises:
      ValueError: a mesh axis does not divide the dimension it shards, or `options.frozen` matches
        no parameter or all of them.

    Examples:
      >>> import optax
      >>> mesh = t5jax.parallel.make_mesh(t5jax.parallel.MeshConfig())
      >>> state = t5jax.training.init_state(config, optax.sgd(0.1), mesh=mesh, seed=0)
      >>> int(state.step), state.params["token_embedder"]["embedding"].shape
      (0, (97, 16))
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
    """Return the shapes, dtypes and shardings of `init_state`, without allocating arrays.

    Args:
      config: architecture.
      optimizer: optax transformation.
      mesh: device mesh to shard over.
      options: options of the training step; defaults to `StepConfig()`.
    Returns:
      Training state with a `jax.ShapeDtypeStruct` in place of every array.
    Raises:
      ValueError: a mesh axis does not divide the dimension it shards, or `options.frozen` matches
        no parameter or all of them.

    Examples:
      >>> import optax
      >>> mesh = t5jax.parallel.make_mesh(t5jax.parallel.MeshConfig())
      >>> state = t5jax.training.abstract_state(config, optax.adam(1e-3), mesh=mesh)
      >>> state.params["token_embedder"]["embedding"].shape
      (97, 16)
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
    """Jitted function called under `jax.set_mesh`, from which the model reads its mesh."""

    def __init__(self, function: Any, mesh: Mesh):
        self._function, self._mesh = function, mesh

    def __call__(self, *args: Any) -> Any:
        with jax.set_mesh(self._mesh):
            return self._function(*args)

    def lower(self, *args: Any) -> Any:
        """Lower the function for these arguments or shapes, like `jax.jit(...).lower`."""
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
    """Make a jitted `step(state, batch) -> (state, metrics)`, which donates the state.

    Dropout masks depend only on `seed` and `state.step`, so a resumed run repeats them.

    Args:
      config: architecture.
      optimizer: optax transformation, the same as for `init_state`.
      policy: dtype, rematerialization and attention kernel.
      schedule: learning rate schedule, only for the metrics; the optimizer has its own.
      mesh: device mesh of the state.
      options: options of the training step, the same as for `init_state`.
      seed: random seed for dropout.
    Returns:
      The step function.  Batches come from `t5jax.parallel.shard_batch`.  Metrics are float32
      scalars: "loss" (with label smoothing and z-loss) and "cross_entropy" (without), in nats per
      target token, "accuracy" in [0, 1], "grad_norm", "learning_rate", and "skipped", 1.0 if
      parameters and optimizer state were left unchanged.
    Raises:
      ValueError: see `abstract_state`.  Later: the step got a batch whose rows or lengths the
        mesh or `options.accumulate` does not divide.

    Examples:
      >>> import optax
      >>> mesh = t5jax.parallel.make_mesh(t5jax.parallel.MeshConfig())
      >>> options, optimizer = t5jax.training.StepConfig(), optax.sgd(0.1)
      >>> step = t5jax.training.make_train_step(
      ...     config, optimizer, policy=t5jax.models.ComputePolicy(), schedule=lambda step: 0.1,
      ...     mesh=mesh, options=options, seed=0,
      ... )
      >>> state = t5jax.training.init_state(config, optimizer, mesh=mesh, seed=0)
      >>> tokens = np.ones((8, 4), np.int32)
      >>> batch = {"encoder_input_tokens": tokens, "decoder_input_tokens": tokens,
      ...     "decoder_target_tokens": tokens, "decoder_loss_weights": tokens.astype(np.float32)}
      >>> state, metrics = step(state, t5jax.parallel.shard_batch(batch, mesh=mesh))
      >>> int(state.step), float(metrics["skipped"])
      (1, 0.0)
    """
    shardings = jax.tree.map(
        lambda x: x.sharding, abstract_state(config, optimizer, mesh=mesh, options=options)
    )
    trained_shardings, _ = partition_params(shardings.params, options.frozen)

    def step(state: TrainState, batch: DeviceBatch) -> tuple[TrainState, Metrics]:
        _check_shapes(batch, options, mesh)
        # Folding in 1 separates dropout from the key of the initial parameters.
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

        grads, sums = _gradients(
            part_loss, trained, batch, key, options.accumulate, trained_shardings
        )
        norm = optax.tree.norm(grads)
        applied, norms = should_apply(state.norms, sums.total, norm, options.spike_factor)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        updated: PyTree = optax.apply_updates(trained, updates)
        trained, opt_state = select_tree(applied, (updated, opt_state), (trained, state.opt_state))
        params = merge_params(trained, frozen)
        ema_params = state.ema_params
        if options.ema_decay is not None:
            ema_params = _update_ema(ema_params, params, applied, options.ema_decay)
        # The optimizer state of `make_optimizer` counts updates, which exclude skipped steps.
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
    """Return the parameters for inference: the moving average if there is one.

    Args:
      state: training state.
    Returns:
      `state.ema_params`, or `state.params` if that is None.

    Examples:
      >>> state = t5jax.training.TrainState(0, params, opt_state=(), ema_params={"x": 1})
      >>> t5jax.training.inference_params(state)
      {'x': 1}
    """
    return state.params if state.ema_params is None else state.ema_params


def state_to_trees(state: TrainState) -> dict[str, PyTree]:
    """Convert a state to the named pytrees of a checkpoint; the step is stored separately."""
    trees = {"params": state.params, "optimizer": state.opt_state}
    if state.ema_params is not None:
        trees["average"] = state.ema_params
    if state.norms is not None:
        trees["norms"] = state.norms
    return trees


def state_from_trees(step: Int[Array, ""], trees: dict[str, PyTree]) -> TrainState:
    """Rebuild a state from the trees of `state_to_trees`."""
    norms = GradientNorms(*trees["norms"]) if "norms" in trees else None
    return TrainState(step, trees["params"], trees["optimizer"], trees.get("average"), norms)


def partition_params(tree: PyTree, patterns: Sequence[str]) -> tuple[PyTree, PyTree]:
    """Split parameters into trainable and frozen trees of the same structure.

    Only trainable parameters are differentiated; `optax.selective_transform` would compute all
    gradients first and include frozen ones in the gradient norm.

    Args:
      tree: nested dict of parameters.
      patterns: regular expressions that match whole '/'-separated parts of a path, such as
        `encoder` or `(encoder|decoder)/.*/relative_bias`; matching parameters are frozen.
    Returns:
      Trainable and frozen parameters, each with None in place of the other's leaves.
    Raises:
      ValueError: a pattern matches no parameter, or all parameters are frozen.
    """
    paths = [path_name(path) for path, _ in jax.tree.leaves_with_path(tree)]
    for pattern in patterns:
        if not any(matches_path(pattern, path) for path in paths):
            raise ValueError(
                f"frozen must match parameters of this model, got {pattern!r}, which matches none; "
                f"use {', '.join(sorted({path.partition('/')[0] for path in paths}))} or a path "
                f"such as {paths[0]}."
            )

    def frozen(path: KeyPath) -> bool:
        return any(matches_path(pattern, path_name(path)) for pattern in patterns)

    trained = jax.tree.map_with_path(lambda path, x: None if frozen(path) else x, tree)
    if not jax.tree.leaves(trained):
        raise ValueError(f"frozen must leave parameters to train, got {list(patterns)}.")
    return trained, jax.tree.map_with_path(lambda path, x: x if frozen(path) else None, tree)


def merge_params(trained: PyTree, frozen: PyTree) -> PyTree:
    """Merge the trees returned by `partition_params`."""
    return jax.tree.map(
        lambda x, y: y if x is None else x, trained, frozen, is_leaf=lambda x: x is None
    )


def _init(
    config: T5Config,
    optimizer: optax.GradientTransformation,
    options: StepConfig,
    seed: Int[Array, ""],
) -> TrainState:
    return _start(optimizer, options, init_params(config, jax.random.key(seed)))


def _start(
    optimizer: optax.GradientTransformation, options: StepConfig, params: Params
) -> TrainState:
    trained, _ = partition_params(params, options.frozen)
    ema_params = None if options.ema_decay is None else jax.tree.map(jnp.copy, params)
    norms = None if options.spike_factor is None else init_norms()
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trained), ema_params, norms)


def _check_shapes(batch: DeviceBatch, options: StepConfig, mesh: Mesh) -> None:
    rows = len(batch["encoder_input_tokens"])
    check_batch_size(rows, mesh=mesh, accumulate=options.accumulate)
    names = ("encoder_input_tokens", "decoder_input_tokens")
    check_lengths({name: batch[name].shape[1] for name in names}, mesh=mesh)


def _gradients(
    part_loss: Callable[..., Any],
    trained: Params,
    batch: DeviceBatch,
    key: Array,
    count: int,
    shardings: PyTree,
) -> tuple[Params, loss.LossSums]:
    """Return the gradient of `part_loss` summed over `count` microbatches, and the loss sums."""
    grad = jax.grad(part_loss, has_aux=True)
    if count == 1:
        return grad(trained, batch, key)
    # Every microbatch takes rows from every device, so that no row moves between devices.
    parts = jax.tree.map(
        lambda x: x.reshape(len(x) // count, count, *x.shape[1:]).swapaxes(0, 1), batch
    )

    def add(carry, part_and_key):
        return jax.tree.map(jnp.add, carry, grad(trained, *part_and_key)), None

    # Gradients have the dtype of their parameters.
    zeros = jax.lax.with_sharding_constraint(jax.tree.map(jnp.zeros_like, trained), shardings)
    none = loss.LossSums(*[jnp.zeros((), jnp.float32)] * len(loss.LossSums._fields))
    total, _ = jax.lax.scan(add, (zeros, none), (parts, jax.random.split(key, count)))
    return total


def init_norms() -> GradientNorms:
    """Return the gradient norm statistics before the first step."""
    return GradientNorms(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))


def should_apply(
    norms: GradientNorms | None, total: Array, norm: Array, spike_factor: float | None
) -> tuple[Bool[Array, ""], GradientNorms | None]:
    """Decide whether to apply the update of a step.

    `optax.apply_if_finite` checks updates instead of the loss, ignores spikes, and applies
    non-finite updates after too many skipped steps, where the trainer raises an error.  It would
    also add its counters to the optimizer state in checkpoints.

    Args:
      norms: gradient norm statistics of earlier steps; None disables spike detection.
      total: loss of the step.
      norm: gradient norm of the step.
      spike_factor: a norm above this multiple of the mean is a spike; None disables detection.
    Returns:
      bool scalar, True to apply the update, and the updated statistics.
    """
    applied = jnp.isfinite(total) & jnp.isfinite(norm)
    if norms is None or spike_factor is None:
        return applied, norms
    applied &= (norms.num_steps < _SPIKE_WARMUP_STEPS) | (norm <= spike_factor * norms.mean)
    # Arithmetic mean at first, exponential moving average later.
    share = jnp.maximum(1.0 / (norms.num_steps + 1).astype(jnp.float32), 1.0 - _NORM_DECAY)
    mean = norms.mean + share * (norm - norms.mean)
    return applied, select_tree(applied, GradientNorms(mean, norms.num_steps + 1), norms)


def select_tree(applied: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """Return the new tree if the update is applied, else the old one.

    Args:
      applied: whether the update is applied.
      new: tree after the update.
      old: tree before the update, with the same structure.
    """
    return jax.tree.map(lambda x, y: jnp.where(applied, x, y), new, old)


def _update_ema(ema_params: PyTree, params: Params, applied: Array, decay: float) -> PyTree:
    """Update the moving average if the parameter update was applied.

    `optax.incremental_update` computes `share * x + (1 - share) * mean`, which rounds differently;
    older runs would not resume bit for bit.
    """
    share = jnp.where(applied, 1.0 - decay, 0.0)
    return jax.tree.map(
        lambda mean, x: mean + share.astype(x.dtype) * (x - mean), ema_params, params
    )


def batch_loss(
    config: T5Config,
    params: Params,
    batch: DeviceBatch,
    *,
    policy: ComputePolicy,
    options: StepConfig,
    dropout_key: Array | None,
) -> loss.LossSums:
    """Return the loss sums of a batch.

    Args:
      config: architecture.
      params: parameters of the model.
      batch: dict of token ids [B, S] and [B, T], loss weights and optional segment ids.
      policy: dtype, rematerialization and attention kernel.
      options: z-loss, label smoothing and vocabulary chunks.
      dropout_key: PRNG key; None disables dropout.
    Returns:
      float32 sums over the target tokens.
    """
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
    """Return the number of chunks that keeps their logits below `_CHUNK_BYTES` per device."""
    rows = math.prod(shape) // sharder.num_shards((*BATCH_AXES, "sequence"))
    return -(-4 * rows * vocab_size // (sharder.num_shards(("tensor",)) * _CHUNK_BYTES))


def _means(result: loss.LossSums) -> Metrics:
    weight = jnp.maximum(result.weight, 1.0)
    return {
        "loss": result.total / weight,
        "cross_entropy": result.cross_entropy / weight,
        "accuracy": result.correct / weight,
    }
