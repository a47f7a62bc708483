"""The T5 encoder-decoder, and its parameters as a plain nested dict.

Shape letters: B batch, S input length, T target length, D d_model, V vocabulary, N heads, L layers.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Key

from t5jax import sharding
from t5jax.config import T5Config
from t5jax.layers import Embedder, Output, Projection, split_key
from t5jax.stacks import Decoder, Encoder

Params = dict[str, Any]

# How parameters lie on a mesh of axes data, fsdp, tensor: each rule is a pattern of path parts and
# the axes of the parameters it fits.  Blocks are stacked, so their first axis is the layer.
PARTITION_RULES = (
    ("token_embedder/embedding", P("tensor", "fsdp")),
    ("(self_|cross_)?attention/(query|key|value)", P(None, "fsdp", "tensor")),
    ("(self_|cross_)?attention/out", P(None, "tensor", "fsdp")),
    ("mlp/(wi|wi_linear)", P(None, "fsdp", "tensor")),
    ("mlp/wo", P(None, "tensor", "fsdp")),
    ("output/kernel", P("fsdp", "tensor")),
    ("projection/kernel", P("fsdp", None)),
    ("relative_bias/embedding", P()),
    ("[a-z_]*norm/scale", P()),
)


def stacked(path: str) -> bool:
    """Whether the parameter at a '/'-joined path holds all layers of a stack on its first axis."""
    return "layers" in path.split("/")


class Cache(NamedTuple):
    """What a decoding loop carries from token to token; one entry a layer in each list."""

    position: Int[Array, ""]
    keys: list[Float[Array, "B N C H"]]
    values: list[Float[Array, "B N C H"]]


class T5(nnx.Module):
    """Text in, text out: an encoder, a decoder, and the embedding that both read.

    (arXiv:1910.10683, section 2.1)  Without decoder layers it is the encoder alone.
    """

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.config = config
        self.token_embedder = Embedder(config, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs) if config.num_decoder_layers else None
        has_output = config.num_decoder_layers and not config.tie_embeddings
        self.output = Output(config, rngs=rngs) if has_output else None
        self.projection = Projection(config, rngs=rngs) if config.projection_dim else None

    def __call__(
        self,
        encoder_tokens: Int[Array, "B S"],
        decoder_tokens: Int[Array, "B T"],
        *,
        encoder_mask: Bool[Array, "B S"],
        encoder_segment_ids: Int[Array, "B S"] | None = None,
        decoder_segment_ids: Int[Array, "B T"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits of every target position, given the inputs and the targets before it.

        Args:
          encoder_tokens: input ids.
          decoder_tokens: target ids shifted right by one, starting with `decoder_start_id`.
          encoder_mask: True on input ids that are not padding.
          encoder_segment_ids: which of several packed examples an input id belongs to; padding 0.
          decoder_segment_ids: the same for the targets.  Examples do not see one another.
          dropout_key: turns dropout on; None evaluates.
        Returns:
          [B, T, V] float32.
        """
        keys = split_key(dropout_key, 2)
        states = self.encode(
            encoder_tokens,
            encoder_mask=encoder_mask,
            encoder_segment_ids=encoder_segment_ids,
            dropout_key=keys[0],
        )
        return self.decode(
            decoder_tokens,
            states,
            encoder_mask=encoder_mask,
            encoder_segment_ids=encoder_segment_ids,
            decoder_segment_ids=decoder_segment_ids,
            dropout_key=keys[1],
        )

    def encode(
        self,
        encoder_tokens: Int[Array, "B S"],
        *,
        encoder_mask: Bool[Array, "B S"],
        encoder_segment_ids: Int[Array, "B S"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B S D"]:
        """Final encoder states, in the config's `dtype`; arguments as in `__call__`."""
        mask = encoder_mask[:, None, None, :]
        if encoder_segment_ids is not None:
            mask = mask & _same_segment(encoder_segment_ids, encoder_segment_ids)
        return self.encoder(self._embed(encoder_tokens), mask=mask, dropout_key=dropout_key)

    def decode(
        self,
        decoder_tokens: Int[Array, "B T"],
        states: Float[Array, "B S D"],
        *,
        encoder_mask: Bool[Array, "B S"],
        encoder_segment_ids: Int[Array, "B S"] | None = None,
        decoder_segment_ids: Int[Array, "B T"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits from `encode`'s states; other arguments as in `__call__`."""
        decoder = self._decoder()
        length = decoder_tokens.shape[1]
        mask = jnp.tri(length, dtype=bool)[None, None]
        cross_mask = encoder_mask[:, None, None, :]
        if decoder_segment_ids is not None and encoder_segment_ids is not None:
            mask = mask & _same_segment(decoder_segment_ids, decoder_segment_ids)
            cross_mask = cross_mask & _same_segment(decoder_segment_ids, encoder_segment_ids)
        elif decoder_segment_ids is not None or encoder_segment_ids is not None:
            raise ValueError(
                "segment ids must be given for both encoder and decoder, got only one of them."
            )
        x = self._embed(decoder_tokens)
        x = decoder(x, states, mask=mask, cross_mask=cross_mask, dropout_key=dropout_key)
        return self._logits(x)

    def decoding(
        self,
        states: Float[Array, "B S D"],
        *,
        encoder_mask: Bool[Array, "B S"],
        max_len: int,
        num_beams: int = 1,
    ) -> tuple[Callable[[Int[Array, " B"], Cache], tuple[Float[Array, "B V"], Cache]], Cache]:
        """What a decoding loop needs to write up to `max_len` tokens for each row.

        Stacked weights are sliced, and cross-attention keys and values computed, here and once.

        Args:
          states: from `encode`.
          encoder_mask: True on input ids that are not padding.
          max_len: most tokens the loop will feed.
          num_beams: rows of the loop for each row of `states`, next to one another.
        Returns:
          `step(tokens, cache) -> (logits, cache)`, for one token a row, and the empty cache.
        """
        decoder = self._decoder()
        config = self.config
        blocks = [
            jax.tree.map(lambda leaf, i=i: leaf[i], decoder.layers)
            for i in range(config.num_decoder_layers)
        ]
        shared = decoder.relative_bias
        biases = [(shared or block.relative_bias).by_offset(max_len) for block in blocks]
        # Weights change type once here instead of at every token.
        blocks = jax.tree.map(lambda leaf: leaf.astype(states.dtype), blocks)
        cross = [block.cross_attention.keys_values(states) for block in blocks]
        cross_mask = encoder_mask[:, None, None, :]
        positions = jnp.arange(max_len)

        def step(tokens, cache):
            position = cache.position
            mask = (positions <= position)[None, None, None, :]
            x = self._embed(tokens[:, None])
            keys, values = list(cache.keys), list(cache.values)
            for i, block in enumerate(blocks):
                key, value = block.self_keys_values(x)
                keys[i] = jax.lax.dynamic_update_slice_in_dim(keys[i], key, position, axis=2)
                values[i] = jax.lax.dynamic_update_slice_in_dim(values[i], value, position, axis=2)
                bias = jax.lax.dynamic_slice_in_dim(
                    biases[i], max_len - 1 - position, max_len, axis=1
                )
                x = block(
                    x,
                    (keys[i], values[i]),
                    cross[i],
                    mask=mask,
                    cross_mask=cross_mask,
                    bias=bias[None, :, None, :],
                )
            logits = self._logits(decoder.final_norm(x))[:, 0]
            return logits, Cache(position + 1, keys, values)

        shape = (states.shape[0] * num_beams, config.num_heads, max_len, config.d_kv)
        empty = [jnp.zeros(shape, states.dtype) for _ in blocks]
        return step, Cache(jnp.zeros((), jnp.int32), empty, list(empty))

    def _embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        x = self.token_embedder(tokens).astype(self.config.dtype)
        return sharding.divide_batch(x)

    def _logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        # float32 even under bfloat16: the loss exponentiates differences of large logits.
        x = x.astype(jnp.float32)
        if self.config.scale_logits:
            x = x * self.config.d_model**-0.5
        if self.output is not None:
            return sharding.divide_batch(self.output(x))
        table = self.token_embedder.embedding[...].astype(jnp.float32)
        logits = jnp.einsum("xd,vd->xv", x.reshape(-1, x.shape[-1]), table)
        return sharding.divide_batch(logits.reshape(*x.shape[:-1], -1))

    def _decoder(self) -> Decoder:
        if self.decoder is None:
            raise ValueError(
                "this model must have a decoder to score or generate, but its config says "
                "num_decoder_layers = 0; use `encode`."
            )
        return self.decoder


def init_params(config: T5Config, key: Key[Array, ""]) -> Params:
    """Random float32 parameters, drawn as T5X draws them.

    Under `jax.jit(init_params, static_argnums=0, out_shardings=...)` no device holds more than its
    part.  Blocks of a stack share leaves with a leading layer axis.

    Args:
      config: the architecture.
      key: `jax.random.key(seed)`.
    Returns:
      Nested dict of arrays, such as `params["encoder"]["layers"]["mlp"]["wi"]`, [L, D, F].
    """
    return nnx.to_pure_dict(nnx.state(T5(config, rngs=nnx.Rngs(params=key))))


def abstract_params(config: T5Config) -> Params:
    """Shapes and dtypes of `init_params(config, key)`, without computing anything."""
    return jax.tree.map(lambda leaf: leaf, _graph(config)[1])


def bind(config: T5Config, params: Mapping[str, Any]) -> T5:
    """The model that computes with these parameters; cheap, and usable inside `jax.jit`.

    Args:
      config: the architecture.
      params: as from `init_params`; any float dtype.
    Raises:
      ValueError: a parameter is missing, unknown or of another shape; the message has its path.
    """
    graph, abstract = _graph(config)
    expected = {_join(path): x.shape for path, x in jax.tree.leaves_with_path(abstract)}
    given = {_join(path): x.shape for path, x in jax.tree.leaves_with_path(dict(params))}
    for path, shape in expected.items():
        if path not in given:
            raise ValueError(
                f"params must hold {path} of shape {shape} for this config; it lacks it."
            )
        if given[path] != shape:
            raise ValueError(
                f"{path} must have shape {shape} for this config, got {given[path]}; "
                "the weights belong to another config."
            )
    for path in given:
        if path not in expected:
            raise ValueError(f"params holds {path}, which this config has no use for.")
    return nnx.merge(graph, dict(params))


@functools.lru_cache(maxsize=32)
def _graph(config: T5Config) -> tuple[Any, Params]:
    model = jax.eval_shape(lambda key: T5(config, rngs=nnx.Rngs(params=key)), jax.random.key(0))
    graph, state = nnx.split(model, graph=False)
    return graph, nnx.to_pure_dict(state)


def _join(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _same_segment(queries: Int[Array, "B T"], keys: Int[Array, "B S"]) -> Bool[Array, "B 1 T S"]:
    return (queries[:, :, None] == keys[:, None, :])[:, None]
