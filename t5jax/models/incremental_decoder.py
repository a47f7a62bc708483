"""Incremental decoding: one token a step, with a cache of keys and values.

Shape letters: B rows of a decoding loop, I inputs, S input length, C cache length, D d_model,
N heads, H d_kv, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5jax.models.config import ComputePolicy, T5Config
from t5jax.models.layers import Embedder, KVCache, RelativeBias, RMSNorm
from t5jax.models.transformer import Decoder, DecoderBlock
from t5jax.ops import Kernel, matmul_f32
from t5jax.parallel import Sharder


class DecoderCache(NamedTuple):
    """State that a decoding loop carries from token to token; `KVCache` has the shapes' meaning.

    Attributes:
      position: Position of the next token: one for all rows or, from `_replace`, one for each.
      keys: Of every layer.
    """

    position: Int[Array, ""] | Int[Array, " B"]
    keys: list[Float[Array, "*B N C H"]]
    values: list[Float[Array, "*B N C H"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IncrementalDecoder:
    """Weights of a decoder, one block after the other, to be kept between requests.

    Attributes:
      config: of the model.
      policy: of the model.
      sharder: of the model.
      blocks: the layers, from `DecoderBlock.for_decoding`.
      biases: for each layer, its table or the shared one.
      final_norm: norm after the last block.
      embedder: tokens to vectors.
      output: [D, V], states to logits.
      logit_scale: factor of the logits.
    """

    config: T5Config = dataclasses.field(metadata={"static": True})
    policy: ComputePolicy = dataclasses.field(metadata={"static": True})
    sharder: Sharder = dataclasses.field(metadata={"static": True})
    blocks: list[DecoderBlock]
    biases: list[RelativeBias]
    final_norm: RMSNorm
    embedder: Embedder
    output: Kernel
    logit_scale: float = dataclasses.field(metadata={"static": True})

    @classmethod
    def from_decoder(
        cls,
        config: T5Config,
        policy: ComputePolicy,
        decoder: Decoder,
        *,
        embedder: Embedder,
        output: Kernel,
        logit_scale: float,
    ) -> "IncrementalDecoder":
        """Slice stacked layers; arrays that need no change are shared with the model."""
        layers = [decoder.layer(i) for i in range(config.num_decoder_layers)]
        blocks = [layer.for_decoding(policy.dtype) for layer in layers]
        biases = [decoder.relative_bias or layer.relative_bias for layer in layers]
        return cls(
            config=config,
            policy=policy,
            sharder=decoder.sharder,
            blocks=blocks,
            biases=biases,
            final_norm=decoder.final_norm,
            embedder=embedder,
            output=output,
            logit_scale=logit_scale,
        )

    def start(
        self,
        encoded: Float[Array, "I S D"],
        *,
        encoder_mask: Bool[Array, "I S"],
        max_len: int,
        num_beams: int = 1,
    ) -> tuple["DecodeStep", DecoderCache]:
        """Precompute cross-attention keys and values, and make an empty cache.

        Args:
          encoded: final encoder states.
          encoder_mask: True on input ids that are not padding.
          max_len: the largest number of tokens that the loop will feed, C.
          num_beams: rows of the loop for each input, next to one another.
        Returns:
          `step(tokens, cache) -> (logits, cache)` and the cache of its first call.
        """
        encoder_kv = [block.encoder_kv(encoded) for block in self.blocks]
        biases = [bias.by_offset(max_len) for bias in self.biases]
        config = self.config
        # An axis of a single row would keep XLA from updating the cache in place (jax 0.10.2,
        # benchmarks/decode.py at batch 1).
        rows = (len(encoded) * num_beams,) if len(encoded) * num_beams > 1 else ()
        shape = (*rows, config.num_heads, max_len, config.d_kv)
        empty = [jnp.zeros(shape, encoded.dtype) for _ in self.blocks]
        step = DecodeStep(self, encoder_kv, encoder_mask[:, None, None, :], biases)
        return step, DecoderCache(jnp.zeros((), jnp.int32), empty, list(empty))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeStep:
    """`step(tokens, cache) -> (logits, cache)` for inputs that have been encoded.

    Attributes:
      decoder: the weights.
      encoder_kv: cross-attention keys and values of the inputs, for each layer.
      cross_mask: True on inputs that are not padding.
      biases: for each layer, the bias of every offset between two positions of the cache.
    """

    decoder: IncrementalDecoder
    encoder_kv: list[tuple[Float[Array, "I N S H"], Float[Array, "I N S H"]]]
    cross_mask: Bool[Array, "I 1 1 S"]
    biases: list[Float[Array, "N offsets"]]

    def __call__(
        self, tokens: Int[Array, " B"], cache: DecoderCache
    ) -> tuple[Float[Array, "B V"], DecoderCache]:
        """Feed one more token of every row.

        Args:
          tokens: ids, at `cache.position`.
          cache: of the tokens before that position; later positions are not looked at, so rows may
            be set back by lowering theirs.
        Returns:
          float32 logits of the next token, and the cache, a position further.
        """
        decoder, position = self.decoder, cache.position
        max_len = cache.keys[0].shape[-2]
        mask = _for_rows(functools.partial(_mask_at, length=max_len), position)  # [#B, 1, 1, C]
        x = decoder.embedder(tokens[:, None]).astype(decoder.policy.dtype)  # [B, 1, D]
        keys, values = list(cache.keys), list(cache.values)
        for i, block in enumerate(decoder.blocks):
            bias_at = functools.partial(_bias_at, by_offset=self.biases[i], length=max_len)
            x, (keys[i], values[i], _) = block(
                x,
                self.encoder_kv[i],
                mask=mask,
                cross_mask=self.cross_mask,
                bias=_for_rows(bias_at, position),  # [#B, N, 1, C]
                cache=KVCache(keys[i], values[i], position),
            )
        x = decoder.final_norm(x)[:, 0]
        logits = project_logits(
            x, decoder.output, scale=decoder.logit_scale, sharder=decoder.sharder
        )
        return logits, DecoderCache(position + 1, keys, values)


def project_logits(
    x: Float[Array, "*A D"], output: Kernel, *, scale: float, sharder: Sharder
) -> Float[Array, "*A V"]:
    """Return logits: float32 even under bfloat16, for they are exponentiated."""
    return matmul_f32(x, output, sharder) * scale


def _for_rows(function: Callable[[Array], Array], position: Int[Array, "*B"]) -> Array:
    """Return `function(position)` with a leading axis: of rows, or of 1 if all share a position."""
    return jax.vmap(function)(position) if position.ndim else function(position)[None]


def _mask_at(position: Int[Array, ""], *, length: int) -> Bool[Array, "1 1 length"]:
    return (jnp.arange(length) <= position)[None, None]


def _bias_at(
    position: Int[Array, ""], *, by_offset: Float[Array, "N offsets"], length: int
) -> Float[Array, "N 1 length"]:
    bias = jax.lax.dynamic_slice_in_dim(by_offset, length - 1 - position, length, axis=1)
    return bias[:, None]
