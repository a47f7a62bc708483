"""Layers of T5: embedding, norm, relative position bias, attention and feed-forward.

Shape letters: B batch, T query length, S key length, C cache length, D d_model, N heads, H d_kv,
J = N * H, F d_ff, V vocabulary, R relative buckets.

Parameters are float32 and are cast to the dtype of the activations.  Norm statistics, attention
scores and softmax are always float32.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from t5jax.models.config import ComputePolicy, T5Config
from t5jax.ops import (
    AttentionKind,
    Segments,
    add_bias,
    attention,
    concatenate_kernels,
    einsum,
    einsum_f32,
    matmul,
    softmax,
)
from t5jax.parallel import Sharder

_NO_MESH = Sharder()
# T5X draws attention kernels from a normal and feed-forward kernels from a truncated normal.
_fan_in_normal = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
_fan_in_truncated = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_fan_avg_uniform = nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform")
_ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_erf": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
}


def relative_position_bucket(
    offset: Int[np.ndarray, "..."], *, bidirectional: bool, num_buckets: int, max_distance: int
) -> Int[np.ndarray, "..."]:
    """Map relative positions to rows of the bias table.

    In each direction, half of the buckets hold one distance each, and the others ranges that grow
    logarithmically up to `max_distance`.  Greater distances share the last bucket.
    (arXiv:1910.10683, section 2.1)

    Args:
      offset: key position minus query position.
      bidirectional: whether later keys have separate buckets (encoder) or share bucket 0 because
        they are masked (decoder).
      num_buckets: number of rows of the table, R.
      max_distance: distance from which all positions share the last bucket.
    Returns:
      int32 in [0, num_buckets), same shape as `offset`.

    Examples:
      >>> offsets = np.array([-200, -64, -3, 0, 3])
      >>> t5jax.models.relative_position_bucket(
      ...     offsets, bidirectional=True, num_buckets=32, max_distance=128
      ... )
      array([15, 14,  3,  0, 19], dtype=int32)
    """
    # In float32 numpy: accelerators' logarithms differ in the last bit, which moves exact powers
    # of two (16, 32, 64) to a neighbouring bucket.
    offset = np.asarray(offset)
    first = np.zeros(offset.shape, np.int32)
    distance = np.maximum(-offset, 0)
    if bidirectional:
        num_buckets //= 2
        first = np.where(offset > 0, num_buckets, 0)
        distance = np.abs(offset)
    exact = num_buckets // 2
    ratio = np.maximum(distance, exact).astype(np.float32) / np.float32(exact)
    steps = np.log(ratio) / np.float32(np.log(max_distance / exact)) * (num_buckets - exact)
    logarithmic = np.minimum(exact + steps.astype(np.int32), num_buckets - 1)
    return (first + np.where(distance < exact, distance, logarithmic)).astype(np.int32)


def dropout(
    x: Float[Array, "*A"],
    *,
    rate: float,
    key: Key[Array, ""] | None,
    shared_axis: int | None = None,
) -> Float[Array, "*A"]:
    """Zero elements with probability `rate` and divide the others by 1 - rate.

    Args:
      x: activations.
      rate: dropout probability.
      key: random key; None disables dropout.
      shared_axis: axis along which elements are dropped together.  T5 drops the same features at
        every position of a sequence.
    """
    if key is None or rate == 0:
        return x
    shape = list(x.shape)
    if shared_axis is not None:
        shape[shared_axis] = 1
    keep = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros((), x.dtype))


class Embedder(nnx.Module):
    """Token embedding."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.d_model)
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), shape))

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        # Ids outside the table become NaN instead of another id's vector; `take` would count
        # negative ids from the end.
        table = self.embedding[...]
        tokens = jnp.where(tokens < 0, len(table), tokens)
        return jnp.take(table, tokens, axis=0, mode="fill")


class OutputLayer(nnx.Module):
    """Untied output projection (lm_head)."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        shape = (config.d_model, config.vocab_size)
        self.kernel = nnx.Param(_fan_in_truncated(rngs.params(), shape))


class SentenceProjection(nnx.Module):
    """Projection of the mean encoder state of a sentence (arXiv:2108.08877, section 3)."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        shape = (config.d_model, config.projection_dim)
        self.kernel = nnx.Param(_fan_in_truncated(rngs.params(), shape))

    def __call__(self, x: Float[Array, "*A D"]) -> Float[Array, "*A E"]:
        return matmul(x, self.kernel.get_value())


