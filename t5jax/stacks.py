"""Stacks of blocks, encoder and decoder: one set of leaves for all layers, one scan over them.

Shape letters: B batch, S input length, T target length, D d_model.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from t5jax.blocks import DecoderBlock, EncoderBlock, split_key
from t5jax.config import T5Config
from t5jax.layers import RelativeBias, RMSNorm, dropout
from t5jax.ops import Segments, on_cpu
from t5jax.parallel import constrain_activations

# A CPU copies what a loop keeps for its backward pass, and runs the loop's body on fewer threads:
# stacks of up to so many layers are written out there, which takes a third of the time.
_WRITTEN_OUT = 12


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
    written_out = on_cpu() and count <= _WRITTEN_OUT and config.remat == "none"
    # Inside a loop nothing is merged across iterations, so no barriers are needed.
    if config.remat == "full":
        body = jax.checkpoint(body, prevent_cse=False)
    elif config.remat == "dots":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    keys = None if key is None else jax.random.split(key, count)
    x, _ = jax.lax.scan(body, x, (layers, keys), unroll=count if written_out else 1)
    return x
