"""Compiled generation: what a model reads once, and the loops that write behind it."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5jax.decoding import (
    Beams,
    LogitsProcessors,
    LoopState,
    StoppingRule,
    beam_search,
    decode_loop,
    gnmt_penalty,
    greedy,
    init_loop,
    min_p,
    power_penalty,
    sampler,
    top_k,
    top_p,
    typical,
)
from t5jax.generation.config import EarlyStopping
from t5jax.models import DecoderCache, DecodeStep, IncrementalDecoder, Params, T5Config, bind


@functools.partial(jax.jit, static_argnames=("config",))
def prepare_decoder(params: Params, *, config: T5Config) -> IncrementalDecoder:
    """The decoder's weights as a loop wants them, to be kept between calls."""
    return bind(config, params).incremental_decoder()


@functools.partial(jax.jit, static_argnames=("config", "max_len", "num_beams"))
def prefill(
    params: Params,
    stepper: IncrementalDecoder,
    encoder_tokens: Int[Array, "B S"],
    encoder_mask: Bool[Array, "B S"],
    *,
    config: T5Config,
    max_len: int,
    num_beams: int,
) -> tuple[DecodeStep, DecoderCache]:
    """What a loop needs to write behind some inputs.

    The encoder, and the keys and values that all rows of an input read, are computed once an input.

    Args:
      params: of the model.
      stepper: from `prepare_decoder`.
      encoder_tokens: input ids.
      encoder_mask: True on input ids that are not padding.
      config: of the model.
      max_len: most tokens that will be fed.
      num_beams: rows of the loop for each input.
    """
    states = bind(config, params).encode(encoder_tokens, encoder_mask=encoder_mask)
    return stepper.start(states, encoder_mask=encoder_mask, max_len=max_len, num_beams=num_beams)


@functools.partial(jax.jit, static_argnames=("config", "max_len"), donate_argnames=("cache",))
def start_loop(
    cache: DecoderCache,
    rows: Int[Array, " B"],
    prefix: Int[Array, "B P"],
    *,
    config: T5Config,
    max_len: int,
) -> LoopState:
    """The state of a loop before anything is written.

    Args:
      cache: from `prefill`.
      rows: a number for every row, negative in those that only fill up a batch.
      prefix: what every row begins with, padded on the right.
      config: of the model.
      max_len: room for tokens behind the prefix.
    """
    return init_loop(
        cache,
        start_tokens=jnp.full(rows.shape, config.decoder_start_id, jnp.int32),
        prefix=prefix,
        done=rows < 0,
        max_len=max_len,
        pad_id=config.pad_id,
    )


@functools.partial(jax.jit, static_argnames=("most_k",), donate_argnames=("state",))
def advance_loop(
    step: DecodeStep,
    state: LoopState,
    rows: Int[Array, " B"],
    samples: Int[Array, " B"],
    prefix_lens: Int[Array, " B"],
    rules: LogitsProcessors,
    draws: Mapping[str, Array],
    *,
    limit: Int[Array, ""],
    most: Int[Array, ""],
    most_k: int = 0,
) -> LoopState:
    """Writes on, greedily or by draws, until all rows have ended or `most` tokens are written.

    Args:
      step: from `prefill`.
      state: from `start_loop`, or from here.
      rows: a number for every input, which with the seed determines its draws.
      samples: which of several answers to its input a row is.
      prefix_lens: tokens of every row's prefix.
      rules: what may be written.
      draws: `Strategy.draws`; without any, the most likely token is taken.
      limit: most tokens a row gets behind its prefix.
      most: most tokens to write now.
      most_k: at least `draws["top_k"]`, if it is there; known when compiling.
    """
    config = step.decoder.config
    chooser = greedy
    if draws:
        seed = jax.random.key(draws["seed"])
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(seed, rows)
        keys = jax.vmap(jax.random.fold_in)(keys, samples)
        chooser = sampler(
            keys,
            temperature=draws["temperature"],
            truncation=functools.partial(_truncate, draws=draws, most_k=most_k),
        )
    return decode_loop(
        step,
        state,
        sample_fn=chooser,
        processors=rules,
        prefix_lens=prefix_lens,
        max_new_tokens=limit,
        max_steps=most,
        eos_id=config.eos_id,
        pad_id=config.pad_id,
    )


def _truncate(logits: Float[Array, "B V"], *, draws: Mapping[str, Array], most_k: int) -> Array:
    # In the order in which Hugging Face transformers does it.
    if "top_k" in draws:
        logits = top_k(logits, draws["top_k"], max_k=most_k)
    if "top_p" in draws:
        logits = top_p(logits, draws["top_p"])
    if "min_p" in draws:
        logits = min_p(logits, draws["min_p"])
    if "typical_p" in draws:
        logits = typical(logits, draws["typical_p"])
    return logits


@functools.partial(
    jax.jit,
    static_argnames=("max_len", "num_beams", "penalty_form", "early_stopping"),
)
def search_beams(
    step: DecodeStep,
    cache: DecoderCache,
    rows: Int[Array, " B"],
    prefix: Int[Array, "B P"],
    prefix_lens: Int[Array, " B"],
    rules: LogitsProcessors,
    *,
    limit: Int[Array, ""],
    length_penalty: Float[Array, ""],
    max_len: int,
    num_beams: int,
    penalty_form: str,
    early_stopping: EarlyStopping,
) -> Beams:
    """Search for the best `num_beams` continuations of each input."""
    config = step.decoder.config
    penalties = {"power": power_penalty, "gnmt": gnmt_penalty}
    modes: dict[EarlyStopping, StoppingRule] = {
        True: "full",
        False: "heuristic",
        "never": "never",
    }
    return beam_search(
        step,
        cache,
        num_beams=num_beams,
        penalty=penalties[penalty_form](length_penalty),
        early_stopping=modes[early_stopping],
        processors=rules,
        start_tokens=jnp.full(rows.shape, config.decoder_start_id, jnp.int32),
        prefix=prefix,
        prefix_lens=prefix_lens,
        done=rows < 0,
        max_new_tokens=limit,
        max_len=max_len,
        eos_id=config.eos_id,
        pad_id=config.pad_id,
    )
