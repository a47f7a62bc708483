"""One layer of each stack, made of the parts in `layers`.

Shape letters: B batch, T query length, S key length, D d_model, N heads, H d_kv; C cache length,
I inputs and Q queries of each where several rows read one input.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from t5jax.models.config import T5Config
from t5jax.models.layers import Attention, FeedForward, RelativeBias, RMSNorm, dropout
from t5jax.ops import Segments, on_cpu
from t5jax.parallel import constrain_activations


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


# A CPU copies what a loop keeps for its backward pass, and runs the loop's body on fewer threads:
# stacks of up to so many layers are written out there, which takes a third of the time.
_MAX_UNROLLED_LAYERS = 12


class Encoder(nnx.Module):
    """A stack of encoder blocks."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.config = config
        self.layers = _stack(
            lambda rngs: EncoderBlock(config, rngs=rngs), config.num_encoder_layers, rngs
        )
        self.relative_bias = (
            None
            if config.relative_bias_per_layer
            else RelativeBias(config, bidirectional=True, rngs=rngs)
        )
        self.final_norm = RMSNorm(config)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        *,
        mask: Bool[Array, "B 1 #S S"] | Segments,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B S D"]:
        length = x.shape[1]
        shared_bias = None if self.relative_bias is None else self.relative_bias.under(mask, length)

        def block(x, layer, key):
            bias = (
                shared_bias if shared_bias is not None else layer.relative_bias.under(mask, length)
            )
            return layer(x, mask=mask, bias=bias, dropout_key=key)

        keys = split_key(dropout_key, 3)
        rate = self.config.dropout_rate
        x = dropout(x, rate=rate, key=keys[0], shared_axis=-2)
        x = _scan(self.config, block, x, self.layers, keys[1])
        # The one place where T5X drops positions independently.
        return dropout(self.final_norm(x), rate=rate, key=keys[2])


class Decoder(nnx.Module):
    """A stack of decoder blocks."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.config = config
        self.layers = _stack(
            lambda rngs: DecoderBlock(config, rngs=rngs), config.num_decoder_layers, rngs
        )
        self.relative_bias = (
            None
            if config.relative_bias_per_layer
            else RelativeBias(config, bidirectional=False, rngs=rngs)
        )
        self.final_norm = RMSNorm(config)

    def __call__(
        self,
        x: Float[Array, "R T D"],
        states: Float[Array, "B S D"],
        *,
        mask: Bool[Array, "#R 1 T T"] | Segments,
        cross_mask: Bool[Array, "B 1 #T S"] | Segments,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "R T D"]:
        length = x.shape[1]
        shared_bias = None if self.relative_bias is None else self.relative_bias.under(mask, length)

        def block(x, layer, key):
            return layer(
                x,
                layer.self_heads(x),
                layer.cross_attention.keys_values(states),
                mask=mask,
                cross_mask=cross_mask,
                bias=shared_bias
                if shared_bias is not None
                else layer.relative_bias.under(mask, length),
                dropout_key=key,
            )

        keys = split_key(dropout_key, 3)
        rate = self.config.dropout_rate
        x = dropout(x, rate=rate, key=keys[0], shared_axis=-2)
        x = _scan(self.config, block, x, self.layers, keys[1])
        return dropout(self.final_norm(x), rate=rate, key=keys[2], shared_axis=-2)

    def cross_weights(
        self,
        x: Float[Array, "B T D"],
        states: Float[Array, "B S D"],
        *,
        mask: Bool[Array, "#B 1 T T"],
        cross_mask: Bool[Array, "B 1 #T S"],
    ) -> Float[Array, "L B N T S"]:
        """How much every target position reads from every input position, in every layer."""
        length = x.shape[1]
        shared_bias = None if self.relative_bias is None else self.relative_bias(length)

        def body(x, layer):
            bias = shared_bias if shared_bias is not None else layer.relative_bias(length)
            heads = layer.self_heads(x)
            keys_values = layer.cross_attention.keys_values(states)
            queries = layer.cross_queries(
                layer.read_itself(x, heads, mask=mask, bias=bias), len(states)
            )
            weights = layer.cross_attention.weights(
                queries, keys_values[0], mask=cross_mask, bias=None
            )
            x = layer(x, heads, keys_values, mask=mask, cross_mask=cross_mask, bias=bias)
            return x, weights

        return jax.lax.scan(body, x, self.layers)[1]


def _stack(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> Any:
    keys = jax.random.split(rngs.params(), count)
    return jax.vmap(lambda key: make(nnx.Rngs(params=key)))(keys)


def _scan(config: T5Config, block: Callable, x: Array, layers: Any, key: Key[Array, ""] | None):
    """Runs `block(x, layer, key)` over the stacked layers; a loop compiles as fast for many."""

    def body(x, layer_and_key):
        # Without this, the partitioner of `fsdp` divides features instead of examples.
        return constrain_activations(block(x, *layer_and_key)), None

    count = jax.tree.leaves(layers)[0].shape[0]
    # Who saves memory has no use for speed; in a loop the compiler cannot undo it either.
    written_out = on_cpu() and count <= _MAX_UNROLLED_LAYERS and config.remat == "none"
    # Inside a loop nothing is merged across iterations, so no barriers are needed.
    if config.remat == "full":
        body = jax.checkpoint(body, prevent_cse=False)
    elif config.remat == "dots":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    keys = None if key is None else jax.random.split(key, count)
    x, _ = jax.lax.scan(body, x, (layers, keys), unroll=count if written_out else 1)
    return x
