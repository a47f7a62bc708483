"""The T5 encoder-decoder, with parameters in a plain nested dict.

Shape letters: B batch, S input length, T target length, D d_model, V vocabulary, N heads, L layers.
"""

import functools
from collections.abc import Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from t5jax.models.config import ComputeDtype, ComputePolicy, T5Config
from t5jax.models.families import get_family
from t5jax.models.incremental_decoder import IncrementalDecoder, project_logits
from t5jax.models.layers import Embedder, OutputLayer, SentenceProjection
from t5jax.models.transformer import Decoder, Encoder, split_key
from t5jax.ops import (
    Kernel,
    attention_mask,
    is_kernel,
    quantize_kernel,
    segments_from_ids,
)
from t5jax.parallel import Sharder, path_name

Params = dict[str, Any]
_NO_MESH = Sharder()


def is_stacked(path: str) -> bool:
    """Return True if a parameter holds all layers of a stack along its first axis.

    Args:
      path: "/"-joined path of the parameter.
    Returns:
      True if the parameter is stacked.

    Examples:
      >>> t5jax.models.is_stacked("encoder/layers/mlp/wi")
      True
      >>> t5jax.models.is_stacked("encoder/final_norm/scale")
      False
    """
    return "layers" in path.split("/")


class T5(nnx.Module):
    """T5 encoder-decoder with a shared embedding (arXiv:1910.10683, section 2.1).

    Usually built by `bind`.  Without decoder layers, it is the encoder alone.

    Args:
      config: architecture.
      policy: compute policy.
      sharder: sharding of activations.
      rngs: random streams; `params` initializes the parameters.

    Examples:
      >>> model = t5jax.models.bind(config, params)
      >>> tokens = jnp.ones((2, 5), jnp.int32)
      >>> jax.eval_shape(model, tokens, tokens[:, :3], encoder_mask=tokens != config.pad_id)
      ShapeDtypeStruct(shape=(2, 3, 97), dtype=float32)
    """

    def __init__(
        self, config: T5Config, policy: ComputePolicy, sharder: Sharder, *, rngs: nnx.Rngs
    ):
        family = get_family(config)
        self.config = config
        self.policy = policy
        self.sharder = sharder
        self.logit_scale = config.d_model**-0.5 if config.scale_logits else 1.0
        self.token_embedder = Embedder(config, rngs=rngs)
        self.encoder = Encoder(config, policy, sharder, family.encoder_blocks, rngs=rngs)
        self.decoder = (
            Decoder(config, policy, sharder, family.decoder_blocks, rngs=rngs)
            if config.num_decoder_layers
            else None
        )
        has_output = config.num_decoder_layers and not config.tie_embeddings
        self.output = OutputLayer(config, rngs=rngs) if has_output else None
        self.projection = SentenceProjection(config, rngs=rngs) if config.projection_dim else None

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
        """Return the logits of every target position, given the inputs and earlier targets.

        Args:
          encoder_tokens: [B, S] input ids.
          decoder_tokens: [B, T] target ids shifted right by one, starting with `decoder_start_id`.
          encoder_mask: [B, S], False on padding.
          encoder_segment_ids: [B, S] index of the packed example, from 1; 0 on padding.
          decoder_segment_ids: [B, T], the same for targets.  Packed examples do not attend to each
            other.
          dropout_key: random key for dropout; None disables it.
        Returns:
          [B, T, V] float32.
        Raises:
          ValueError: only one of the segment ids is set, or the model has no decoder.
        """
        x = self.decoder_hidden_states(
            encoder_tokens,
            decoder_tokens,
            encoder_mask=encoder_mask,
            encoder_segment_ids=encoder_segment_ids,
            decoder_segment_ids=decoder_segment_ids,
            dropout_key=dropout_key,
        )  # [B, T, D]
        return self.logits(x)

    def decoder_hidden_states(
        self,
        encoder_tokens: Int[Array, "B S"],
        decoder_tokens: Int[Array, "B T"],
        *,
        encoder_mask: Bool[Array, "B S"],
        encoder_segment_ids: Int[Array, "B S"] | None = None,
        decoder_segment_ids: Int[Array, "B T"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        """Return the final decoder states of every target position.

        Args:
          encoder_tokens: [B, S] input ids.
          decoder_tokens: [B, T] target ids shifted right by one.
          encoder_mask: [B, S], False on padding.
          encoder_segment_ids: see `__call__`.
          decoder_segment_ids: see `__call__`.
          dropout_key: random key for dropout; None disables it.
        Returns:
          [B, T, D] in the compute dtype; `logits` maps them to logits.
        Raises:
          ValueError: only one of the segment ids is set, or the model has no decoder.
        """
        keys = split_key(dropout_key, 2)
        encoded = self.encode(
            encoder_tokens,
            encoder_mask=encoder_mask,
            encoder_segment_ids=encoder_segment_ids,
            dropout_key=keys[0],
        )  # [B, S, D]
        return self.decode(
            decoder_tokens,
            encoded,
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
        """Return the final encoder states of every input position.

        Args:
          encoder_tokens: [B, S] input ids.
          encoder_mask: [B, S], False on padding.
          encoder_segment_ids: see `__call__`.
          dropout_key: random key for dropout; None disables it.
        Returns:
          [B, S, D] in the compute dtype.
        """
        length = encoder_tokens.shape[1]
        segments = segments_from_ids(
            encoder_segment_ids, encoder_segment_ids, key_mask=encoder_mask, causal=False
        )
        mask = attention_mask(segments, length, length, kind=self.policy.attention)
        return self.encoder(self._embed(encoder_tokens), mask=mask, dropout_key=dropout_key)

    def decode(
        self,
        decoder_tokens: Int[Array, "R T"],
        encoded: Float[Array, "B S D"],
        *,
        encoder_mask: Bool[Array, "B S"],
        encoder_segment_ids: Int[Array, "B S"] | None = None,
        decoder_segment_ids: Int[Array, "R T"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "R T D"]:
        """Return the final decoder states, given those of the encoder.

        Args:
          decoder_tokens: [R, T] target ids shifted right by one.  Without segment ids, R may be a
            multiple of B; the rows of an input are adjacent.
          encoded: [B, S, D] output of `encode`.
          encoder_mask: [B, S], False on padding.
          encoder_segment_ids: see `__call__`.
          decoder_segment_ids: see `__call__`.
          dropout_key: random key for dropout; None disables it.
        Returns:
          [R, T, D] in the compute dtype; `logits` maps them to logits.
        Raises:
          ValueError: only one of the segment ids is set, or the model has no decoder.
        """
        decoder = self._decoder()
        length = decoder_tokens.shape[1]
        if (decoder_segment_ids is None) != (encoder_segment_ids is None):
            raise ValueError(
                "segment ids must be given for both encoder and decoder, got only one of them."
            )
        segments = segments_from_ids(
            decoder_segment_ids, decoder_segment_ids, key_mask=None, causal=True
        )
        mask = attention_mask(segments, length, length, kind=self.policy.attention)
        cross_segments = segments_from_ids(
            decoder_segment_ids, encoder_segment_ids, key_mask=encoder_mask, causal=False
        )
        cross_mask = attention_mask(
            cross_segments, length, encoded.shape[1], kind=self.policy.attention
        )
        x = self._embed(decoder_tokens)  # [R, T, D]
        return decoder(x, encoded, mask=mask, cross_mask=cross_mask, dropout_key=dropout_key)

    def logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Return the logits of final decoder states.

        Args:
          x: [B, T, D] output of `decode`.
        Returns:
          [B, T, V] float32.
        """
        logits = project_logits(
            x, self._output_kernel(), scale=self.logit_scale, sharder=self.sharder
        )
        return self.sharder.constrain_activations(logits)

    def cross_attention_weights(
        self,
        encoder_tokens: Int[Array, "B S"],
        decoder_tokens: Int[Array, "B T"],
        *,
        encoder_mask: Bool[Array, "B S"],
    ) -> Float[Array, "L B N T S"]:
        """Return the cross-attention weights of every decoder layer.

        Args:
          encoder_tokens: [B, S] input ids.
          decoder_tokens: [B, T] target ids shifted right by one.
          encoder_mask: [B, S], False on padding.
        Returns:
          [L, B, N, T, S] float32; sums to one over S.
        Raises:
          ValueError: the model has no decoder.
        """
        encoded = self.encode(encoder_tokens, encoder_mask=encoder_mask)
        mask = jnp.tri(decoder_tokens.shape[1], dtype=bool)[None, None]
        cross_mask = encoder_mask[:, None, None, :]
        return self._decoder().cross_attention_weights(
            self._embed(decoder_tokens), encoded, mask=mask, cross_mask=cross_mask
        )

    def incremental_decoder(self) -> IncrementalDecoder:
        """Return the decoder for a decoding loop; keep it between requests.

        Raises:
          ValueError: the model has no decoder.
        """
        return IncrementalDecoder.from_decoder(
            self.config,
            self.policy,
            self._decoder(),
            embedder=self.token_embedder,
            output=self._output_kernel(),
            logit_scale=self.logit_scale,
        )

    def output_embedding(self) -> tuple[Float[Array, "..."], int]:
        """Return the output kernel as stored, and its vocabulary axis."""
        if self.output is not None:
            return self.output.kernel[...], 1
        return self.token_embedder.embedding[...], 0

    def _embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        x = self.token_embedder(tokens).astype(self.policy.dtype)
        return self.sharder.constrain_activations(x)

    def _output_kernel(self) -> Kernel:
        if self.output is not None:
            return self.output.kernel.get_value()
        kernel = self.token_embedder.embedding.get_value().T
        # Lookups use the float embedding; as output kernel it is quantized like the others.
        leaves = jax.tree.leaves(self._decoder().layers, is_leaf=is_kernel)
        return quantize_kernel(kernel) if any(map(is_kernel, leaves)) else kernel

    def _decoder(self) -> Decoder:
        if self.decoder is None:
            raise ValueError(
                "the model must have a decoder to score or generate, got num_decoder_layers = 0; "
                "use `encode`."
            )
        return self.decoder


def init_params(config: T5Config, key: Key[Array, ""]) -> Params:
    """Initialize random float32 parameters from the distributions of T5X.

    With `jax.jit(init_params, static_argnums=0, out_shardings=...)`, no device holds more than its
    shard.

    Args:
      config: architecture.
      key: random key, `jax.random.key(seed)`.
    Returns:
      Nested dict of arrays.  Blocks of a stack share leaves with a leading layer axis, such as
      `params["encoder"]["layers"]["mlp"]["wi"]`, [L, D, F].

    Examples:
      >>> encoder_only = config.replace(num_decoder_layers=0)
      >>> params = t5jax.models.init_params(encoder_only, jax.random.key(0))
      >>> params["encoder"]["layers"]["mlp"]["wi"].shape
      (2, 16, 24)
    """
    model = T5(config, ComputePolicy(), _NO_MESH, rngs=nnx.Rngs(params=key))
    return nnx.to_pure_dict(nnx.state(model))


def abstract_params(config: T5Config) -> Params:
    """Return the shapes and dtypes of `init_params(config, key)` without computing it.

    Args:
      config: architecture.
    Returns:
      Nested dict of `jax.ShapeDtypeStruct`.

    Examples:
      >>> t5jax.models.abstract_params(config)["output"]["kernel"]
      ShapeDtypeStruct(shape=(16, 97), dtype=float32)
    """
    return jax.tree.map(lambda leaf: leaf, _graph(config, ComputePolicy(), _NO_MESH)[1])


def bind(
    config: T5Config,
    params: Mapping[str, PyTree],
    *,
    policy: ComputePolicy = ComputePolicy(),
    sharder: Sharder | None = None,
) -> T5:
    """Build a model from its config and parameters; cheap, and usable inside `jax.jit`.

    Args:
      config: architecture.
      params: nested dict as from `init_params`, in any float dtype; kernels may be `Int8Kernel`.
      policy: compute policy; defaults to float32.
      sharder: sharding of activations; defaults to the mesh of `jax.set_mesh`, if set.
    Returns:
      The model.
    Raises:
      ValueError: a parameter is missing, unknown or has the wrong shape; the message names it.

    Examples:
      >>> @jax.jit
      ... def encode(params, tokens, mask):
      ...     return t5jax.models.bind(config, params).encode(tokens, encoder_mask=mask)
      >>> encode(params, jnp.ones((2, 5), jnp.int32), jnp.ones((2, 5), bool)).shape
      (2, 5, 16)
    """
    sharder = Sharder.from_context() if sharder is None else sharder
    graph, abstract = _graph(config, policy, sharder)
    expected = {path_name(path): x.shape for path, x in jax.tree.leaves_with_path(abstract)}
    leaves = jax.tree.leaves_with_path(dict(params), is_leaf=is_kernel)
    given = {path_name(path): x.shape for path, x in leaves}
    for path, shape in expected.items():
        if path not in given:
            raise ValueError(
                f"params must have {path} of shape {shape} for this config, but lack it."
            )
        if given[path] != shape:
            raise ValueError(
                f"{path} must have shape {shape} for this config, got {given[path]}; "
                "the weights belong to another config."
            )
    for path in given:
        if path not in expected:
            raise ValueError(f"params have {path}, which this config does not use.")
    return nnx.merge(graph, dict(params))


@functools.lru_cache(maxsize=32)
def _graph(
    config: T5Config, policy: ComputePolicy, sharder: Sharder
) -> tuple[nnx.GraphDef, Params]:
    def init(key):
        return T5(config, policy, sharder, rngs=nnx.Rngs(params=key))

    model = jax.eval_shape(init, jax.random.key(0))
    graph, state = nnx.split(model, graph=False)
    return graph, nnx.to_pure_dict(state)


def resolve_dtype(dtype: str) -> ComputeDtype:
    """Resolve "auto" to a compute dtype, and check other names.

    Args:
      dtype: "auto", "float32" or "bfloat16".
    Returns:
      For "auto", "float32" on CPU and "bfloat16" on other devices; else `dtype`.
    Raises:
      ValueError: any other name.

    Examples:
      >>> t5jax.models.resolve_dtype("auto")  # on CPU
      'float32'
    """
    if dtype == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    for name in get_args(ComputeDtype):
        if dtype == name:
            return name
    raise ValueError(
        f"dtype must be 'auto', 'float32' or 'bfloat16', got {dtype!r}; T5 overflows float16."
    )
