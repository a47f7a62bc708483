"""Blockwise attention: memory linear, not quadratic, in the sequence length.

The softmax is computed online: each block of queries visits one block of keys after another, and
keeps a running maximum, a sum of exponentials and a weighted sum of values. The backward pass
recomputes the scores (arXiv:2112.05682, arXiv:2205.14135). T5's bias depends only on the distance
between key and query, so a block of it is built from a short row of distances; its gradient is
summed over diagonals.

Shape letters: B batch, N heads, T query length, S key length, H head size; t and s are the lengths
of one block, and offsets are the T + S - 1 distances from a query to a key, from 1 - T upward.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5jax.ops import linear
from t5jax.ops.masks import Segments
from t5jax.parallel import Sharder

_NO_MESH = Sharder()
# Maximum block size: small enough for a CPU's cache, large enough for efficient matmuls.
BLOCK = 256
# If there are several blocks, their size is a multiple of this, to fill vector registers.
_MULTIPLE = 8
_LEAST, _MOST = jnp.finfo(jnp.float32).min, jnp.finfo(jnp.float32).max


def blockwise_attend(
    queries: Float[Array, "B N T H"],
    keys: Float[Array, "B N S H"],
    values: Float[Array, "B N S H"],
    *,
    segments: Segments,
    bias: Float[Array, "N offsets"] | None,
    block: int = BLOCK,
    sharder: Sharder = _NO_MESH,
) -> Float[Array, "B N T H"]:
    """Compute attention in blocks: softmax(queries . keys + bias) . values.

    Differentiable in queries, keys, values and bias.

    Args:
      queries: [B, N, T, H], unscaled.
      keys: [B, N, S, H].
      values: [B, N, S, H].
      segments: segments of queries and keys; a query without visible keys gets the mean value.
      bias: [N, offsets] float32, for distances 1 - T to S - 1; None adds nothing.
      block: maximum number of queries, and of keys, per block.
      sharder: sharder of the model.
    Returns:
      [B, N, T, H] in the dtype of `values`; scores and softmax are float32.
    """
    (batch, _, query_len, _), key_len = queries.shape, keys.shape[2]
    divided = sharder.mesh is not None and sharder.mesh.size > 1
    plan = _Plan.from_lengths(
        query_len, key_len, block=block, causal=segments.causal, divided=divided
    )
    query_ids, key_ids = segments.ids(batch, query_len, key_len)
    rows, columns = plan.query_fill(query_len), plan.key_fill(key_len)
    # Padded so that extra queries see no keys, and no query sees the extra keys.
    result: Any = _attend(
        plan,
        _fill(queries, rows),
        _fill(keys, columns),
        _fill(values, columns),
        None if bias is None else jnp.pad(bias, ((0, 0), (rows, columns + 1))),
        jnp.pad(query_ids, ((0, 0), (0, rows)), constant_values=-1),
        jnp.pad(key_ids, ((0, 0), (0, columns))),
    )
    out, total = result
    return fill_unattended(out[:, :, :query_len], total[:, :, :query_len] == _MOST, values)


def fill_unattended(
    out: Float[Array, "B N T H"], empty: Bool[Array, "B N T"], values: Float[Array, "B N S H"]
) -> Float[Array, "B N T H"]:
    """Replace the output of queries without visible keys with the mean value.

    Args:
      out: [B, N, T, H] output of attention.
      empty: [B, N, T] bool, True for queries without visible keys.
      values: [B, N, S, H].
    Returns:
      [B, N, T, H].
    """
    mean = jnp.mean(values.astype(jnp.float32), axis=2, keepdims=True).astype(out.dtype)
    return jnp.where(empty[..., None], jnp.broadcast_to(mean, out.shape), out)


class _Plan(NamedTuple):
    query_block: int
    key_block: int
    num_query_blocks: int
    num_key_blocks: int
    causal: bool
    divided: bool  # True if the batch may be sharded

    @classmethod
    def from_lengths(
        cls, query_len: int, key_len: int, *, block: int, causal: bool, divided: bool
    ) -> "_Plan":
        query_block, num_query_blocks = _even_blocks(query_len, block)
        key_block, num_key_blocks = _even_blocks(key_len, block)
        return cls(query_block, key_block, num_query_blocks, num_key_blocks, causal, divided)

    def query_fill(self, length: int) -> int:
        return self.query_block * self.num_query_blocks - length

    def key_fill(self, length: int) -> int:
        return self.key_block * self.num_key_blocks - length

    def key_blocks(self, i: int | Array) -> int | Array:
        """Return the number of leading key blocks that query block `i` attends to."""
        if not self.causal:
            return self.num_key_blocks
        return jnp.minimum(-(-(i + 1) * self.query_block // self.key_block), self.num_key_blocks)

    def first_offset(self, i: int | Array, j: int | Array) -> int | Array:
        """Return the index, in the padded row, of the first distance between two blocks.

        Args:
          i: block of queries.
          j: block of keys.
        """
        last = self.query_block * (self.num_query_blocks - 1)
        return last - i * self.query_block + j * self.key_block


def _even_blocks(length: int, most: int) -> tuple[int, int]:
    count = -(-length // most)
    if count == 1:
        return length, 1
    size = -(-length // count)
    return -(-size // _MULTIPLE) * _MULTIPLE, count


def _fill(x: Float[Array, "B N S H"], count: int) -> Float[Array, "B N filled H"]:
    return jnp.pad(x, ((0, 0), (0, 0), (0, count), (0, 0))) if count else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan, queries, keys, values, bias, query_ids, key_ids) -> Any:
    """Return the output and each query's log-sum-exp of scores, _MOST without visible keys.

    The log-sum-exp has no gradient.
    """

    def one_query_block(i):
        query, ids = _part(queries, i, plan.query_block), _part(query_ids, i, plan.query_block, 1)

        def one_key_block(j, carry):
            largest, total, read = carry
            value = _part(values, j, plan.key_block)
            score = _scores(plan, i, j, query, keys, bias, ids, key_ids)
            new = jnp.maximum(largest, jnp.max(score, axis=-1))
            share = jnp.exp(score - new[..., None])
            scale = jnp.exp(largest - new)
            total = total * scale + jnp.sum(share, axis=-1)
            more = _wide("bnts,bnsh->bnth", share.astype(values.dtype), value)
            return new, total, read * scale[..., None] + more

        shape = query.shape[:-1]
        start = (
            jnp.full(shape, _LEAST),
            jnp.zeros(shape, jnp.float32),
            jnp.zeros((*shape, values.shape[-1]), jnp.float32),
        )
        largest, total, read = jax.lax.fori_loop(0, plan.key_blocks(i), one_key_block, start)
        read = read / jnp.where(total > 0, total, 1.0)[..., None]
        log_total = jnp.where(total > 0, largest + jnp.log(total), _MOST)
        return read.astype(values.dtype), log_total

    out, log_total = jax.lax.map(one_query_block, jnp.arange(plan.num_query_blocks))
    return _joined(out), _joined(log_total)


def _attend_forward(plan, *args):
    outputs: Any = _attend(plan, *args)
    out, total = outputs
    return (out, total), (*args, out, total)


def _attend_backward(plan, kept, cotangents):
    queries, keys, values, bias, query_ids, key_ids, out, total = kept
    d_out = cotangents[0]
    inner = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)

    def one_query_block(carry, i):
        query, ids = _part(queries, i, plan.query_block), _part(query_ids, i, plan.query_block, 1)
        d_read = _part(d_out, i, plan.query_block)
        log_total = _part(total, i, plan.query_block)[..., None]
        mean = _part(inner, i, plan.query_block)[..., None]

        def one_key_block(j, carry):
            d_query, d_keys, d_values, d_bias = carry
            key, value = _part(keys, j, plan.key_block), _part(values, j, plan.key_block)
            score = _scores(plan, i, j, query, keys, bias, ids, key_ids)
            share = jnp.exp(score - log_total)
            d_value = _wide("bnts,bnth->bnsh", share.astype(values.dtype), d_read)
            d_score = share * (_wide("bnth,bnsh->bnts", d_read, value) - mean)
            narrow = d_score.astype(queries.dtype)
            d_query = d_query + _wide("bnts,bnsh->bnth", narrow, key)
            d_key = _wide("bnts,bnth->bnsh", narrow, query)
            d_keys = _add(d_keys, d_key, j * plan.key_block)
            d_values = _add(d_values, d_value, j * plan.key_block)
            if d_bias is not None:
                # A sharded batch is summed once, after the loops.
                diagonals = sum_diagonals(d_score if plan.divided else linear.sum_examples(d_score))
                d_bias = _add(d_bias, diagonals, plan.first_offset(i, j))
            return d_query, d_keys, d_values, d_bias

        start = (jnp.zeros(query.shape, jnp.float32), *carry)
        d_query, *carry = jax.lax.fori_loop(0, plan.key_blocks(i), one_key_block, start)
        return tuple(carry), d_query.astype(queries.dtype)

    d_bias = None
    if bias is not None:
        d_bias = jnp.zeros((len(queries) if plan.divided else 1, *bias.shape), jnp.float32)
    start = (jnp.zeros(keys.shape, jnp.float32), jnp.zeros(values.shape, jnp.float32), d_bias)
    (d_keys, d_values, d_bias), d_queries = jax.lax.scan(
        one_query_block, start, jnp.arange(plan.num_query_blocks)
    )
    d_bias = None if d_bias is None else jnp.sum(d_bias, axis=0)
    d_keys, d_values = d_keys.astype(keys.dtype), d_values.astype(values.dtype)
    return _joined(d_queries), d_keys, d_values, d_bias, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _scores(plan, i, j, query, keys, bias, query_ids, key_ids) -> Float[Array, "B N t s"]:
    score = _wide("bnth,bnsh->bnts", query, _part(keys, j, plan.key_block))
    if bias is not None:
        width = plan.query_block + plan.key_block
        row = jax.lax.dynamic_slice_in_dim(bias, plan.first_offset(i, j), width, axis=1)
        score = score + bias_by_distance(row, plan.query_block)[None]
    visible = query_ids[:, :, None] == _part(key_ids, j, plan.key_block, 1)[:, None, :]
    if plan.causal:
        later = jnp.arange(plan.key_block)[None, :] - jnp.arange(plan.query_block)[:, None]
        visible &= (later <= i * plan.query_block - j * plan.key_block)[None]
    return jnp.where(visible[:, None], score, -jnp.inf)


def bias_by_distance(row: Float[Array, "*A width"], num_queries: int) -> Float[Array, "*A t s"]:
    """Expand a row of t + s distances into a [t, s] block of bias; the last distance is unused."""
    width = row.shape[-1]
    # Reading the repeated row with a width of one less shifts each row by one more.
    tiled = jnp.broadcast_to(row[..., None, :], (*row.shape[:-1], num_queries, width))
    flat = tiled.reshape(*row.shape[:-1], num_queries * width)
    skewed = flat[..., : num_queries * (width - 1)]
    skewed = skewed.reshape(*row.shape[:-1], num_queries, width - 1)
    return skewed[..., num_queries - 1 :]


def sum_diagonals(block: Float[Array, "*A t s"]) -> Float[Array, "*A width"]:
    """Sum each diagonal of a block, in the order of `bias_by_distance`."""
    *outer, num_queries, num_keys = block.shape
    width = num_queries + num_keys
    none = [(0, 0)] * len(outer)
    padded = jnp.pad(block, (*none, (0, 0), (num_queries - 1, 0)))
    flat = padded.reshape(*outer, num_queries * (width - 1))
    flat = jnp.pad(flat, (*none, (0, num_queries)))
    return jnp.sum(flat.reshape(*outer, num_queries, width), axis=-2)


def _part(x: Array, index: Int[Array, ""], size: int, axis: int = 2) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis=axis)


def _add(total: Array, part: Array, start: int | Array) -> Array:
    size = part.shape[2]
    before = jax.lax.dynamic_slice_in_dim(total, start, size, axis=2)
    return jax.lax.dynamic_update_slice_in_dim(total, before + part, start, axis=2)


def _joined(blocks: Array) -> Array:
    """Merge the axis of query blocks, the first, into that of queries."""
    count, batch, heads, size, *rest = blocks.shape
    return jnp.moveaxis(blocks, 0, 2).reshape(batch, heads, count * size, *rest)


def _wide(subscripts: str, x: Array, y: Array) -> Float[Array, "..."]:
    return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)
