"""Int8 weights: a quarter of the memory of float32, with a measured error."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from t5jax.models.config import ComputePolicy, T5Config
from t5jax.models.t5 import Params, bind
from t5jax.ops import is_kernel, quantize_kernel

# Embeddings and norms are not quantized.
_KERNELS = {"query", "key", "value", "out", "wi", "wi_linear", "wo", "kernel"}
_SAMPLE_ROWS, _SAMPLE_LENGTH, _SAMPLE_TARGETS = 4, 64, 16


class LogitError(NamedTuple):
    """Error of the logits after quantization, on a sample.

    The mean logit of each position is subtracted first, since softmax ignores it.

    Attributes:
      relative: RMS of the error divided by the RMS of the logits.
      largest: largest absolute error.
      agreement: fraction of positions with the same argmax.

    Examples:
      >>> error = t5jax.models.LogitError(relative=0.01, largest=0.2, agreement=0.98)
      >>> f"{error.relative:.1%} error, same argmax at {error.agreement:.0%} of positions"
      '1.0% error, same argmax at 98% of positions'
    """

    relative: float
    largest: float
    agreement: float


def quantize_params(
    params: Params, config: T5Config, *, policy: ComputePolicy
) -> tuple[Params, LogitError]:
    """Quantize every kernel to int8, scaled by the largest weight of each output feature.

    Args:
      params: parameters of a model with a decoder, in any float dtype.
      config: architecture of the model.
      policy: compute policy of the logits.
    Returns:
      Parameters with `Int8Kernel`s, and the error of their logits on random ids, on which a model
      is less certain than on text.

    Examples:
      >>> policy = t5jax.ComputePolicy()
      >>> quantized, error = t5jax.models.quantize_params(params, config, policy=policy)
      >>> error.relative < 0.05
      True
    """
    rounded = jax.tree.map_with_path(
        lambda path, leaf: _quantize(leaf) if path[-1].key in _KERNELS else leaf, params
    )
    rng = np.random.default_rng(0)
    high = min(config.vocab_size, 32000)
    tokens = rng.integers(2, high, (_SAMPLE_ROWS, _SAMPLE_LENGTH), dtype=np.int32)
    targets = rng.integers(2, high, (_SAMPLE_ROWS, _SAMPLE_TARGETS), dtype=np.int32)
    start = np.full((_SAMPLE_ROWS, 1), config.decoder_start_id, np.int32)
    decoder_tokens = np.concatenate([start, targets[:, :-1]], axis=1)
    exact, approximate = (
        _centred(_logits(weights, tokens, decoder_tokens, config=config, policy=policy))
        for weights in (params, rounded)
    )
    difference = jnp.abs(approximate - exact)
    error = LogitError(
        relative=float(jnp.sqrt(jnp.mean(difference**2) / jnp.mean(exact**2))),
        largest=float(jnp.max(difference)),
        agreement=float(jnp.mean(jnp.argmax(approximate, -1) == jnp.argmax(exact, -1))),
    )
    return rounded, error


def check_saveable(params: Params) -> None:
    """Check that no kernel is int8, since no checkpoint format stores them.

    Args:
      params: parameters to save.
    Raises:
      ValueError: a kernel is int8.
    """
    leaves = jax.tree.leaves(params, is_leaf=is_kernel)
    if any(map(is_kernel, leaves)):
        raise ValueError("weights='int8' cannot be saved; load the model without it.")


_quantize = jax.jit(quantize_kernel)


@functools.partial(jax.jit, static_argnames=("config", "policy"))
def _logits(
    params: Params,
    encoder_tokens: Int[Array, "B S"],
    decoder_tokens: Int[Array, "B T"],
    *,
    config: T5Config,
    policy: ComputePolicy,
) -> Float[Array, "B T V"]:
    mask = jnp.ones(encoder_tokens.shape, bool)
    model = bind(config, params, policy=policy)
    return model(encoder_tokens, decoder_tokens, encoder_mask=mask)


def _centred(logits: Float[Array, "B T V"]) -> Float[Array, "B T V"]:
    return logits - jnp.mean(logits, axis=-1, keepdims=True)
