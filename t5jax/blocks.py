"""One layer of each stack, made of the parts in `layers`.

Shape letters: B batch, T query length, S key length, D d_model, N heads, H d_kv; C cache length,
I inputs and Q queries of each where several rows read one input.
"""

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from t5jax.config import T5Config
from t5jax.layers import Attention, FeedForward, RelativeBias, RMSNorm, dropout
from t5jax.ops import Segments


class EncoderBlock(nnx.Module):
    """Self-attention over the whole input, then feed-forward; norms first, residuals around."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = RMSNorm(config)
        self.mlp = FeedForward(config, rngs=rngs)
        self.relative_bias = (
            RelativeBias(config, bidirectional=True, rngs=rngs)
            if config.relative_bias_per_layer
            else None
        )
        self.dropout_rate = config.dropout_rate

    def __call__(
        self,
        x: Float[Array, "B S D"],
        *,
        mask: Bool[Array, "B 1 #S S"] | Segments,
        bias: Float[Array, "1 N S S"] | Float[Array, "N offsets"],
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B S D"]:
        keys = split_key(dropout_key, 4)
        h = self.attention_norm(x)
        heads = self.attention.queries_keys_values(h)
        h = self.attention.attend(*heads, mask=mask, bias=bias, dropout_key=keys[0])
        x = x + dropout(h, rate=self.dropout_rate, key=keys[1], shared_axis=-2)
        h = self.mlp(self.mlp_norm(x), dropout_key=keys[2])
        return x + dropout(h, rate=self.dropout_rate, key=keys[3], shared_axis=-2)


class DecoderBlock(nnx.Module):
    """Self-attention over what is written, cross-attention over the input, feed-forward."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.self_attention_norm = RMSNorm(config)
        self.self_attention = Attention(config, rngs=rngs)
        self.cross_attention_norm = RMSNorm(config)
        self.cross_attention = Attention(config, rngs=rngs)
        self.mlp_norm = RMSNorm(config)
        self.mlp = FeedForward(config, rngs=rngs)
        self.relative_bias = (
            RelativeBias(config, bidirectional=False, rngs=rngs)
            if config.relative_bias_per_layer
            else None
        )
        self.dropout_rate = config.dropout_rate

    def self_heads(
        self, x: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B N T H"], Float[Array, "B N T H"], Float[Array, "B N T H"]]:
        """Queries, keys and values of self-attention; a decoding loop keeps the last two."""
        return self.self_attention.queries_keys_values(self.self_attention_norm(x))

    def read_itself(
        self,
        x: Float[Array, "B T D"],
        self_heads: tuple[
            Float[Array, "B N T H"], Float[Array, "B N C H"], Float[Array, "B N C H"]
        ],
        *,
        mask: Bool[Array, "#B 1 #T C"] | Segments,
        bias: Float[Array, "1 N T C"] | Float[Array, "N offsets"],
        dropout_key: Key[Array, ""] | None = None,
        residual_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        """The first third of the block: `x` and what self-attention adds to it."""
        h = self.self_attention.attend(*self_heads, mask=mask, bias=bias, dropout_key=dropout_key)
        return x + dropout(h, rate=self.dropout_rate, key=residual_key, shared_axis=-2)

    def cross_queries(self, x: Float[Array, "B T D"], num_inputs: int) -> Float[Array, "I N Q H"]:
        """Queries of cross-attention, those of all rows that read one input next to one another."""
        h = self.cross_attention_norm(x)
        return self.cross_attention.queries(h.reshape(num_inputs, -1, h.shape[-1]))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        self_heads: tuple[
            Float[Array, "B N T H"], Float[Array, "B N C H"], Float[Array, "B N C H"]
        ],
        cross_keys_values: tuple[Float[Array, "I N S H"], Float[Array, "I N S H"]],
        *,
        mask: Bool[Array, "#B 1 #T C"] | Segments,
        cross_mask: Bool[Array, "I 1 #Q S"] | Segments,
        bias: Float[Array, "1 N T C"] | Float[Array, "N offsets"],
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        """One block.

        Heads are `self_heads(x)` in training; in decoding, keys and values come from a cache.  Rows
        of `x` may be several for each of I inputs, next to one another, which they all read.
        """
        keys = split_key(dropout_key, 6)
        x = self.read_itself(
            x, self_heads, mask=mask, bias=bias, dropout_key=keys[0], residual_key=keys[1]
        )
        queries = self.cross_queries(x, len(cross_keys_values[0]))
        h = self.cross_attention.attend(
            queries, *cross_keys_values, mask=cross_mask, dropout_key=keys[2]
        )
        h = h.reshape(x.shape)
        x = x + dropout(h, rate=self.dropout_rate, key=keys[3], shared_axis=-2)
        h = self.mlp(self.mlp_norm(x), dropout_key=keys[4])
        return x + dropout(h, rate=self.dropout_rate, key=keys[5], shared_axis=-2)


def split_key(key: Key[Array, ""] | None, count: int):
    """`count` keys, or as many times None if dropout is off."""
    return [None] * count if key is None else jax.random.split(key, count)
