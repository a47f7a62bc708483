"""The decoding loop of greedy choice and sampling, one `while_loop` over any step."""

import enum
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from t5jax.decoding.automaton import Automaton, advance_states, is_end
from t5jax.decoding.logits_processors import Context, LogitsProcessors

StepFn = Callable[[Int[Array, " B"], PyTree], tuple[Float[Array, "B V"], PyTree]]
"""One step of a model, `step(tokens, cache) -> (logits, cache)`.

tokens: [B] int32, the last token of every row.
cache: any pytree, returned with the same structure, shapes and dtypes; the loops never look into
  it, so it may count positions as a scalar or row by row.  Beam search gathers the leading axis of
  its arrays, which must have size B, and leaves scalars alone.
logits: [B, V] floating point, of the tokens that come next.

The loops feed all rows at the same position, counted by a scalar of their own.
"""


SampleFn = Callable[[Float[Array, "B V"], Int[Array, ""]], Int[Array, " B"]]
"""Choice of the next tokens, `sample_fn(scores, position) -> tokens`, such as `greedy`.

scores: [B, V] float32, the logits after all logits processors.
position: scalar int32, 0 after the start token.
tokens: [B] integer.
"""


def greedy(logits: Float[Array, "B V"], position: Int[Array, ""]) -> Int[Array, " B"]:
    """Return the most likely tokens; the lowest id on a tie.

    Args:
      logits: [B, V] float32.
      position: unused; part of the signature of a `SampleFn`.
    Returns:
      [B] int32.
    """
    del position
    # Same as `argmax`, which jax 0.10.2 does not vectorize on a CPU, unlike these two reductions;
    # measured by the greedy rows of benchmarks/decode.py.
    best = jnp.max(logits, axis=-1, keepdims=True)
    vocab_size = logits.shape[-1]
    ids = jnp.where(logits == best, jnp.arange(vocab_size)[None], vocab_size - 1)
    return jnp.min(ids, axis=-1)


class Finish(enum.IntEnum):
    """Reason for which a row has ended."""

    GOING_ON = 0
    """It has not ended."""
    EOS = 1
    """It generated EOS."""
    LIMIT = 2
    """It reached the maximum number of tokens."""
    STOP = 3
    """An automaton reached an end, such as a stop string."""
    DEAD_END = 4
    """Every token was ruled out."""


class LoopState(NamedTuple):
    """Carry of the token loop.

    Attributes:
      position: Position of the token to be fed next, 0 for the start token.
      sequences: Start token, prefix and generated tokens, padded on the right; W = 1 + P +
        max_len.
      finish: `Finish` of every row.
      lengths: Number of tokens after the start token, the prefix included.
      automaton_states: State of `LogitsProcessors.automaton`; 0 if it is not set.
      stop_states: State of `LogitsProcessors.stop_automaton`; 0 if it is not set.
      failed: First position with logits that are not finite; -1 if there is none.
      cache: Cache of the step.
    """

    position: Int[Array, ""]
    sequences: Int[Array, "B W"]
    finish: Int[Array, " B"]
    lengths: Int[Array, " B"]
    automaton_states: Int[Array, " B"]
    stop_states: Int[Array, " B"]
    failed: Int[Array, ""]
    cache: PyTree


def init_loop(
    cache: PyTree,
    *,
    start_tokens: Int[Array, " B"],
    prefix: Int[Array, "B P"],
    done: Bool[Array, " B"],
    max_len: int,
    pad_id: int,
) -> LoopState:
    """Return the state of a loop that has generated nothing.

    Args:
      cache: initial cache of the step.
      start_tokens: [B] the tokens fed first.
      prefix: [B, P] the tokens that every row begins with, padded on the right.
      done: [B] True for rows that are not decoded, such as those that pad a batch.
      max_len: number of tokens that `sequences` has room for after the prefix.
      pad_id: fills a row after its end.
    """
    batch = len(start_tokens)
    sequences = jnp.concatenate(
        [
            start_tokens[:, None].astype(jnp.int32),
            prefix.astype(jnp.int32),
            jnp.full((batch, max_len), pad_id, jnp.int32),
        ],
        axis=1,
    )
    return LoopState(
        position=jnp.int32(0),
        sequences=sequences,
        finish=jnp.where(done, Finish.LIMIT, Finish.GOING_ON),
        lengths=jnp.zeros((batch,), jnp.int32),
        automaton_states=jnp.zeros((batch,), jnp.int32),
        stop_states=jnp.zeros((batch,), jnp.int32),
        failed=jnp.int32(-1),
        cache=cache,
    )


