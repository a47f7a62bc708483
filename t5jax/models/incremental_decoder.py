"""Incremental decoding: one token per step, with a cache of keys and values.

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
    """State of a decoding loop.

    Attributes:
      position: int32 position of the next token: shared by all rows or, set with `_replace`, [B].
      keys: self-attention keys of each layer, [B, N, C, H]; [N, C, H] for a single row.
      values: self-attention values of each layer, likewise.

    Examples:
      >>> empty = [jnp.zeros((2, 3, 8, 5))] * 3  # of 3 layers
      >>> cache = t5jax.models.DecoderCache(jnp.asarray(0), empty, empty)
      >>> cache._replace(position=jnp.array([0, 4])).position.shape  # one per row
      (2,)
    """

    position: Int[Array, ""] | Int[Array, " B"]
    keys: list[Float[Array, "*B N C H"]]
    values: list[Float[Array, "*B N C H"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IncrementalDecoder:
    """Decoder weights with unstacked layers, for decoding loops; keep it between requests.

    Attributes:
      config: architecture of the model.
      policy: compute policy of the model.
      sharder: sharder of the model.
      blocks: the layers, from `DecoderBlock.for_decoding`.
      biases: relative bias of each layer, its own or the shared one.
      final_norm: norm after the last block.
      embedder: token embedding.
      output: output kernel, [D, V].
      logit_scale: factor applied to the logits.

    Examples:
      >>> decoder = t5jax.models.bind(config, params).incremental_decoder()
      >>> encoded, mask = jnp.zeros((2, 4, config.d_model)), jnp.ones((2, 4), bool)
      >>> step, cache = decoder.start(encoded, encoder_mask=mask, max_len=8)
      >>> cache.keys[0].shape  # rows, heads, length, d_kv
      (2, 3, 8, 5)
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
        """Unstack the layers of a decoder; unchanged arrays are shared with the model.

        Args:
          config: architecture of the model.
          policy: compute policy of the model.
          decoder: stacked decoder.
          embedder: token embedding.
          output: output kernel, [D, V].
          logit_scale: factor applied to the logits.
        Returns:
          The incremental decoder.
        """
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
        """Precompute cross-attention keys and values, and create an empty cache.

        Args:
          encoded: [I, S, D] final encoder states.
          encoder_mask: [I, S], False on padding.
          max_len: cache length C, the maximum number of tokens to feed.
          num_beams: number of rows per input, which are adjacent.
        Returns:
          `step(tokens, cache) -> (logits, cache)` and the cache for its first call.
        """
        encoder_kv = [block.encoder_kv(encoded) for block in self.blocks]
        biases = [bias.by_offset(max_len) for bias in self.biases]
        config = self.config
        # A row axis of size 1 would keep XLA from updating the cache in place (jax 0.10.2,
        # benchmarks/decode.py at batch 1).
        rows = (len(encoded) * num_beams,) if len(encoded) * num_beams > 1 else ()
        shape = (*rows, config.num_heads, max_len, config.d_kv)
        empty = [jnp.zeros(shape, encoded.dtype) for _ in self.blocks]
        step = DecodeStep(self, encoder_kv, encoder_mask[:, None, None, :], biases)
        return step, DecoderCache(jnp.zeros((), jnp.int32), empty, list(empty))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeStep:
    """Decoding step for encoded inputs: `step(tokens, cache) -> (logits, cache)`.

    Attributes:
      decoder: decoder weights.
      encoder_kv: cross-attention keys and values of each layer, [I, N, S, H].
      cross_mask: [I, 1, 1, S], False on padding.
      biases: relative bias of each layer for every offset between two cache positions.

    Examples:
      >>> decoder = t5jax.models.bind(config, params).incremental_decoder()
      >>> encoded, mask = jnp.zeros((2, 4, config.d_model)), jnp.ones((2, 4), bool)
      >>> step, cache = decoder.start(encoded, encoder_mask=mask, max_len=8)
      >>> tokens = jnp.zeros(2, jnp.int32)  # decoder_start_id
      >>> logits, cache = jax.jit(lambda *args: step(*args))(tokens, cache)
      >>> logits.shape, int(cache.position)
      ((2, 97), 1)
    """

    decoder: IncrementalDecoder
    encoder_kv: list[tuple[Float[Array, "I N S H"], Float[Array, "I N S H"]]]
    cross_mask: Bool[Array, "I 1 1 S"]
    biases: list[Float[Array, "N offsets"]]

    def __call__(
        self, tokens: Int[Array, " B"], cache: DecoderCache
    ) -> tuple[Float[Array, "B V"], DecoderCache]:
        """Feed one token per row.

        Args:
          tokens: [B] ids at `cache.position`.
          cache: keys and values of earlier tokens.  Later positions are ignored, so a row is rolled
            back by lowering its position.
        Returns:
          [B, V] float32 logits of the next token, and the cache advanced by one position.
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
    """Return the logits in float32, even under bfloat16, since they are exponentiated.

    Args:
      x: final decoder states.
      output: output kernel, [D, V].
      scale: factor applied to the logits.
      sharder: sharder of the model.
    """
    return matmul_f32(x, output, sharder) * scale


def _for_rows(function: Callable[[Array], Array], position: Int[Array, "*B"]) -> Array:
    """Return `function(position)` with a leading row axis, of size 1 if rows share a position."""
    return jax.vmap(function)(position) if position.ndim else function(position)[None]


def _mask_at(position: Int[Array, ""], *, length: int) -> Bool[Array, "1 1 length"]:
    return (jnp.arange(length) <= position)[None, None]


def _bias_at(
    position: Int[Array, ""], *, by_offset: Float[Array, "N offsets"], length: int
) -> Float[Array, "N 1 length"]:
    bias = jax.lax.dynamic_slice_in_dim(by_offset, length - 1 - position, length, axis=1)
    return bias[:, None]
