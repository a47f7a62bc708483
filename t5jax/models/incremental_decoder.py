"""The decoder, laid out to write one token at a time.

Shape letters: B rows of a decoding loop, I inputs, S input length, C cache length, D d_model,
N heads, H d_kv, V vocabulary.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from t5jax.models.config import T5Config
from t5jax.models.layers import Embedder, RelativeBias, RMSNorm
from t5jax.models.transformer import Decoder, DecoderBlock
from t5jax.ops import Kernel, concatenate_kernels, is_kernel, matmul_f32


class DecoderCache(NamedTuple):
    """What a decoding loop carries from token to token; one entry a layer in each list."""

    position: Int[Array, ""]
    keys: list[Float[Array, "*B N C H"]]
    values: list[Float[Array, "*B N C H"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IncrementalDecoder:
    """Weights of a decoder, one block after the other: made once, used for every request.

    Attributes:
      config: of the model.
      blocks: the layers, in the type that is computed in; query, key and value are one kernel.
      biases: for each layer, its table or the shared one.
      final_norm: behind the last block.
      embedder: tokens to vectors.
      output: [D, V], states to logits.
    """

    config: T5Config = dataclasses.field(metadata={"static": True})
    blocks: list[DecoderBlock]
    biases: list[RelativeBias]
    final_norm: RMSNorm
    embedder: Embedder
    output: Kernel

    @classmethod
    def of(
        cls, config: T5Config, decoder: Decoder, embedder: Embedder, output: Kernel
    ) -> "IncrementalDecoder":
        """Slices stacked layers; arrays that need no change are shared with the model."""
        blocks = [_block(decoder.layers, i, config.dtype) for i in range(config.num_decoder_layers)]
        biases = [
            decoder.relative_bias or _layer(decoder.layers.relative_bias, i)
            for i in range(config.num_decoder_layers)
        ]
        return cls(config, blocks, biases, decoder.final_norm, embedder, output)

    def start(
        self,
        states: Float[Array, "I S D"],
        *,
        encoder_mask: Bool[Array, "I S"],
        max_len: int,
        num_beams: int,
    ) -> tuple["DecodeStep", DecoderCache]:
        """What a decoding loop needs; see `T5.decoding`."""
        cross = [block.cross_attention.keys_values(states) for block in self.blocks]
        biases = [bias.by_offset(max_len) for bias in self.biases]
        config = self.config
        # An axis of a single row would keep XLA from updating the cache in place.
        rows = (len(states) * num_beams,) if len(states) * num_beams > 1 else ()
        shape = (*rows, config.num_heads, max_len, config.d_kv)
        empty = [jnp.zeros(shape, states.dtype) for _ in self.blocks]
        step = DecodeStep(self, cross, encoder_mask[:, None, None, :], biases)
        return step, DecoderCache(jnp.zeros((), jnp.int32), empty, list(empty))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeStep:
    """`step(tokens, cache) -> (logits, cache)` for inputs that have been read.

    Attributes:
      stepper: the weights.
      cross: keys and values of the inputs, for each layer.
      cross_mask: which of them are not padding.
      biases: for each layer, the bias of every offset between two positions of the cache.
    """

    stepper: IncrementalDecoder
    cross: list[tuple[Float[Array, "I N S H"], Float[Array, "I N S H"]]]
    cross_mask: Bool[Array, "I 1 1 S"]
    biases: list[Float[Array, "N offsets"]]

    def __call__(
        self, tokens: Int[Array, " B"], cache: DecoderCache
    ) -> tuple[Float[Array, "B V"], DecoderCache]:
        """Logits behind one more token of every row."""
        stepper, position = self.stepper, cache.position
        max_len, head_dim = cache.keys[0].shape[-2:]
        shape = (len(tokens), -1, max_len, head_dim)
        mask = (jnp.arange(max_len) <= position)[None, None, None, :]
        x = stepper.embedder(tokens[:, None]).astype(stepper.config.dtype)
        keys, values = list(cache.keys), list(cache.values)
        for i, block in enumerate(stepper.blocks):
            query, key, value = block.self_heads(x)
            keys[i] = _put(keys[i], key, position)
            values[i] = _put(values[i], value, position)
            bias = jax.lax.dynamic_slice_in_dim(
                self.biases[i], max_len - 1 - position, max_len, axis=1
            )
            x = block(
                x,
                (query, keys[i].reshape(shape), values[i].reshape(shape)),
                self.cross[i],
                mask=mask,
                cross_mask=self.cross_mask,
                bias=bias[None, :, None, :],
            )
        x = stepper.final_norm(x)[:, 0]
        return project_logits(x, stepper.output, stepper.config), DecoderCache(
            position + 1, keys, values
        )


def project_logits(
    x: Float[Array, "*A D"], output: Kernel, config: T5Config
) -> Float[Array, "*A V"]:
    """Decoder states to logits: float32 even under bfloat16, for they are exponentiated."""
    return matmul_f32(x, output) * config.logit_scale


def _put(
    cache: Float[Array, "*B N C H"], new: Float[Array, "B N 1 H"], position: Int[Array, ""]
) -> Float[Array, "*B N C H"]:
    """Writes the heads of one position."""
    new = new.reshape(*cache.shape[:-2], 1, cache.shape[-1])
    return jax.lax.dynamic_update_slice_in_dim(cache, new, position, axis=-2)


def _layer(layers: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], layers)


def _block(layers: DecoderBlock, index: int, dtype: str) -> DecoderBlock:
    # Scales of int8 kernels stay float32.
    block = jax.tree.map(
        lambda leaf: leaf if is_kernel(leaf) else leaf.astype(dtype),
        _layer(layers, index),
        is_leaf=is_kernel,
    )
    attention = block.self_attention
    parts = (attention.query, attention.key, attention.value)
    attention.joined = nnx.Param(concatenate_kernels(*(part.get_value() for part in parts)))
    attention.query = attention.key = attention.value = None
    return block