def decode_loop(
    step: StepFn,
    state: LoopState,
    *,
    sample_fn: SampleFn,
    processors: LogitsProcessors,
    prefix_lens: Int[Array, " B"],
    max_new_tokens: Int[Array, ""],
    max_steps: Int[Array, ""] | int,
    eos_id: int,
    pad_id: int,
) -> LoopState:
    """Generate tokens, feeding each back to the step, until all rows have ended.

    Args:
      step: the model.
      state: from `init_loop`, or from an earlier call.
      sample_fn: chooses the next tokens.
      processors: change the logits before tokens are chosen.
      prefix_lens: [B] number of tokens in every row's prefix.
      max_new_tokens: maximum number of tokens of a row after its prefix; traced, so that one
        compiled loop serves all values.
      max_steps: maximum number of steps of this call.
      eos_id: ends a row; it is part of the sequence.
      pad_id: fills a row after its end.
    Returns:
      The state after the last step.
    """
    last_position = jnp.minimum(state.position + max_steps, state.sequences.shape[1] - 1)

    def running(state: LoopState) -> Bool[Array, ""]:
        going_on = jnp.any(state.finish == Finish.GOING_ON)
        return (state.position < last_position) & going_on & (state.failed < 0)

    def advance(state: LoopState) -> LoopState:
        position = state.position
        going_on = state.finish == Finish.GOING_ON
        last = jax.lax.dynamic_index_in_dim(state.sequences, position, axis=1, keepdims=False)
        logits, cache = step(last, state.cache)
        logits = logits.astype(jnp.float32)
        num_new = position - prefix_lens  # negative within the prefix
        in_prefix = num_new < 0
        context = Context(
            state.sequences, position + 1, num_new, max_new_tokens, state.automaton_states
        )
        scores = processors(logits, context, eos_id=eos_id)

        tokens = sample_fn(scores, position).astype(jnp.int32)
        next_in_prefix = jax.lax.dynamic_index_in_dim(
            state.sequences, position + 1, axis=1, keepdims=False
        )
        dead = ~in_prefix & (jnp.max(scores, axis=-1) == -jnp.inf)
        tokens = jnp.where(dead | ~going_on, jnp.int32(pad_id), tokens)
        tokens = jnp.where(in_prefix & going_on, next_in_prefix, tokens)
        sequences = jax.lax.dynamic_update_index_in_dim(
            state.sequences, tokens, position + 1, axis=1
        )

        finish = jnp.where(num_new + 1 >= max_new_tokens, Finish.LIMIT, Finish.GOING_ON)
        automaton_states, finish = advance_automaton(
            processors.automaton, state.automaton_states, tokens, finish, in_prefix=in_prefix
        )
        stop_states, finish = advance_automaton(
            processors.stop_automaton, state.stop_states, tokens, finish, in_prefix=in_prefix
        )
        finish = jnp.where(~in_prefix & (tokens == eos_id), Finish.EOS, finish)
        finish = jnp.where(dead, Finish.DEAD_END, finish)
        # A maximum propagates NaN and infinity.
        not_finite = jnp.any(going_on & ~jnp.isfinite(jnp.max(logits, axis=-1)))
        return LoopState(
            position=position + 1,
            sequences=sequences,
            finish=jnp.where(going_on, finish, state.finish),
            lengths=jnp.where(going_on & ~dead, position + 1, state.lengths),
            automaton_states=automaton_states,
            stop_states=stop_states,
            failed=jnp.where(not_finite, position, state.failed),
            cache=cache,
        )

    return jax.lax.while_loop(running, advance, state)


def advance_automaton(
    automaton: Automaton | None,
    states: Int[Array, "*B"],
    tokens: Int[Array, "*B"],
    finish: Int[Array, "*#B"],
    *,
    in_prefix: Bool[Array, "*#B"],
) -> tuple[Int[Array, "*B"], Int[Array, "*#B"]]:
    """Feed the next tokens to an automaton, and end the rows in which it reaches an end.

    Args:
      automaton: the transitions; None changes nothing.
      states: state of the automaton in every row.
      tokens: next token of every row.
      finish: `Finish` of every row so far.
      in_prefix: True where the token belongs to the prefix, which the automaton does not read.
    Returns:
      The states after the tokens, and `finish` with STOP in the rows that reach an end.
    """
    if automaton is None:
        return states, finish
    advanced = advance_states(automaton, states.reshape(-1), tokens.reshape(-1))
    states = jnp.where(in_prefix, states, advanced.reshape(states.shape))
    return states, jnp.where(is_end(automaton, states) & ~in_prefix, Finish.STOP, finish)
