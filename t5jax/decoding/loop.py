"""The decoding loop for greedy decoding and sampling: one `while_loop` over any step."""

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
cache: any pytree, returned with the same structure, shapes and dtypes.  The loops treat it as
  opaque, so it may hold a scalar position or one per row.  Beam search gathers its arrays along
  their leading axis, which must have size B, and leaves scalars alone.
logits: [B, V] floating point, for the next token.

The loops keep a separate scalar position, the same for all rows.
"""


SampleFn = Callable[[Float[Array, "B V"], Int[Array, ""]], Int[Array, " B"]]
"""Function that chooses the next tokens, `sample_fn(scores, position) -> tokens`, like `greedy`.

scores: [B, V] float32, the logits after all logits processors.
position: scalar int32, 0 after the start token.
tokens: [B] integer.
"""


def greedy(logits: Float[Array, "B V"], position: Int[Array, ""]) -> Int[Array, " B"]:
    """Return the most likely token of every row, the lowest id on a tie.

    Args:
      logits: [B, V] float32.
      position: ignored; part of the `SampleFn` signature.
    Returns:
      [B] int32.

    Examples:
      >>> t5jax.decoding.greedy(jnp.array([[0.0, 2.0, 2.0]]), jnp.int32(0)).tolist()
      [1]
    """
    del position
    # Same as `argmax`, which jax 0.10.2 does not vectorize on CPU, unlike these two reductions
    # (the greedy rows of benchmarks/decode.py).
    best = jnp.max(logits, axis=-1, keepdims=True)
    vocab_size = logits.shape[-1]
    ids = jnp.where(logits == best, jnp.arange(vocab_size)[None], vocab_size - 1)
    return jnp.min(ids, axis=-1)


class Finish(enum.IntEnum):
    """Reason why a row has ended.

    Attributes:
      GOING_ON: 0, the row has not ended.
      EOS: 1, it generated EOS.
      LIMIT: 2, it reached the maximum number of tokens.
      STOP: 3, an automaton reached an end, such as a stop string.
      DEAD_END: 4, every token was ruled out.

    Examples:
      >>> t5jax.decoding.Finish(2).name
      'LIMIT'
    """

    GOING_ON = 0
    EOS = 1
    LIMIT = 2
    STOP = 3
    DEAD_END = 4


class LoopState(NamedTuple):
    """Carry of the decoding loop.

    Attributes:
      position: position of the token to feed next, 0 for the start token.
      sequences: start token, prefix and generated tokens, padded on the right; W = 1 + P + max_len.
      finish: `Finish` of every row.
      lengths: number of tokens after the start token, including the prefix.
      automaton_states: states of `LogitsProcessors.automaton`; 0 if it is None.
      stop_states: states of `LogitsProcessors.stop_automaton`; 0 if it is None.
      failed: first position with non-finite logits, or -1.
      cache: cache of the step.

    Examples:
      >>> state = t5jax.decoding.init_loop(
      ...     (), start_tokens=jnp.array([0]), prefix=jnp.array([[7, 8]]), done=jnp.array([False]),
      ...     max_len=3, pad_id=0)
      >>> state.sequences.shape, int(state.position), state.lengths.tolist()
      ((1, 6), 0, [0])
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
    """Return the initial state of a decoding loop.

    Args:
      cache: initial cache of the step.
      start_tokens: [B] tokens fed first.
      prefix: [B, P] tokens that every row starts with, padded on the right.
      done: [B] True for rows that are not decoded, such as batch padding.
      max_len: capacity of `sequences` after the prefix, in tokens.
      pad_id: fills a row after its end.
    Returns:
      The state at position 0.

    Examples:
      >>> state = t5jax.decoding.init_loop(
      ...     (), start_tokens=jnp.array([0]), prefix=jnp.array([[7, 8]]), done=jnp.array([False]),
      ...     max_len=3, pad_id=0)
      >>> state.sequences.tolist()
      [[0, 7, 8, 0, 0, 0]]
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
      step: model step.
      state: from `init_loop` or an earlier call.
      sample_fn: chooses the next tokens.
      processors: applied to the logits before `sample_fn`.
      prefix_lens: [B] number of tokens in every row's prefix.
      max_new_tokens: maximum number of tokens per row after its prefix; traced, so that changing
        it does not recompile.
      max_steps: maximum number of steps in this call.
      eos_id: ends a row and is part of the sequence.
      pad_id: fills a row after its end.
    Returns:
      The state after the last step.

    Examples:
      >>> table = jax.nn.one_hot(jnp.array([2, 0, 3, 1]), 4)  # 0 -> 2 -> 3 -> 1
      >>> state = t5jax.decoding.init_loop(
      ...     (), start_tokens=jnp.array([0]), prefix=jnp.zeros((1, 0), jnp.int32),
      ...     done=jnp.array([False]), max_len=5, pad_id=0)
      >>> state = t5jax.decoding.decode_loop(
      ...     lambda tokens, cache: (table[tokens], cache), state,
      ...     sample_fn=t5jax.decoding.greedy, processors=t5jax.decoding.LogitsProcessors(),
      ...     prefix_lens=jnp.array([0]), max_new_tokens=jnp.int32(5), max_steps=5,
      ...     eos_id=1, pad_id=0)
      >>> state.sequences.tolist()
      [[0, 2, 3, 1, 0, 0]]
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
        # max propagates NaN and infinity.
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
    """Advance an automaton by the next tokens, and stop rows that reach an end.

    Args:
      automaton: the transitions; None changes nothing.
      states: automaton state of every row.
      tokens: next token of every row.
      finish: current `Finish` of every row.
      in_prefix: True where the token belongs to the prefix, which the automaton skips.
    Returns:
      The next states, and `finish` with STOP in rows that reach an end.
    """
    if automaton is None:
        return states, finish
    advanced = advance_states(automaton, states.reshape(-1), tokens.reshape(-1))
    states = jnp.where(in_prefix, states, advanced.reshape(states.shape))
    return states, jnp.where(is_end(automaton, states) & ~in_prefix, Finish.STOP, finish)