class RMSNorm(nnx.Module):
    """RMS normalization over features, without centering or bias (arXiv:1910.07467)."""

    def __init__(self, config: T5Config):
        self.scale = nnx.Param(jnp.ones((config.d_model,)))
        self.epsilon = config.norm_epsilon

    def __call__(self, x: Float[Array, "*A D"]) -> Float[Array, "*A D"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
        # Both are rounded to the activations' dtype first, as in T5X.  Their product is exact in
        # float32, and the gradient of the scale is summed in float32.
        y, scale = (z.astype(x.dtype).astype(jnp.float32) for z in (y, self.scale[...]))
        return (y * jnp.broadcast_to(scale, x.shape)).astype(x.dtype)


class RelativeBias(nnx.Module):
    """T5 relative position bias (arXiv:1910.10683, section 2.1).

    Attention scores get a learned bias per head and bucket of query-key distances.
    """

    def __init__(self, config: T5Config, *, bidirectional: bool, rngs: nnx.Rngs):
        shape = (config.relative_buckets, config.num_heads)
        self.embedding = nnx.Param(_fan_avg_uniform(rngs.params(), shape))
        self.bidirectional = bidirectional
        self.max_distance = config.relative_max_distance

    def by_offset(self, length: int) -> Float[Array, "N offsets"]:
        """Return the bias of every offset from `1 - length` to `length - 1`, in that order."""
        buckets = relative_position_bucket(
            np.arange(1 - length, length),
            bidirectional=self.bidirectional,
            num_buckets=self.embedding.shape[0],
            max_distance=self.max_distance,
        )
        return self.embedding[...][buckets].T.astype(jnp.float32)

    def __call__(self, length: int) -> Float[Array, "1 N length length"]:
        """Return the bias of every query (third axis) and key (fourth axis) of a sequence."""
        offsets = np.arange(length)[None, :] - np.arange(length)[:, None]
        return self.by_offset(length)[:, offsets + length - 1][None]

    def for_mask(
        self, mask: Bool[Array, "#B 1 #length length"] | Segments, length: int
    ) -> Float[Array, "1 N length length"] | Float[Array, "N offsets"]:
        """Return the bias in the form that attention takes.

        Args:
          mask: as from `attention_mask`.
          length: number of queries and keys.
        Returns:
          The bias by offset if the mask is `Segments`, else for all pairs.
        """
        return self.by_offset(length) if isinstance(mask, Segments) else self(length)


class Attention(nnx.Module):
    """Multi-head attention with an additive bias and no division by sqrt(H).

    T5 folds that division into the initial query kernel.  The projections (`project_q`,
    `project_kv`, `project_qkv`) are separate from `attend`, so that keys and values can be cached.
    """

    def __init__(
        self,
        config: T5Config,
        policy: ComputePolicy,
        sharder: Sharder,
        *,
        rngs: nnx.Rngs,
    ):
        d_model, inner = config.d_model, config.num_heads * config.d_kv
        self.query = nnx.Param(_fan_in_normal(rngs.params(), (d_model, inner)) * config.d_kv**-0.5)
        self.key = nnx.Param(_fan_in_normal(rngs.params(), (d_model, inner)))
        self.value = nnx.Param(_fan_in_normal(rngs.params(), (d_model, inner)))
        self.out = nnx.Param(_fan_in_normal(rngs.params(), (inner, d_model)))
        # [D, 3 J]; `fuse_qkv` replaces the three kernels by it.
        self.qkv: nnx.Param | None = nnx.data(None)
        self.num_heads = config.num_heads
        self.dropout_rate = config.dropout_rate
        self.kind: AttentionKind = policy.attention
        self.sharder = sharder

    def fuse_qkv(self) -> None:
        """Concatenate the query, key and value kernels into one, for a single matmul."""
        kernels = (kernel.get_value() for kernel in (self.query, self.key, self.value))
        self.qkv = nnx.Param(concatenate_kernels(*kernels))
        self.query = self.key = self.value = None

    def project_q(self, x: Float[Array, "B T D"]) -> Float[Array, "B N T H"]:
        """Return the queries of every position of `x`."""
        return self._split_heads(self._project(x, self.query))

    def project_kv(
        self, x: Float[Array, "B S D"]
    ) -> tuple[Float[Array, "B N S H"], Float[Array, "B N S H"]]:
        """Return the keys and values of every position of `x`."""
        k, v = self._project(x, self.key), self._project(x, self.value)  # [B, S, J] each
        return self._split_heads(k), self._split_heads(v)

    def project_qkv(
        self, x: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B N T H"], Float[Array, "B N T H"], Float[Array, "B N T H"]]:
        """Return the queries, keys and values of self-attention."""
        if self.qkv is None:
            return self.project_q(x), *self.project_kv(x)
        q, k, v = jnp.split(self._project(x, self.qkv), 3, axis=-1)  # [B, T, J] each
        return self._split_heads(q), self._split_heads(k), self._split_heads(v)

    def weights(
        self,
        q: Float[Array, "B N T H"],
        k: Float[Array, "B N S H"],
        *,
        mask: Bool[Array, "#B 1 #T S"],
        bias: Float[Array, "#B N T S"] | None,
        dtype: DTypeLike = jnp.float32,
    ) -> Float[Array, "B N T S"]:
        """Return softmax(q . k + bias), computed in float32.

        Args:
          q: queries.
          k: keys.
          mask: True where a query may attend.
          bias: float32, added to the scores; None adds nothing.
          dtype: dtype of the result.
        """
        scores = einsum_f32("bnth,bnsh->bnts", q, k)
        if bias is not None:
            scores = add_bias(scores, bias)
        # Not -inf: the softmax of a row of -inf is NaN.
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
        return softmax(scores, dtype)

    def attend(
        self,
        q: Float[Array, "B N T H"],
        k: Float[Array, "B N S H"],
        v: Float[Array, "B N S H"],
        *,
        mask: Bool[Array, "#B 1 #T S"] | Segments,
        bias: Float[Array, "#B N T S"] | Float[Array, "N offsets"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        """Return the attention output, projected to D.

        Args:
          q: queries.
          k: keys.
          v: values.
          mask: True where a query may attend, or segments for attention in blocks.  A fully masked
            query gets the mean value.
          bias: float32, added to the score of every query-key pair or, with segments, of every
            offset from 1 - T to S - 1.
          dropout_key: random key for attention dropout; None disables it.
        """
        v = self._drop_values(v, dropout_key)
        if isinstance(mask, Segments):
            y = attention.attend(
                q, k, v, segments=mask, bias=bias, kind=self.kind, sharder=self.sharder
            )
        else:
            weights = self.weights(q, k, mask=mask, bias=bias, dtype=v.dtype)  # [B, N, T, S]
            y = einsum("bnts,bnsh->bnth", weights, v)
        y = y.swapaxes(1, 2)  # [B, T, N, H]
        return self._project(y.reshape(*y.shape[:2], -1), self.out)

    def _project(self, x: Float[Array, "*A I"], kernel: Any) -> Float[Array, "*A O"]:
        return matmul(x, kernel.get_value(), self.sharder)

    def _split_heads(self, y: Float[Array, "B T J"]) -> Float[Array, "B N T H"]:
        return y.reshape(*y.shape[:2], self.num_heads, -1).swapaxes(1, 2)

    def _drop_values(
        self, v: Float[Array, "B N S H"], key: Key[Array, ""] | None
    ) -> Float[Array, "B N S H"]:
        """Drop values, which is equivalent to dropping attention weights.

        All queries drop the same keys, so one factor per key replaces one per query-key pair.
        """
        if key is None or self.dropout_rate == 0:
            return v
        ones = jnp.ones((*v.shape[:2], 1, v.shape[2]), v.dtype)
        return v * dropout(ones, rate=self.dropout_rate, key=key).swapaxes(2, 3)


class KVCache(NamedTuple):
    """Keys and values of one layer's self-attention, with room for C positions.

    The axis B is omitted for a single row: it would keep XLA from updating the cache in place.

    Attributes:
      keys: keys of earlier tokens.
      values: values of earlier tokens.
      position: position of the next token, < C; shared by all rows or one per row.
    """

    keys: Float[Array, "*B N C H"]
    values: Float[Array, "*B N C H"]
    position: Int[Array, ""] | Int[Array, " B"]

    def write(self, k: Float[Array, "B N 1 H"], v: Float[Array, "B N 1 H"]) -> "KVCache":
        """Return the cache with the keys and values of one more token per row.

        Args:
          k: keys of the tokens.
          v: values of the tokens.
        """
        return self._replace(keys=self._put(self.keys, k), values=self._put(self.values, v))

    def read(self, num_rows: int) -> tuple[Float[Array, "B N C H"], Float[Array, "B N C H"]]:
        """Return the keys and values of all positions, always with the axis B."""
        shape = (num_rows, *self.keys.shape[-3:])
        return self.keys.reshape(shape), self.values.reshape(shape)

    def _put(self, cache: Array, new: Array) -> Array:
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=-2)
        new = new.reshape(*cache.shape[:-2], 1, cache.shape[-1])
        if self.position.ndim and cache.ndim > 3:
            return jax.vmap(put)(cache, new, self.position)
        return put(cache, new, self.position.reshape(()))


class FeedForward(nnx.Module):
    """Feed-forward layer with one hidden layer, optionally gated (arXiv:2002.05202)."""

    def __init__(self, config: T5Config, sharder: Sharder = _NO_MESH, *, rngs: nnx.Rngs):
        shape = (config.d_model, config.d_ff)
        self.wi = nnx.Param(_fan_in_truncated(rngs.params(), shape))
        self.wi_linear = (
            nnx.Param(_fan_in_truncated(rngs.params(), shape)) if config.gated_ff else None
        )
        self.wo = nnx.Param(_fan_in_truncated(rngs.params(), shape[::-1]))
        self.activation = config.activation
        self.dropout_rate = config.dropout_rate
        self.sharder = sharder

    def __call__(
        self, x: Float[Array, "B T D"], *, dropout_key: Key[Array, ""] | None = None
    ) -> Float[Array, "B T D"]:
        h = _ACTIVATIONS[self.activation](self._project(x, self.wi))  # [B, T, F]
        if self.wi_linear is not None:
            h = h * self._project(x, self.wi_linear)
        h = dropout(h, rate=self.dropout_rate, key=dropout_key, shared_axis=-2)
        return self._project(h, self.wo)  # [B, T, D]

    def _project(self, x: Float[Array, "*A I"], kernel: Any) -> Float[Array, "*A O"]:
        return matmul(x, kernel.get_value(), self.sharder)
