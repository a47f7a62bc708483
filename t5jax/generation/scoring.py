"""Compiled forward passes: states, embeddings, and how likely given targets are."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5jax.models import Params, T5Config, bind

# Positions whose logits are held at a time: all of them would be too large for a big vocabulary.
_CHUNK = 8


class TokenScores(NamedTuple):
    """What a model thinks of given targets, token by token."""

    log_probs: Float[Array, "R T"]
    """Of the target, in nats."""
    best: Int[Array, "R T k"]
    """The likeliest tokens, best first."""
    best_log_probs: Float[Array, "R T k"]


@functools.partial(jax.jit, static_argnames=("config",))
def encode_batch(
    params: Params,
    encoder_tokens: Int[Array, "B S"],
    encoder_mask: Bool[Array, "B S"],
    *,
    config: T5Config,
) -> Float[Array, "B S D"]:
    """Final encoder states."""
    return bind(config, params).encode(encoder_tokens, encoder_mask=encoder_mask)


@functools.partial(jax.jit, static_argnames=("config",))
def embed_batch(
    params: Params,
    encoder_tokens: Int[Array, "B S"],
    encoder_mask: Bool[Array, "B S"],
    *,
    config: T5Config,
) -> Float[Array, "B E"]:
    """Mean of the final encoder states, projected if the model has a projection, of length 1."""
    bound = bind(config, params)
    states = bound.encode(encoder_tokens, encoder_mask=encoder_mask).astype(jnp.float32)
    weights = encoder_mask.astype(jnp.float32)[..., None]
    mean = jnp.sum(states * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1.0)
    if bound.projection is not None:
        mean = bound.projection(mean)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


@functools.partial(jax.jit, static_argnames=("config", "num_best"))
def score_tokens(
    params: Params,
    encoder_tokens: Int[Array, "B S"],
    encoder_mask: Bool[Array, "B S"],
    targets: Int[Array, "R T"],
    *,
    config: T5Config,
    num_best: int = 0,
) -> TokenScores:
    """Log-probabilities of targets, and of the likeliest tokens in their place.

    Args:
      params: of the model.
      encoder_tokens: input ids, each encoded once.
      encoder_mask: True on input ids that are not padding.
      targets: R / B rows for each input, next to one another; a multiple of 8 wide.
      config: of the model.
      num_best: how many of the likeliest tokens to return.
    """
    bound = bind(config, params)
    encoded = bound.encode(encoder_tokens, encoder_mask=encoder_mask)
    states = bound.decode(shifted_targets(targets, config), encoded, encoder_mask=encoder_mask)

    def chunk(pair):
        x, wanted = pair
        log_probs = jax.nn.log_softmax(bound.logits(x))
        chosen = jnp.take_along_axis(log_probs, wanted[..., None], axis=-1)[..., 0]
        return chosen, *jax.lax.top_k(log_probs, num_best)

    def split(x):
        return jnp.moveaxis(x.reshape(len(x), -1, _CHUNK, *x.shape[2:]), 1, 0)

    def joined(x):
        return jnp.moveaxis(x, 0, 1).reshape(*targets.shape, *x.shape[3:])

    parts = jax.lax.map(chunk, (split(states), split(targets)))
    log_probs, best_log_probs, best = map(joined, parts)
    return TokenScores(log_probs, best, best_log_probs)


def shifted_targets(targets: Int[Array, "R T"], config: T5Config) -> Int[Array, "R T"]:
    """What the decoder reads to write the targets."""
    start = jnp.full((len(targets), 1), config.decoder_start_id, targets.dtype)
    return jnp.concatenate([start, targets[:, :-1]], axis=1)


@functools.partial(jax.jit, static_argnames=("config",))
def cross_attention_weights(
    params: Params,
    encoder_tokens: Int[Array, "B S"],
    encoder_mask: Bool[Array, "B S"],
    targets: Int[Array, "B T"],
    *,
    config: T5Config,
) -> Float[Array, "L B N T S"]:
    """How much each target reads from each input token when it is written."""
    return bind(config, params).cross_attention_weights(
        encoder_tokens, shifted_targets(targets, config), encoder_mask=encoder_mask
    )
