"""The parts of a T5.

Shape letters: B batch, T query length, S key length, D d_model, N heads, H d_kv, J = N * H,
F d_ff, V vocabulary, R relative buckets.

Parameters are float32; each is cast to the type of the activations it meets.  Norm statistics,
attention scores and softmax are float32 whatever the activations are.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from t5jax.models.config import T5Config
from t5jax.ops import (
    AttentionKind,
    Segments,
    add_shared,
    attention,
    einsum,
    einsum_f32,
    matmul,
    softmax,
)

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
    """Which row of a bias table serves a key that lies `offset` positions after its query.

    Half of a direction's buckets stand for one distance each, the others for ranges that grow
    logarithmically up to `max_distance`; all greater distances share the last.
    (arXiv:1910.10683, section 2.1)

    Args:
      offset: key position minus query position.
      bidirectional: whether later keys have buckets of their own (encoder) or are never attended
        to and share bucket 0 (decoder).
      num_buckets: rows of the table, R.
      max_distance: distance from which the last bucket serves.
    Returns:
      int32 in [0, num_buckets), of the shape of `offset`.
    """
    # Computed by numpy in float32: accelerators' logarithms differ in the last bit, which moves
    # the exact powers of two (16, 32, 64) into their neighbour's bucket.
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
    """Zeroes elements with probability `rate` and scales up the others; no key means evaluation.

    `shared_axis` names the axis along which all elements share one decision.  T5 drops the same
    features at every position of a sequence.
    """
    if key is None or rate == 0:
        return x
    shape = list(x.shape)
    if shared_axis is not None:
        shape[shared_axis] = 1
    keep = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros((), x.dtype))


def project(x: Float[Array, "*A I"], kernel: nnx.Param) -> Float[Array, "*A O"]:
    """Multiplies every position by a kernel [I, O], in the type of `x`."""
    return matmul(x, kernel.get_value())


class Embedder(nnx.Module):
    """Token ids to vectors."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.d_model)
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), shape))

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        # An id outside the table becomes NaN rather than somebody else's vector; `take` would
        # count negative ones from the end.
        table = self.embedding[...]
        tokens = jnp.where(tokens < 0, len(table), tokens)
        return jnp.take(table, tokens, axis=0, mode="fill")


class OutputLayer(nnx.Module):
    """Decoder states to logits, where the embedding table does not do it."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        shape = (config.d_model, config.vocab_size)
        self.kernel = nnx.Param(_fan_in_truncated(rngs.params(), shape))


class SentenceProjection(nnx.Module):
    """A sentence's mean encoder state to its embedding.  (arXiv:2108.08877, section 3)"""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        shape = (config.d_model, config.projection_dim)
        self.kernel = nnx.Param(_fan_in_truncated(rngs.params(), shape))

    def __call__(self, x: Float[Array, "*A D"]) -> Float[Array, "*A E"]:
        return project(x, self.kernel)


