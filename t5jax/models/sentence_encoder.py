"""Sentence encoders: the layers of sentence-transformers that turn encoder states into a vector.

Shape letters: B batch, S input length, D d_model, I and O input and output features.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from t5jax.models.config import T5Config
from t5jax.ops import Kernel, matmul

Feature = Literal["token_embeddings", "sentence_embedding"]
PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]

POOLING_MODES: tuple[PoolingMode, ...] = get_args(PoolingMode)
SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)

# Names that sentence-transformers accepts for every model.
_PROMPT_NAMES = ("query", "document")

# Classes of torch.nn, with the defaults of their arguments.
ACTIVATIONS = {
    "Identity": lambda x: x,
    "CELU": jax.nn.celu,
    "ELU": jax.nn.elu,
    "GELU": lambda x: jax.nn.gelu(x, approximate=False),
    "Hardsigmoid": jax.nn.hard_sigmoid,
    "Hardswish": jax.nn.hard_swish,
    "Hardtanh": jax.nn.hard_tanh,
    "LeakyReLU": lambda x: jax.nn.leaky_relu(x, 0.01),
    "LogSigmoid": jax.nn.log_sigmoid,
    "Mish": jax.nn.mish,
    "ReLU": jax.nn.relu,
    "ReLU6": jax.nn.relu6,
    "SELU": jax.nn.selu,
    "SiLU": jax.nn.silu,
    "Sigmoid": jax.nn.sigmoid,
    "Softplus": jax.nn.softplus,
    "Softsign": jax.nn.soft_sign,
    "Tanh": jnp.tanh,
    "Tanhshrink": lambda x: x - jnp.tanh(x),
}

_STATIC = {"static": True}
_Weight = Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pooling:
    """Pooling of the states of a text into one vector.

    Attributes:
      modes: pooling modes, whose vectors are concatenated.
      include_prompt: whether to pool the states of the prompt, too.

    Examples:
      >>> pooling = t5jax.models.Pooling(modes=("mean", "max"))
      >>> states, mask = jnp.ones((2, 3, 16)), jnp.ones((2, 3), bool)
      >>> pooling(states, mask, prompt_length=jnp.int32(0)).shape
      (2, 32)
    """

    modes: tuple[PoolingMode, ...] = dataclasses.field(default=("mean",), metadata=_STATIC)
    include_prompt: bool = dataclasses.field(default=True, metadata=_STATIC)

    def __call__(
        self, states: Float[Array, "B S D"], mask: Bool[Array, "B S"], *, prompt_length: Array
    ) -> Float[Array, "B O"]:
        if not self.include_prompt:
            mask = mask & (jnp.arange(mask.shape[1]) >= prompt_length)[None]
        return jnp.concatenate([_pool(mode, states, mask) for mode in self.modes], axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense:
    """Dense layer: a projection, an activation and a residual connection.

    Attributes:
      kernel: [I, O] kernel; None stands for the parameter `projection/kernel` of the T5.
      bias: [O] bias, or None.
      activation: activation, a class of `torch.nn` such as "Tanh".
      residual: whether to add the input to the output.
      residual_kernel: [I, O] projection of the input before it is added, or None.
      source: feature to transform.
      target: feature that is replaced by the output.

    Examples:
      >>> t5jax.models.Dense(kernel=jnp.eye(3), activation="ReLU")(jnp.array([[-1.0, 0.0, 2.0]]))
      Array([[0., 0., 2.]], dtype=float32)
    """

    kernel: Kernel | np.ndarray | None = None
    bias: Float[_Weight, " O"] | None = None
    activation: str = dataclasses.field(default="Identity", metadata=_STATIC)
    residual: bool = dataclasses.field(default=False, metadata=_STATIC)
    residual_kernel: Float[_Weight, "I O"] | None = None
    source: Feature = dataclasses.field(default="sentence_embedding", metadata=_STATIC)
    target: Feature = dataclasses.field(default="sentence_embedding", metadata=_STATIC)

    def __call__(self, x: Float[Array, "*A I"]) -> Float[Array, "*A O"]:
        assert self.kernel is not None  # see `with_projection`
        y = matmul(x, _as_kernel(self.kernel))
        if self.bias is not None:
            y = y + jnp.broadcast_to(self.bias, y.shape)
        y = ACTIVATIONS[self.activation](y)
        if self.residual:
            kernel = self.residual_kernel
            y = y + (x if kernel is None else matmul(x, _as_kernel(kernel)))
        return y


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerNorm:
    """Layer normalization of the sentence embedding (arXiv:1607.06450), with torch's epsilon.

    Attributes:
      scale: [I] scale.
      bias: [I] bias.

    Examples:
      >>> norm = t5jax.models.LayerNorm(scale=jnp.ones(2), bias=jnp.zeros(2))
      >>> norm(jnp.array([[1.0, 3.0]])).round(3).tolist()
      [[-1.0, 1.0]]
    """

    scale: Float[_Weight, " I"]
    bias: Float[_Weight, " I"]

    def __call__(self, x: Float[Array, "*A I"]) -> Float[Array, "*A I"]:
        centered = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
        scale, bias = (jnp.broadcast_to(y, x.shape) for y in (self.scale, self.bias))
        return centered * jax.lax.rsqrt(variance + 1e-5) * scale + bias


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Normalize:
    """Scaling of vectors to norm 1.

    Attributes:
      source: feature to scale.
      target: feature that is replaced by the output.

    Examples:
      >>> t5jax.models.Normalize()(jnp.array([[3.0, 4.0]])).tolist()
      [[0.6..., 0.8...]]
    """

    source: Feature = dataclasses.field(default="sentence_embedding", metadata=_STATIC)
    target: Feature = dataclasses.field(default="sentence_embedding", metadata=_STATIC)

    def __call__(self, x: Float[Array, "*A I"]) -> Float[Array, "*A I"]:
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


Layer = Pooling | Dense | LayerNorm | Normalize


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SentenceEncoder:
    """Sentence encoder: how texts are prepared, and the layers after the T5 encoder.

    Attributes:
      layers: layers after the T5 encoder, in order.
      max_tokens: length to which texts are cut, in tokens, EOS included; None does not cut them.
      lower_case: whether to convert texts to lower case.
      prompts: prompts by name, each prepended to a text.
      default_prompt_name: name of the prompt that is used if none is chosen.
      similarity: function that compares two embeddings, for information only.
      truncate_dim: number of features of the embedding to keep; None keeps all.

    Examples:
      >>> encoder = t5jax.models.SentenceEncoder(
      ...     layers=(t5jax.models.Pooling(), t5jax.models.Normalize()),
      ...     prompts={"query": "search_query: "},
      ... )
      >>> encoder.prompt(prompt=None, prompt_name="query")
      'search_query: '
    """

    layers: tuple[Layer, ...]
    max_tokens: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity: Similarity | None = None
    truncate_dim: int | None = None

    @classmethod
    def default(cls, config: T5Config) -> "SentenceEncoder":
        """Return the sentence encoder of sentence-T5 (arXiv:2108.08877, section 3).

        The embedding is the mean state, after the projection if there is one, scaled to norm 1.

        Args:
          config: architecture of the T5.
        Returns:
          The sentence encoder.
        """
        projection = (Dense(),) if config.projection_dim else ()
        return cls(layers=(Pooling(), *projection, Normalize()))

    def prompt(self, *, prompt: str | None, prompt_name: str | None) -> str:
        """Return the prompt to prepend to each text.

        Args:
          prompt: prompt, which takes precedence, even if it is empty.
          prompt_name: name of a prompt of the model, which takes precedence over the default.
        Returns:
          The prompt; empty if there is none.
        Raises:
          ValueError: there is no prompt of this name.
        """
        if prompt is not None:
            return prompt
        name = self.default_prompt_name if prompt_name is None else prompt_name
        prompts = dict.fromkeys(_PROMPT_NAMES, "") | dict(self.prompts)
        if name is None:
            return ""
        if name not in prompts:
            raise ValueError(
                f"prompt_name must be one of {', '.join(prompts)}, got {name!r:.60}; or set prompt."
            )
        return prompts[name]

    def prepare(self, text: str) -> str:
        """Return a text as it is tokenized.

        Args:
          text: text with its prompt.
        Returns:
          The text, in lower case if the model requires it.
        """
        # Character by character, as in the tokenizers library: a final sigma is not special.
        return "".join(map(str.lower, text)) if self.lower_case else text

    def width(self, config: T5Config) -> int:
        """Return the number of features of an embedding.

        Args:
          config: architecture of the T5.
        Returns:
          The number of features.
        """
        widths = {"token_embeddings": config.d_model}
        for layer in self.layers:
            if isinstance(layer, Pooling):
                widths["sentence_embedding"] = widths["token_embeddings"] * len(layer.modes)
            elif isinstance(layer, Dense):
                kernel = layer.kernel
                widths[layer.target] = config.projection_dim if kernel is None else kernel.shape[-1]
            elif isinstance(layer, Normalize):
                widths[layer.target] = widths[layer.source]
        return min(widths["sentence_embedding"], self.truncate_dim or widths["sentence_embedding"])

    def with_projection(self, kernel: Kernel | np.ndarray | None) -> tuple[Layer, ...]:
        """Return the layers, with the kernel of the T5's own projection.

        Args:
          kernel: parameter `projection/kernel` of the T5, or None if it has none.
        Returns:
          The layers.
        """
        return tuple(
            dataclasses.replace(layer, kernel=kernel)
            if isinstance(layer, Dense) and layer.kernel is None
            else layer
            for layer in self.layers
        )


def apply_layers(
    layers: Sequence[Layer],
    states: Float[Array, "B S D"],
    mask: Bool[Array, "B S"],
    *,
    prompt_length: Array,
) -> Float[Array, "B O"]:
    """Apply the layers of a sentence encoder to the final encoder states.

    Args:
      layers: layers, in order; at least one is a `Pooling`.
      states: [B, S, D] float32 states.
      mask: [B, S] True on tokens.
      prompt_length: number of leading tokens that belong to the prompt.
    Returns:
      [B, O] float32 embeddings.
    """
    features: dict[str, Array] = {"token_embeddings": states}
    for layer in layers:
        if isinstance(layer, Pooling):
            states = features["token_embeddings"]
            features["sentence_embedding"] = layer(states, mask, prompt_length=prompt_length)
        elif isinstance(layer, LayerNorm):
            features["sentence_embedding"] = layer(features["sentence_embedding"])
        else:
            features[layer.target] = layer(features[layer.source])
    return features["sentence_embedding"]


def _as_kernel(kernel: Kernel | np.ndarray) -> Kernel:
    return jnp.asarray(kernel) if isinstance(kernel, np.ndarray) else kernel


def _pool(
    mode: PoolingMode, states: Float[Array, "B S D"], mask: Bool[Array, "B S"]
) -> Float[Array, "B D"]:
    """Pool the states where `mask` is True."""
    weights = mask.astype(jnp.float32)[..., None]
    if mode == "max":
        return jnp.max(jnp.where(mask[..., None], states, -jnp.inf), axis=1)
    if mode in ("cls", "lasttoken"):
        first = jnp.argmax(mask, axis=1)
        last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
        index = first if mode == "cls" else last
        masked = states if mode == "cls" else states * weights
        return jnp.take_along_axis(masked, index[:, None, None], axis=1)[:, 0]
    if mode == "weightedmean":
        weights = weights * jnp.arange(1.0, mask.shape[1] + 1)[None, :, None]
    total = jnp.maximum(jnp.sum(weights, axis=1), 1.0)
    return jnp.sum(states * weights, axis=1) / (
        jnp.sqrt(total) if mode == "mean_sqrt_len_tokens" else total
    )
