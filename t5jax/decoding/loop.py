"""The token loop: one jitted `while_loop` that stops when every row has ended."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5jax.decoding import automaton
from t5jax.decoding.logits_processors import Context, LogitsProcessors, automaton_ended

StepFn = Callable[[Int[Array, " B"], Any], tuple[Float[Array, "B V"], Any]]


ChooseFn = Callable[[Float[Array, "B V"], Int[Array, ""]], Int[Array, " B"]]


# Why a row has ended: EOS, the limit, an end of an automaton, or every token was ruled out.
GOING_ON, EOS, LIMIT, STOP, DEAD_END = range(5)


class LoopState(NamedTuple):
    """What a loop carries from token to token."""

    position: Int[Array, ""]
    """Of the token to be fed next, 0 for the start token."""
    written: Int[Array, "B W"]
    """Start token, prefix, and what was written; padding behind."""
    finish: Int[Array, " B"]
    """Why a row has ended; GOING_ON for those that have not."""
    lengths: Int[Array, " B"]
    """Tokens of a row behind the start token, its prefix among them."""
    allowed: Int[Array, " B"]
    """States of the automaton of the rules."""
    stopping: Int[Array, " B"]
    """States of the automaton that looks for stop strings."""
    failed: Int[Array, ""]
    """The first position with logits that are not finite; -1 if there is none."""
    cache: Any


def init_loop(
    cache: Any,
    *,
    start_tokens: Int[Array, " B"],
    prefix: Int[Array, "B P"],
    done: Bool[Array, " B"],
    max_len: int,
    pad_id: int,
) -> LoopState:
    """The state before anything is written.

    Args:
      cache: of the step that is to be taken.
      start_tokens: fed first.
      prefix: what every row begins with, behind the start token; padded on the right.
      done: rows that are not to be decoded at all, such as those that only fill up a batch.
      max_len: room for tokens behind the prefix.
      pad_id: fills a row behind its end.
    """
    batch = len(start_tokens)
    written = jnp.concatenate(
        [
            start_tokens[:, None].astype(jnp.int32),
            prefix.astype(jnp.int32),
            jnp.full((batch, max_len), pad_id, jnp.int32),
        ],
        axis=1,
    )
    return LoopState(
        position=jnp.int32(0),
        written=written,
        finish=jnp.where(done, LIMIT, GOING_ON),
        lengths=jnp.zeros((batch,), jnp.int32),
        allowed=jnp.zeros((batch,), jnp.int32),
        stopping=jnp.zeros((batch,), jnp.int32),
        failed=jnp.int32(-1),
        cache=cache,
    )


def decode_loop(
    step: StepFn,
    state: LoopState,
    *,
    choose: ChooseFn,
    rules: LogitsProcessors,
    prefix_lens: Int[Array, " B"],
    limit: Int[Array, ""],
    most: Int[Array, ""] | int,
    eos_id: int,
    pad_id: int,
) -> LoopState:
    """Feeds each chosen token back until all rows have ended.

    Args:
      step: from the last tokens and the cache to the next logits and cache; any model.
      state: from `init_loop`, or from here.
      choose: from scores and the position, 0 for the start token, to the next tokens, such as
        `greedy`.
      rules: what may be written.
      prefix_lens: tokens of every row's prefix.
      limit: most tokens a row may get behind its prefix; a traced value, so that one compiled loop
        serves all.
      most: most tokens to write in this call.
      eos_id: ends a row; it is written.
      pad_id: fills a row behind its end.
    """
    last_position = jnp.minimum(state.position + most, state.written.shape[1] - 1)

    def running(state: LoopState):
        going_on = jnp.any(state.finish == GOING_ON)
        return (state.position < last_position) & going_on & (state.failed < 0)

    def advance(state: LoopState) -> LoopState:
        position = state.position
        going_on = state.finish == GOING_ON
        last = jax.lax.dynamic_index_in_dim(state.written, position, axis=1, keepdims=False)
        logits, cache = step(last, state.cache)
        logits = logits.astype(jnp.float32)
        count = position - prefix_lens
        context = Context(state.written, position + 1, count, limit, state.allowed)
        scores = rules.apply(logits, context, eos_id=eos_id)
        chosen = choose(scores, position).astype(jnp.int32)
        given = jax.lax.dynamic_index_in_dim(state.written, position + 1, axis=1, keepdims=False)
        in_prefix = count < 0
        dead = ~in_prefix & (jnp.max(scores, axis=-1) == -jnp.inf)
        chosen = jnp.where(dead | ~going_on, jnp.int32(pad_id), chosen)
        chosen = jnp.where(in_prefix & going_on, given, chosen)
        written = jax.lax.dynamic_update_index_in_dim(state.written, chosen, position + 1, axis=1)

        finish = jnp.where(count + 1 >= limit, LIMIT, GOING_ON)
        allowed, stopping = state.allowed, state.stopping
        if rules.automaton is not None:
            following = automaton.advance_states(rules.automaton, allowed, chosen)
            allowed = jnp.where(in_prefix, allowed, following)
            finish = jnp.where(automaton_ended(rules.automaton, allowed) & ~in_prefix, STOP, finish)
        if rules.stop is not None:
            following = automaton.advance_states(rules.stop, stopping, chosen)
            stopping = jnp.where(in_prefix, stopping, following)
            finish = jnp.where(automaton_ended(rules.stop, stopping) & ~in_prefix, STOP, finish)
        finish = jnp.where(~in_prefix & (chosen == eos_id), EOS, finish)
        finish = jnp.where(dead, DEAD_END, finish)
        # NaN and infinity pass through a maximum.
        broken = jnp.any(going_on & ~jnp.isfinite(jnp.max(logits, axis=-1)))
        return LoopState(
            position=position + 1,
            written=written,
            finish=jnp.where(going_on, finish, state.finish),
            lengths=jnp.where(going_on & ~dead, position + 1, state.lengths),
            allowed=allowed,
            stopping=stopping,
            failed=jnp.where(broken, position, state.failed),
            cache=cache,
        )

    return jax.lax.while_loop(running, advance, state)
