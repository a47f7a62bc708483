"""Compiled inference: each function compiles once a shape, and few shapes occur."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from t5jax import batches, model
from t5jax.config import T5Config
from t5jax.decode import beam, choose, loop, truncate
from t5jax.strategy import EarlyStopping

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


def rows_bucket(count: int) -> int:
    """The number of rows that `count` is padded to, the next power of two."""
    return 1 << (count - 1).bit_length()


def by_length(
    encoded: Sequence[Sequence[int]],
    run: Callable[[np.ndarray, np.ndarray, np.ndarray], Sequence[Any]],
    *,
    batch_size: int,
    pad_id: int,
) -> list[Any]:
    """Results of `run(rows, tokens, mask)` for each input, in order; computed by length.

    Args:
      encoded: ids of every input.
      run: from the place of every row in `encoded`, -1 for those that fill up a batch, and their
        ids and mask to one result a row.
      batch_size: most rows of a batch.
      pad_id: fills up short rows.
    """
    results: list[Any] = [None] * len(encoded)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    for start in range(0, len(encoded), batch_size):
        group = order[start : start + batch_size]
        num_rows = min(rows_bucket(len(group)), batch_size)
        tokens, mask = pad_batch([encoded[i] for i in group], pad_id=pad_id, num_rows=num_rows)
        rows = np.array([*group, *[-1] * (num_rows - len(group))])
        for i, result in zip(group, run(rows, tokens, mask), strict=False):
            results[i] = result
    return results


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


@functools.partial(jax.jit, static_argnames=("config", "max_len", "most_k"))
def generate(
    params: model.Params,
    encoder_tokens: Int[Array, "B S"],
    encoder_mask: Bool[Array, "B S"],
    rows: Int[Array, " B"],
    *,
    config: T5Config,
    max_len: int,
    limit: Int[Array, ""],
    draws: Mapping[str, Array],
    most_k: int = 0,
) -> Int[Array, "B max_len"]:
    """Greedy or sampled continuations.

    Args:
      params: of the model.
      encoder_tokens: input ids.
      encoder_mask: True on input ids that are not padding.
      rows: a number for every row, which with the seed determines its samples; negative in rows
        that only fill up the batch.
      config: of the model.
      max_len: width of the result and of the cache.
      limit: most tokens a row gets, at most `max_len`.
      draws: `Strategy.draws`; without any, the most likely token is taken.
      most_k: at least `draws["top_k"]`, if it is there; known when compiling.
    Returns:
      Ids, ended by EOS where one was written, then padding.
    """
    step, cache = _decoding(params, encoder_tokens, encoder_mask, config=config, max_len=max_len)
    chooser = choose.greedy
    if draws:
        seed = jax.random.key(draws["seed"])
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(seed, rows)
        chooser = choose.sampler(
            keys,
            temperature=draws["temperature"],
            truncation=functools.partial(_truncate, draws=draws, most_k=most_k),
        )
    return loop.decode(
        step,
        cache,
        choose=chooser,
        limit=limit,
        max_len=max_len,
        **_ends(rows, config),
    )


def _truncate(logits: Float[Array, "B V"], *, draws: Mapping[str, Array], most_k: int) -> Array:
    # In the order in which Hugging Face transformers does it.
    if "top_k" in draws:
        logits = truncate.top_k(logits, draws["top_k"], most=most_k)
    if "top_p" in draws:
        logits = truncate.top_p(logits, draws["top_p"])
    if "min_p" in draws:
        logits = truncate.min_p(logits, draws["min_p"])
    if "typical_p" in draws:
        logits = truncate.typical(logits, draws["typical_p"])
    return logits


@functools.partial(
    jax.jit,
    static_argnames=("config", "max_len", "num_beams", "penalty_form", "early_stopping"),
)
def beam_search(
    params: model.Params,
    encoder_tokens: Int[Array, "B S"],
    encoder_mask: Bool[Array, "B S"],
    rows: Int[Array, " B"],
    *,
    config: T5Config,
    max_len: int,
    limit: Int[Array, ""],
    num_beams: int,
    length_penalty: Float[Array, ""],
    penalty_form: str,
    early_stopping: EarlyStopping,
) -> beam.Beams:
    """The best `num_beams` continuations of each row; see `Strategy` and `generate`.

    The encoder, and the keys and values that all beams of a row read, are computed once a row.
    """
    step, cache = _decoding(
        params,
        encoder_tokens,
        encoder_mask,
        config=config,
        max_len=max_len,
        num_beams=num_beams,
    )
    penalties = {"power": beam.power_penalty, "gnmt": beam.gnmt_penalty}
    modes: dict[EarlyStopping, beam.EarlyStopping] = {
        True: "full",
        False: "heuristic",
        "never": "never",
    }
    return beam.search(
        step,
        cache,
        num_beams=num_beams,
        penalty=penalties[penalty_form](length_penalty),
        early_stopping=modes[early_stopping],
        limit=limit,
        max_len=max_len,
        **_ends(rows, config),
    )


def _decoding(params, encoder_tokens, encoder_mask, *, config, max_len, num_beams=1):
    """What a decoding loop takes of a model that has read its inputs: step and cache."""
    bound = model.bind(config, params)
    states = bound.encode(encoder_tokens, encoder_mask=encoder_mask)
    return bound.decoding(states, encoder_mask=encoder_mask, max_len=max_len, num_beams=num_beams)


def _ends(rows: Int[Array, " B"], config: T5Config) -> dict[str, Any]:
    """How the rows of a decoding loop begin and end."""
    return {
        "start_tokens": jnp.full(rows.shape, config.decoder_start_id, jnp.int32),
        "done": rows < 0,
        "eos_id": config.eos_id,
        "pad_id": config.pad_id,
    }
