"""Compiled inference: each function compiles once a shape, and few shapes occur."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from t5jax import batches, model
from t5jax.config import T5Config
from t5jax.decode import choose, loop

SMALLEST_BUCKET = 16


def bucket(length: int) -> int:
    """The length that `length` is padded to: 16, 24, 32, 48, 64, 96, 128, ...

    Two buckets for every doubling bound both the padding, to a half, and the number of programs
    that are compiled.
    """
    size = SMALLEST_BUCKET
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def buckets(max_length: int) -> list[int]:
    """All buckets that lengths up to `max_length` fall into."""
    sizes = [bucket(1)]
    while sizes[-1] < max_length:
        sizes.append(bucket(sizes[-1] + 1))
    return sizes


def pad_batch(
    sequences: Sequence[Sequence[int]], *, pad_id: int, num_rows: int | None = None
) -> tuple[Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]]:
    """Ids and mask, padded to the bucket of the longest sequence and to `num_rows` rows."""
    length = bucket(max((len(s) for s in sequences), default=1))
    rows = [*sequences, *[[]] * ((num_rows or len(sequences)) - len(sequences))]
    tokens = batches.pad(rows, length=length, pad_id=pad_id)
    mask = np.arange(length)[None, :] < np.array([len(s) for s in rows])[:, None]
    return tokens, mask


@functools.partial(jax.jit, static_argnames=("config",))
def encode(
    params: model.Params,
    encoder_tokens: Int[Array, "B S"],
    encoder_mask: Bool[Array, "B S"],
    *,
    config: T5Config,
) -> Float[Array, "B S D"]:
    """Final encoder states."""
    return model.bind(config, params).encode(encoder_tokens, encoder_mask=encoder_mask)


@functools.partial(jax.jit, static_argnames=("config",))
def embed(
    params: model.Params,
    encoder_tokens: Int[Array, "B S"],
    encoder_mask: Bool[Array, "B S"],
    *,
    config: T5Config,
) -> Float[Array, "B E"]:
    """Mean of the final encoder states, projected if the model has a projection, of length 1."""
    bound = model.bind(config, params)
    states = bound.encode(encoder_tokens, encoder_mask=encoder_mask).astype(jnp.float32)
    weights = encoder_mask.astype(jnp.float32)[..., None]
    mean = jnp.sum(states * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1.0)
    if bound.projection is not None:
        mean = bound.projection(mean)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


@functools.partial(jax.jit, static_argnames=("config",))
def score(
    params: model.Params,
    encoder_tokens: Int[Array, "B S"],
    encoder_mask: Bool[Array, "B S"],
    targets: Int[Array, "B T"],
    target_mask: Bool[Array, "B T"],
    *,
    config: T5Config,
) -> Float[Array, " B"]:
    """Log-probability of each row's targets, in nats: the sum over tokens where the mask is set."""
    start = jnp.full((targets.shape[0], 1), config.decoder_start_id, targets.dtype)
    decoder_tokens = jnp.concatenate([start, targets[:, :-1]], axis=1)
    logits = model.bind(config, params)(encoder_tokens, decoder_tokens, encoder_mask=encoder_mask)
    log_probs = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(target_mask, chosen, 0.0), axis=1)


@functools.partial(jax.jit, static_argnames=("config", "max_len", "sample"))
def generate(
    params: model.Params,
    encoder_tokens: Int[Array, "B S"],
    encoder_mask: Bool[Array, "B S"],
    rows: Int[Array, " B"],
    *,
    config: T5Config,
    max_len: int,
    limit: Int[Array, ""],
    sample: bool,
    temperature: Float[Array, ""],
    seed: Int[Array, ""],
) -> Int[Array, "B max_len"]:
    """Greedy or sampled continuations.

    Args:
      params: of the model.
      encoder_tokens: input ids.
      encoder_mask: True on input ids that are not padding.
      rows: a number for every row, which with `seed` determines its samples; negative in rows that
        only fill up the batch.
      config: of the model.
      max_len: width of the result and of the cache.
      limit: most tokens a row gets, at most `max_len`.
      sample: whether to sample or to take the most likely token.
      temperature: of the samples.
      seed: of the samples.
    Returns:
      Ids, ended by EOS where one was written, then padding.
    """
    bound = model.bind(config, params)
    states = bound.encode(encoder_tokens, encoder_mask=encoder_mask)
    step, cache = bound.decoding(states, encoder_mask=encoder_mask, max_len=max_len)
    chooser = choose.greedy
    if sample:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), rows)
        chooser = choose.sampler(keys, temperature=temperature)
    return loop.decode(
        step,
        cache,
        choose=chooser,
        start_tokens=jnp.full(rows.shape, config.decoder_start_id, jnp.int32),
        done=rows < 0,
        limit=limit,
        max_len=max_len,
        eos_id=config.eos_id,
        pad_id=config.pad_id,
    )
