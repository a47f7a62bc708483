"""Cross-entropy loss, with the logits of a whole batch or computed in vocabulary chunks.

Shape letters: B batch, T target length, V vocabulary, D d_model; P vocabulary shards on different
devices, C columns per chunk of a shard.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t5jax.ops import einsum_f32, flatten_rows
from t5jax.parallel import Sharder

_NO_MESH = Sharder()


class LossSums(NamedTuple):
    """Weighted sums over target tokens, float32 scalars; add them over batches and devices.

    Attributes:
      total: training loss: cross entropy with label smoothing, plus z-loss, in nats.
      cross_entropy: cross entropy without label smoothing or z-loss, in nats.
      correct: weighted number of targets with the highest logit, ties included.
      weight: sum of the weights; with weights 0 and 1, the number of target tokens.
    """

    total: Float[Array, ""]
    cross_entropy: Float[Array, ""]
    correct: Float[Array, ""]
    weight: Float[Array, ""]


def cross_entropy(
    logits: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    z_loss: float,
    label_smoothing: float,
) -> LossSums:
    r"""Compute the token-weighted cross entropy with z-loss.

    .. math:: \sum_i w_i \left( \log Z_i - (1 - \epsilon) x_{i, y_i}
        - \frac{\epsilon}{V} \sum_v x_{i, v} + \zeta \log^2 Z_i \right)

    The z-loss keeps logits from drifting (arXiv:2204.02311, section 5); T5 v1.1 and later used
    1e-4.  Label smoothing assigns probability epsilon / V to every id, and the rest to the target
    (arXiv:1512.00567, section 7).

    Args:
      logits: [B, T, V] float32.
      targets: [B, T] target ids.
      weights: [B, T] loss weights, 0 to ignore a token.
      z_loss: weight zeta of the z-loss.
      label_smoothing: smoothing epsilon, in [0, 1); V counts all columns of the logits.
    Returns:
      float32 sums over the target tokens.
    """
    log_z = jax.scipy.special.logsumexp(logits, axis=-1)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    correct = target_logits == jnp.max(logits, axis=-1)
    plain = _sums(log_z, target_logits, correct, weights, z_loss=z_loss)
    if not label_smoothing:
        return plain
    return _smoothed(
        plain, target_logits, jnp.mean(logits, axis=-1), weights, label_smoothing=label_smoothing
    )


def chunked_cross_entropy(
    states: Float[Array, "B T D"],
    kernel: Float[Array, "..."],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    vocab_axis: int,
    scale: float,
    z_loss: float,
    label_smoothing: float,
    num_chunks: int,
    num_parts: int = 1,
    sharder: Sharder = _NO_MESH,
) -> LossSums:
    """Compute `cross_entropy` of `states @ kernel * scale` without materializing all logits.

    Logits are computed one vocabulary chunk at a time, for the loss and again for its gradient;
    only log Z is saved per token (as in arXiv:2411.09009).

    Args:
      states: [B, T, D] final decoder states.
      kernel: [D, V] or [V, D]; its gradient is accumulated in float32 and cast to its dtype.
      targets: [B, T] target ids.
      weights: [B, T] loss weights, 0 to ignore a token; not differentiable.
      vocab_axis: vocabulary axis of `kernel`.
      scale: factor of the logits.
      z_loss: weight of the z-loss.
      label_smoothing: smoothing epsilon, in [0, 1), spread over all V ids.
      num_chunks: minimum number of chunks.
      num_parts: number of vocabulary shards; each chunk takes columns from every shard.
      sharder: sharder of the model.
    Returns:
      float32 sums over the target tokens.
    Raises:
      ValueError: `num_parts` does not divide the vocabulary size.
    """
    vocab_size = kernel.shape[vocab_axis]
    if vocab_size % num_parts:
        raise ValueError(
            f"the vocabulary must be a multiple of its {num_parts} parts, got {vocab_size}; pad it."
        )
    plan = _Plan(vocab_size, vocab_axis, num_parts, num_chunks, scale, z_loss, label_smoothing)
    rows = flatten_rows(states, sharder)
    shape = rows.shape[:-1]
    return _chunked(plan, rows, kernel, targets.reshape(shape), weights.reshape(shape))


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Chunking of a kernel: axis `vocab_axis` is viewed as [P, chunks, C]."""

    vocab_size: int
    vocab_axis: int
    num_parts: int
    num_chunks: int
    scale: float
    z_loss: float
    label_smoothing: float

    @property
    def part_size(self) -> int:
        return self.vocab_size // self.num_parts

    @property
    def columns(self) -> int:
        """C; the last chunk overlaps the previous one if C does not divide the shard."""
        return -(-self.part_size // min(self.num_chunks, self.part_size))

    @property
    def num_steps(self) -> int:
        return -(-self.part_size // self.columns)

    @property
    def overlaps(self) -> bool:
        return self.num_steps * self.columns > self.part_size

    def first_column(self, index: Array) -> Array:
        """Return the first column of chunk `index` within every shard."""
        return jnp.minimum(index * self.columns, self.part_size - self.columns)


def _chunk(plan: _Plan, kernel: Array, index: Array, rank: int) -> tuple[Array, Array, Array]:
    """Return the kernel of chunk `index`, its column ids, and a mask of its new columns.

    Ids and mask have shapes [..., P, C] and [..., 1, C], with leading axes of size 1 up to `rank`.
    The mask is False for columns shared with the previous chunk.
    """
    start = plan.first_column(index)
    split = kernel.reshape(_split_shape(plan, kernel.shape))
    part = jax.lax.dynamic_slice_in_dim(split, start, plan.columns, axis=plan.vocab_axis + 1)
    column = start + jnp.arange(plan.columns, dtype=jnp.int32)
    ids = jnp.arange(plan.num_parts, dtype=jnp.int32)[:, None] * plan.part_size + column[None]
    new = column[None] >= index * plan.columns
    axes = tuple(range(rank - 2))
    return part, jnp.expand_dims(ids, axes), jnp.expand_dims(new, axes)


def _split_shape(plan: _Plan, shape: tuple[int, ...]) -> tuple[int, ...]:
    axis = plan.vocab_axis
    return (*shape[:axis], plan.num_parts, plan.part_size, *shape[axis + 1 :])


def _letters(plan: _Plan, rows: Array) -> tuple[str, str]:
    """Return the einsum subscripts of the leading axes of the rows, and of a kernel chunk."""
    return "bt"[: rows.ndim - 1], "pcd" if plan.vocab_axis == 0 else "dpc"


def _logits(plan: _Plan, rows: Array, part: Array) -> Float[Array, "*A P C"]:
    own, kernel = _letters(plan, rows)
    product = einsum_f32(f"{own}d,{kernel}->{own}pc", rows, part.astype(rows.dtype))
    return product * plan.scale


def _mean_logits(plan: _Plan, rows: Array, kernel: Array) -> Float[Array, "*A"]:
    """Return the mean logit over the vocabulary, from the kernel's mean instead of the logits."""
    mean = jnp.mean(kernel.astype(rows.dtype), axis=plan.vocab_axis, dtype=jnp.float32)
    return plan.scale * jnp.einsum(
        "...d,d->...", rows.astype(jnp.float32), mean, precision=jax.lax.Precision.HIGHEST
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(plan: _Plan, rows: Array, kernel: Array, targets: Array, weights: Array) -> LossSums:
    return _forward(plan, rows, kernel, targets, weights)[0]


def _forward(
    plan: _Plan, rows: Array, kernel: Array, targets: Array, weights: Array
) -> tuple[LossSums, Any]:
    lowest = jnp.finfo(jnp.float32).min

    def add(carry, index):
        # Online log-sum-exp per shard: maximum logit, sum of exponentials relative to it, and the
        # logit of the target.
        top, total, target = carry
        part, ids, new = _chunk(plan, kernel, index, rows.ndim + 1)
        logits = jnp.where(new, _logits(plan, rows, part), -jnp.inf)
        higher = jnp.maximum(top, jnp.max(logits, axis=-1))
        total = total * jnp.exp(top - higher) + jnp.sum(
            jnp.exp(logits - higher[..., None]), axis=-1
        )
        hit = (targets[..., None, None] == ids) & new
        target_logit = jnp.max(jnp.where(hit, logits, -jnp.inf), axis=-1)
        return (higher, total, jnp.maximum(target, target_logit)), None

    shape = (*rows.shape[:-1], plan.num_parts)
    start = (
        jnp.full(shape, lowest),
        jnp.zeros(shape, jnp.float32),
        jnp.full(shape, -jnp.inf),
    )
    (top, total, target), _ = jax.lax.scan(add, start, jnp.arange(plan.num_steps))
    highest = jnp.max(top, axis=-1, keepdims=True)
    log_z = jnp.log(jnp.sum(total * jnp.exp(top - highest), axis=-1)) + highest[..., 0]
    target_logits = jnp.max(target, axis=-1)
    correct = target_logits == highest[..., 0]
    result = _sums(log_z, target_logits, correct, weights, z_loss=plan.z_loss)
    if plan.label_smoothing:
        mean_logits = _mean_logits(plan, rows, kernel)
        result = _smoothed(
            result, target_logits, mean_logits, weights, label_smoothing=plan.label_smoothing
        )
    return result, (rows, kernel, targets, weights, log_z)


def _backward(plan: _Plan, kept: Any, cotangents: LossSums):
    rows, kernel, targets, weights, log_z = kept
    own, of_kernel = _letters(plan, rows)
    # Factor of every probability, and of the target's logit.
    plain = (cotangents.total + cotangents.cross_entropy) * weights
    # Label smoothing moves this amount from the target's logit to all ids in equal parts.
    moved = plan.label_smoothing * cotangents.total * weights if plan.label_smoothing else None
    slope = plain + cotangents.total * weights * (2 * plan.z_loss) * log_z
    slope = jnp.where(weights != 0, slope, 0.0)
    log_z = jnp.where(weights != 0, log_z, 0.0)

    def add(carry, index):
        to_rows, to_kernel = carry
        part, ids, new = _chunk(plan, kernel, index, rows.ndim + 1)
        logits = _logits(plan, rows, part)
        to_logits = slope[..., None, None] * jnp.exp(logits - log_z[..., None, None])
        hit = targets[..., None, None] == ids
        of_target = plain
        if moved is not None:
            # In float32, before the cast: most probabilities nearly cancel their part.
            to_logits = to_logits - (moved / plan.vocab_size)[..., None, None]
            of_target = plain - moved
        to_logits = jnp.where(hit, to_logits - of_target[..., None, None], to_logits)
        counts = new & (weights != 0)[..., None, None]
        to_logits = (jnp.where(counts, to_logits, 0.0) * plan.scale).astype(rows.dtype)
        narrow = part.astype(rows.dtype)
        # Sum over shards after the scan: one all-reduce instead of one per chunk.
        subscripts = f"{own}pc,{of_kernel}->p{own}d"
        to_rows = to_rows + jnp.einsum(
            subscripts, to_logits, narrow, preferred_element_type=jnp.float32
        )
        subscripts = f"{own}pc,{own}d->{of_kernel}"
        to_part = jnp.einsum(subscripts, to_logits, rows, preferred_element_type=jnp.float32)
        axis, start = plan.vocab_axis + 1, plan.first_column(index)
        if plan.overlaps:  # keep the gradient of columns shared with the previous chunk
            before = jax.lax.dynamic_slice_in_dim(to_kernel, start, plan.columns, axis=axis)
            to_part = to_part + before
        to_kernel = jax.lax.dynamic_update_slice_in_dim(to_kernel, to_part, start, axis=axis)
        return (to_rows, to_kernel), None

    start = (
        jnp.zeros((plan.num_parts, *rows.shape), jnp.float32),
        jnp.zeros(_split_shape(plan, kernel.shape), jnp.float32),
    )
    (to_rows, to_kernel), _ = jax.lax.scan(add, start, jnp.arange(plan.num_steps))
    to_rows = jnp.sum(to_rows, axis=0).astype(rows.dtype)
    return to_rows, to_kernel.reshape(kernel.shape).astype(kernel.dtype), None, None


_chunked.defvjp(_forward, _backward)


def _sums(
    log_z: Array, target_logits: Array, correct: Array, weights: Array, *, z_loss: float
) -> LossSums:
    # `where` rather than a product: ignored tokens must not turn the sum into NaN.
    counts = weights != 0
    entropy = jnp.sum(jnp.where(counts, weights * (log_z - target_logits), 0.0))
    penalty = z_loss * jnp.sum(jnp.where(counts, weights * jnp.square(log_z), 0.0))
    hits = jnp.sum(jnp.where(correct, weights, 0.0))
    return LossSums(entropy + penalty, entropy, hits, jnp.sum(weights))


def _smoothed(
    plain: LossSums,
    target_logits: Array,
    mean_logits: Array,
    weights: Array,
    *,
    label_smoothing: float,
) -> LossSums:
    """Add label smoothing to the total of `plain`."""
    rise = jnp.where(weights != 0, weights * (target_logits - mean_logits), 0.0)
    return plain._replace(total=plain.total + label_smoothing * jnp.sum(rise))