class RMSNorm(nnx.Module):
    """Divides by the root mean square over features, without centring, and scales.

    (arXiv:1910.07467; T5 has no bias)
    """

    def __init__(self, config: T5Config):
        self.scale = nnx.Param(jnp.ones((config.d_model,)))
        self.epsilon = config.norm_epsilon

    def __call__(self, x: Float[Array, "*A D"]) -> Float[Array, "*A D"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
        # Both rounded to the activations' type first, as T5X does; their product is exact in
        # float32, and so is the sum that is the scale's gradient.
        y, scale = (z.astype(x.dtype).astype(jnp.float32) for z in (y, self.scale[...]))
        return (y * jnp.broadcast_to(scale, x.shape)).astype(x.dtype)


class RelativeBias(nnx.Module):
    """What a head adds to a score because of how far apart query and key are."""

    def __init__(self, config: T5Config, *, bidirectional: bool, rngs: nnx.Rngs):
        shape = (config.relative_buckets, config.num_heads)
        self.embedding = nnx.Param(_fan_avg_uniform(rngs.params(), shape))
        self.bidirectional = bidirectional
        self.max_distance = config.relative_max_distance

    def by_offset(self, length: int) -> Float[Array, "N offsets"]:
        """Bias of every offset from `1 - length` to `length - 1`, in that order."""
        buckets = relative_position_bucket(
            np.arange(1 - length, length),
            bidirectional=self.bidirectional,
            num_buckets=self.embedding.shape[0],
            max_distance=self.max_distance,
        )
        return self.embedding[...][buckets].T.astype(jnp.float32)

    def __call__(self, length: int) -> Float[Array, "1 N length length"]:
        """Bias of every query (third axis) and key (fourth) of a sequence."""
        offsets = np.arange(length)[None, :] - np.arange(length)[:, None]
        return self.by_offset(length)[:, offsets + length - 1][None]

    def under(
        self, mask: Bool[Array, "#B 1 #length length"] | Segments, length: int
    ) -> Float[Array, "1 N length length"] | Float[Array, "N offsets"]:
        """The bias as attention takes it with this mask: of every offset if it is `Segments`."""
        return self.by_offset(length) if isinstance(mask, Segments) else self(length)


class Attention(nnx.Module):
    """Multi-head attention with additive bias and without division by sqrt(H).

    T5 folds that division into the initial queries.  Called as
    `attention(x, *attention.keys_values(states), mask=mask)`, so that a decoder can keep keys and
    values.
    """

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        d_model, joined = config.d_model, config.num_heads * config.d_kv
        self.query = nnx.Param(_fan_in_normal(rngs.params(), (d_model, joined)) * config.d_kv**-0.5)
        self.key = nnx.Param(_fan_in_normal(rngs.params(), (d_model, joined)))
        self.value = nnx.Param(_fan_in_normal(rngs.params(), (d_model, joined)))
        self.out = nnx.Param(_fan_in_normal(rngs.params(), (joined, d_model)))
        # Query, key and value as one kernel; a decoding loop makes it of the three.
        self.joined: nnx.Param | None = nnx.data(None)
        self.num_heads = config.num_heads
        self.dropout_rate = config.dropout_rate
        self.kind: AttentionKind = config.attention

    def _heads(self, y: Float[Array, "B T J"]) -> Float[Array, "B N T H"]:
        return y.reshape(*y.shape[:2], self.num_heads, -1).swapaxes(1, 2)

    def queries(self, x: Float[Array, "B T D"]) -> Float[Array, "B N T H"]:
        """What the positions of `x` ask for."""
        return self._heads(project(x, self.query))

    def keys_values(
        self, states: Float[Array, "B S D"]
    ) -> tuple[Float[Array, "B N S H"], Float[Array, "B N S H"]]:
        """What queries attend to, and what they then read."""
        return self._heads(project(states, self.key)), self._heads(project(states, self.value))

    def queries_keys_values(
        self, x: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B N T H"], Float[Array, "B N T H"], Float[Array, "B N T H"]]:
        """All three of one sequence that attends to itself."""
        if self.joined is None:
            return self.queries(x), *self.keys_values(x)
        queries, keys, values = jnp.split(project(x, self.joined), 3, axis=-1)
        return self._heads(queries), self._heads(keys), self._heads(values)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        keys: Float[Array, "B N S H"],
        values: Float[Array, "B N S H"],
        *,
        mask: Bool[Array, "#B 1 #T S"] | Segments,
        bias: Float[Array, "1 N T S"] | Float[Array, "N offsets"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        """Reads from `values` for every position of `x`; other arguments as of `attend`."""
        return self.attend(
            self.queries(x), keys, values, mask=mask, bias=bias, dropout_key=dropout_key
        )

    def weights(
        self,
        queries: Float[Array, "B N T H"],
        keys: Float[Array, "B N S H"],
        *,
        mask: Bool[Array, "#B 1 #T S"],
        bias: Float[Array, "1 N T S"] | None,
        dtype: Any = jnp.float32,
    ) -> Float[Array, "B N T S"]:
        """How much every query attends to every key; computed in float32, rounded to `dtype`."""
        scores = einsum_f32("bnth,bnsh->bnts", queries, keys)
        if bias is not None:
            scores = add_shared(scores, bias)
        # The least finite value, since a row of -inf has no softmax.
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
        return softmax(scores, dtype)

    def attend(
        self,
        queries: Float[Array, "B N T H"],
        keys: Float[Array, "B N S H"],
        values: Float[Array, "B N S H"],
        *,
        mask: Bool[Array, "#B 1 #T S"] | Segments,
        bias: Float[Array, "1 N T S"] | Float[Array, "N offsets"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        """Reads from `values` for every query.

        Args:
          queries: of the sequence that reads.
          keys: of the sequence attended to.
          values: of the same.
          mask: True where a query may look, or segments, with which attention is computed in
            blocks.  A query that may look nowhere gets the mean value.
          bias: added to the scores, of every pair or, with segments, of every offset from 1 - T to
            S - 1; float32.
          dropout_key: for the attention weights; None when not training.
        """
        values = self._drop_values(values, dropout_key)
        if isinstance(mask, Segments):
            read = attention.attend(queries, keys, values, segments=mask, bias=bias, kind=self.kind)
        else:
            weights = self.weights(queries, keys, mask=mask, bias=bias, dtype=values.dtype)
            read = einsum("bnts,bnsh->bnth", weights, values)
        read = read.swapaxes(1, 2)
        return project(read.reshape(*read.shape[:2], -1), self.out)

    def _drop_values(
        self, values: Float[Array, "B N S H"], key: Key[Array, ""] | None
    ) -> Float[Array, "B N S H"]:
        """Values such that reading them is reading with weights that were dropped.

        All queries drop the same keys, so that a value can be dropped in a weight's stead: one
        factor for a key, not one for every pair.
        """
        if key is None or self.dropout_rate == 0:
            return values
        ones = jnp.ones((*values.shape[:2], 1, values.shape[2]), values.dtype)
        return values * dropout(ones, rate=self.dropout_rate, key=key).swapaxes(2, 3)


class FeedForward(nnx.Module):
    """Two projections with a non-linearity between them, gated or not.  (arXiv:2002.05202)"""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        shape = (config.d_model, config.d_ff)
        self.wi = nnx.Param(_fan_in_truncated(rngs.params(), shape))
        self.wi_linear = (
            nnx.Param(_fan_in_truncated(rngs.params(), shape)) if config.gated_ff else None
        )
        self.wo = nnx.Param(_fan_in_truncated(rngs.params(), shape[::-1]))
        self.activation = config.activation
        self.dropout_rate = config.dropout_rate

    def __call__(
        self, x: Float[Array, "B T D"], *, dropout_key: Key[Array, ""] | None = None
    ) -> Float[Array, "B T D"]:
        hidden = project(x, self.wi)
        hidden = _ACTIVATIONS[self.activation](hidden)
        if self.wi_linear is not None:
            hidden = hidden * project(x, self.wi_linear)
        hidden = dropout(hidden, rate=self.dropout_rate, key=dropout_key, shared_axis=-2)
        return project(hidden, self.wo)
