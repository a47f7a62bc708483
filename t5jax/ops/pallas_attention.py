"""Pallas TPU kernels for `t5jax.ops.blockwise_attention`.

The forward kernel keeps the softmax of one block of queries in registers and scratch memory while
it loops over blocks of keys. There are two backward kernels: one loops over keys, for the gradients
of queries and bias, the other over queries, for those of keys and values (arXiv:2307.08691). A
block of bias is a row of distances, rotated by one more position in each row; its gradient is
rotated back while it is summed.

Shape letters: B batch, N heads, T query length, S key length, H head size; G block size, W = 2 G
distances within a pair of blocks, K offsets between a block of queries and one of keys.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from t5jax.ops.blockwise_attention import fill_unattended
from t5jax.ops.masks import Segments

# The scores of a block take 1 MiB; the few such arrays alive at once fit in a core's VMEM.
BLOCK = 512
# Width of a vector register; the block size must be a multiple of it.
_LANES = 128
_LEAST, _MOST = float(jnp.finfo(jnp.float32).min), float(jnp.finfo(jnp.float32).max)


def pallas_attend(
    queries: Float[Array, "B N T H"],
    keys: Float[Array, "B N S H"],
    values: Float[Array, "B N S H"],
    *,
    segments: Segments,
    bias: Float[Array, "N offsets"] | None,
    block: int = BLOCK,
    interpret: bool = False,
) -> Float[Array, "B N T H"]:
    """Compute `blockwise_attend` with Pallas kernels.

    Args:
      queries: [B, N, T, H], unscaled.
      keys: [B, N, S, H].
      values: [B, N, S, H].
      segments: segments of queries and keys; a query without visible keys gets the mean value.
      bias: [N, offsets] float32, for distances 1 - T to S - 1; None adds nothing.
      block: block size, a multiple of 128.
      interpret: run the kernels as ordinary operations, on any device, slowly.
    Returns:
      [B, N, T, H] in the dtype of `values`; scores and softmax are float32.
    """
    (batch, heads, query_len, _), key_len = queries.shape, keys.shape[2]
    # Short sequences need less than a full block.
    block = min(block, -(-max(query_len, key_len) // _LANES) * _LANES)
    rows, columns = -query_len % block, -key_len % block
    counts = (query_len + rows) // block, (key_len + columns) // block
    plan = _Plan(block, *counts, segments.causal, bias is not None, interpret)
    if bias is None:
        bias = jnp.zeros((heads, query_len + key_len - 1), jnp.float32)
    query_ids, key_ids = segments.ids(batch, query_len, key_len)
    outputs: Any = _attend(
        plan,
        jnp.pad(queries, ((0, 0), (0, 0), (0, rows), (0, 0))),
        jnp.pad(keys, ((0, 0), (0, 0), (0, columns), (0, 0))),
        jnp.pad(values, ((0, 0), (0, 0), (0, columns), (0, 0))),
        _windows(jnp.pad(bias, ((0, 0), (rows, columns + 1))), block),
        jnp.pad(query_ids, ((0, 0), (0, rows)), constant_values=-1)[:, :, None],
        jnp.pad(key_ids, ((0, 0), (0, columns)))[:, None, :],
    )
    out, total = outputs
    return fill_unattended(out[:, :, :query_len], total[:, :, :query_len, 0] == _MOST, values)


def _windows(bias: Float[Array, "N offsets"], block: int) -> Float[Array, "N K 1 W"]:
    """Split the bias into the distances within each pair of blocks."""
    parts = bias.reshape(len(bias), -1, block)
    return jnp.concatenate([parts[:, :-1], parts[:, 1:]], axis=-1)[:, :, None]


class _Plan(NamedTuple):
    block: int
    num_query_blocks: int
    num_key_blocks: int
    causal: bool
    has_bias: bool
    interpret: bool

    def pair(self, i: int | Array, j: int | Array) -> int | Array:
        """Return the index of the offset between two blocks, from 0.

        Args:
          i: block of queries.
          j: block of keys.
        """
        return j - i + self.num_query_blocks - 1

    def grid(self, batch: int, heads: int, *, by_keys: bool) -> tuple[int, ...]:
        counts = (self.num_query_blocks, self.num_key_blocks)
        return batch, heads, *(counts[::-1] if by_keys else counts)

    def specs(self, head_dim: int, *, by_keys: bool) -> dict[str, pl.BlockSpec]:
        """Return the block spec of each array.

        Args:
          head_dim: size of a head.
          by_keys: whether the inner loop is over queries instead of keys.
        """

        def spec(shape, index):
            def of_step(b, n, outer, inner):
                i, j = (inner, outer) if by_keys else (outer, inner)
                return index(b, n, i, j)

            return pl.BlockSpec(shape, of_step)

        size = self.block
        return {
            "query": spec((1, 1, size, head_dim), lambda b, n, i, j: (b, n, i, 0)),
            "key": spec((1, 1, size, head_dim), lambda b, n, i, j: (b, n, j, 0)),
            "bias": spec((1, 1, 1, 2 * size), lambda b, n, i, j: (n, self.pair(i, j), 0, 0)),
            "query_ids": spec((1, size, 1), lambda b, n, i, j: (b, i, 0)),
            "key_ids": spec((1, 1, size), lambda b, n, i, j: (b, 0, j)),
            "total": spec((1, 1, size, 1), lambda b, n, i, j: (b, n, i, 0)),
        }


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan, queries, keys, values, bias, query_ids, key_ids) -> Any:
    """Return the output and each query's log-sum-exp of scores, _MOST without visible keys."""
    batch, heads, length, head_dim = queries.shape
    specs = plan.specs(head_dim, by_keys=False)
    return pl.pallas_call(
        functools.partial(_forward_kernel, plan),
        grid=plan.grid(batch, heads, by_keys=False),
        in_specs=[specs[k] for k in ("query", "key", "key", "bias", "query_ids", "key_ids")],
        out_specs=[specs["query"], specs["total"]],
        out_shape=[
            jax.ShapeDtypeStruct(queries.shape, values.dtype),
            jax.ShapeDtypeStruct((batch, heads, length, 1), jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((plan.block, 1), jnp.float32),
            pltpu.VMEM((plan.block, 1), jnp.float32),
            pltpu.VMEM((plan.block, head_dim), jnp.float32),
        ],
        compiler_params=_parameters(3),
        interpret=plan.interpret,
    )(queries, keys, values, bias, query_ids, key_ids)


def _attend_forward(plan, *args):
    outputs: Any = _attend(plan, *args)
    out, total = outputs
    # Drop the last axis of size 1, which would be padded to 128 in memory.
    return (out, total), (*args, out, total[..., 0])


def _attend_backward(plan, kept, cotangents):
    queries, keys, values, bias, query_ids, key_ids, out, total = kept
    d_out = cotangents[0].astype(values.dtype)
    mean = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    args = (queries, keys, values, bias, query_ids, key_ids, d_out, total[..., None], mean)
    names = ("query", "key", "key", "bias", "query_ids", "key_ids", "query", "total", "total")
    batch, heads, _, head_dim = queries.shape
    pairs = bias.shape[1]

    specs = plan.specs(head_dim, by_keys=False)
    bias_spec = pl.BlockSpec((1, 1, pairs, 2 * plan.block), lambda b, n, i, j: (b, n, 0, 0))
    d_queries, d_bias = pl.pallas_call(
        functools.partial(_query_kernel, plan),
        grid=plan.grid(batch, heads, by_keys=False),
        in_specs=[specs[name] for name in names],
        out_specs=[specs["query"], bias_spec],
        out_shape=[
            jax.ShapeDtypeStruct(queries.shape, queries.dtype),
            jax.ShapeDtypeStruct((batch, heads, pairs, 2 * plan.block), jnp.float32),
        ],
        scratch_shapes=[pltpu.VMEM((plan.block, head_dim), jnp.float32)],
        # Not parallel over query blocks: all accumulate into the same bias gradient.
        compiler_params=_parameters(2),
        interpret=plan.interpret,
    )(*args)

    specs = plan.specs(head_dim, by_keys=True)
    d_keys, d_values = pl.pallas_call(
        functools.partial(_key_kernel, plan),
        grid=plan.grid(batch, heads, by_keys=True),
        in_specs=[specs[name] for name in names],
        out_specs=[specs["key"], specs["key"]],
        out_shape=[
            jax.ShapeDtypeStruct(keys.shape, keys.dtype),
            jax.ShapeDtypeStruct(values.shape, values.dtype),
        ],
        scratch_shapes=[pltpu.VMEM((plan.block, head_dim), jnp.float32)] * 2,
        compiler_params=_parameters(3),
        interpret=plan.interpret,
    )(*args)
    return d_queries, d_keys, d_values, jnp.sum(d_bias, axis=0)[:, :, None], None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _forward_kernel(plan, q, k, v, bias, q_ids, k_ids, out, log_total, largest, total, read):
    i, j = pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def start():
        largest[...] = jnp.full(largest.shape, _LEAST, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)
        read[...] = jnp.zeros(read.shape, jnp.float32)

    @pl.when(_any_visible(plan, i, j))
    def step():
        score = _scores(plan, i, j, q, k, bias, q_ids, k_ids)
        new = jnp.maximum(largest[...], jnp.max(score, axis=1, keepdims=True))
        share = jnp.exp(score - new)
        scale = jnp.exp(largest[...] - new)
        largest[...] = new
        total[...] = total[...] * scale + jnp.sum(share, axis=1, keepdims=True)
        read[...] = read[...] * scale + _dot(share.astype(v.dtype), v[0, 0], 1, 0)

    @pl.when(j == plan.num_key_blocks - 1)
    def finish():
        some = total[...] > 0
        sure = jnp.where(some, total[...], 1.0)
        out[0, 0] = (read[...] / sure).astype(out.dtype)
        log_total[0, 0] = jnp.where(some, largest[...] + jnp.log(sure), _MOST)


def _query_kernel(plan, q, k, v, bias, q_ids, k_ids, d_out, log_total, mean, d_q, d_bias, d_query):
    i, j = pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def start():
        d_query[...] = jnp.zeros(d_query.shape, jnp.float32)

    @pl.when((i == 0) & (j == 0))
    def start_bias():
        d_bias[...] = jnp.zeros(d_bias.shape, jnp.float32)

    @pl.when(_any_visible(plan, i, j))
    def step():
        score = _scores(plan, i, j, q, k, bias, q_ids, k_ids)
        d_score = _d_scores(score, v, d_out, log_total, mean)[1]
        d_query[...] += _dot(d_score.astype(k.dtype), k[0, 0], 1, 0)
        if plan.has_bias:
            pair = pl.ds(plan.pair(i, j), 1)
            d_bias[0, 0, pair, :] += _by_diagonal(d_score)

    @pl.when(j == plan.num_key_blocks - 1)
    def finish():
        d_q[0, 0] = d_query[...].astype(d_q.dtype)


def _key_kernel(
    plan, q, k, v, bias, q_ids, k_ids, d_out, log_total, mean, d_k, d_v, d_key, d_value
):
    j, i = pl.program_id(2), pl.program_id(3)

    @pl.when(i == 0)
    def start():
        d_key[...] = jnp.zeros(d_key.shape, jnp.float32)
        d_value[...] = jnp.zeros(d_value.shape, jnp.float32)

    @pl.when(_any_visible(plan, i, j))
    def step():
        score = _scores(plan, i, j, q, k, bias, q_ids, k_ids)
        share, d_score = _d_scores(score, v, d_out, log_total, mean)
        d_value[...] += _dot(share.astype(d_out.dtype), d_out[0, 0], 0, 0)
        d_key[...] += _dot(d_score.astype(q.dtype), q[0, 0], 0, 0)

    @pl.when(i == plan.num_query_blocks - 1)
    def finish():
        d_k[0, 0] = d_key[...].astype(d_k.dtype)
        d_v[0, 0] = d_value[...].astype(d_v.dtype)


def _any_visible(plan, i, j):
    # `pl.when` requires a traced value.
    return (j <= i) if plan.causal else (j >= 0)


def _scores(plan, i, j, q, k, bias, q_ids, k_ids) -> Float[Array, "G G"]:
    score = _dot(q[0, 0], k[0, 0], 1, 1)
    size = plan.block
    if plan.has_bias:
        rows = jnp.broadcast_to(bias[0, 0], (size, 2 * size))
        # Row t starts with the distance from query t to the first key.
        score = score + pltpu.roll(rows, size + 1, 1, stride=1, stride_axis=0)[:, :size]
    visible = q_ids[0] == k_ids[0]
    if plan.causal:
        query = jax.lax.broadcasted_iota(jnp.int32, (size, size), 0) + i * size
        key = jax.lax.broadcasted_iota(jnp.int32, (size, size), 1) + j * size
        visible = visible & (key <= query)
    return jnp.where(visible, score, -jnp.inf)


def _d_scores(score, v, d_out, log_total, mean) -> tuple[Array, Array]:
    """Return the attention weights of a block and the gradient of its scores."""
    share = jnp.exp(score - log_total[0, 0])
    return share, share * (_dot(d_out[0, 0], v[0, 0], 1, 1) - mean[0, 0])


def _by_diagonal(block: Float[Array, "G G"]) -> Float[Array, "1 W"]:
    """Sum each diagonal of a block, in the order of its distances."""
    rows = jnp.concatenate([block, jnp.zeros_like(block)], axis=1)
    # Each halving shifts the upper rows right by the number of rows between them and the lower.
    while len(rows) > 1:
        half = len(rows) // 2
        rows = pltpu.roll(rows[:half], half, 1) + rows[half:]
    return rows


def _dot(x: Array, y: Array, x_axis: int, y_axis: int) -> Float[Array, "..."]:
    axes = (((x_axis,), (y_axis,)), ((), ()))
    return jax.lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)


def _parameters(num_parallel: int) -> pltpu.CompilerParams:
    kinds: Any = ("parallel",) * num_parallel + ("arbitrary",) * (4 - num_parallel)
    return pltpu.CompilerParams(dimension_semantics=kinds)
