"""Beam search: the likeliest sequences, as far as a few open ones at a time can find them."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5jax.decoding import automaton
from t5jax.decoding.logits_processors import Context, LogitsProcessors, automaton_ended
from t5jax.decoding.loop import EOS, LIMIT, STOP, StepFn

# Far below any log-probability, and finite, so that differences of two are numbers.
_NEVER = -1.0e9


StoppingRule = Literal["full", "heuristic", "never"]


"""When a row is done: as soon as it has enough sequences; when the best open one, if it ended now,
would not be among them; or when no continuation can be."""


class Beams(NamedTuple):
    """The best sequences of every row, best first."""

    tokens: Int[Array, "B K W"]
    """Start token, prefix and what was written; padding behind."""
    scores: Float[Array, "B K"]
    """Log-probability divided by the penalty of the length; -inf where there is no sequence."""
    log_probs: Float[Array, "B K"]
    """Of what was written behind the prefix, in nats, as the rules have left it."""
    finish: Int[Array, "B K"]
    """Why it has ended: EOS, LIMIT or STOP of `loop`."""
    lengths: Int[Array, "B K"]
    """Tokens behind the start token, the prefix among them."""
    failed: Int[Array, ""]
    """The first position with logits that are not finite; -1 if there is none."""


class _State(NamedTuple):
    position: Int[Array, ""]
    cache: Any
    written: Int[Array, "B K W"]
    log_probs: Float[Array, "B K"]
    allowed: Int[Array, "B K"]
    stopping: Int[Array, "B K"]
    ended: Beams
    done: Bool[Array, " B"]


def power_penalty(alpha: Float[Array, ""]) -> Callable[[Array], Array]:
    """Length to the power of `alpha`, as in Hugging Face transformers; 0 is none."""
    return lambda length: length.astype(jnp.float32) ** alpha


def gnmt_penalty(alpha: Float[Array, ""]) -> Callable[[Array], Array]:
    """((5 + length) / 6) ** alpha, as in T5X and T5's paper.  (arXiv:1609.08144, equation 14)"""
    return lambda length: ((5.0 + length.astype(jnp.float32)) / 6.0) ** alpha


def beam_search(
    step: StepFn,
    cache: Any,
    *,
    num_beams: int,
    penalty: Callable[[Int[Array, "..."]], Float[Array, "..."]],
    early_stopping: StoppingRule,
    rules: LogitsProcessors,
    start_tokens: Int[Array, " B"],
    prefix: Int[Array, "B P"],
    prefix_lens: Int[Array, " B"],
    done: Bool[Array, " B"],
    limit: Int[Array, ""],
    max_len: int,
    eos_id: int,
    pad_id: int,
) -> Beams:
    """Keeps the `num_beams` likeliest open sequences of every row, and the best that have ended.

    A sequence ends with EOS, which counts in its length, at a stop string, or at `limit`.  The
    prefix counts neither in its length nor in its log-probability.

    Args:
      step: from the last tokens, beams innermost, and the cache to the next logits and cache.
      cache: its first state; every array with axes has B * num_beams rows, beams innermost.
      num_beams: K, sequences kept, open and ended ones each.
      penalty: of a length, from 1 on; scores are log-probabilities divided by it.
      early_stopping: when a row is done.
      rules: what may be written.
      start_tokens: fed first.
      prefix: what every sequence begins with, behind the start token; padded on the right.
      prefix_lens: tokens of every row's prefix.
      done: rows that are not to be decoded at all.
      limit: most tokens of a sequence behind its prefix, at most `max_len`; a traced value.
      max_len: room for them.
      eos_id: ends a sequence; it is written.
      pad_id: fills a sequence behind its end.
    """
    batch, prefix_width = prefix.shape
    width = 1 + prefix_width + max_len
    limit = jnp.minimum(limit, max_len)
    shape = (batch, num_beams)
    given = jnp.concatenate([start_tokens[:, None], prefix], axis=1).astype(jnp.int32)
    given = jnp.pad(given, ((0, 0), (0, max_len)), constant_values=pad_id)
    written = jnp.broadcast_to(given[:, None], (*shape, width))
    # All beams start alike, so that only the first may go on.
    first = jnp.where(jnp.arange(num_beams)[None] == 0, 0.0, _NEVER)
    nothing = jnp.full(shape, -jnp.inf, jnp.float32)
    initial = jnp.zeros(shape, jnp.int32)
    state = _State(
        position=jnp.int32(0),
        cache=cache,
        written=written,
        log_probs=jnp.broadcast_to(first, shape).astype(jnp.float32),
        allowed=initial,
        stopping=initial,
        ended=Beams(written, nothing, nothing, initial, initial, jnp.int32(-1)),
        done=done,
    )

    def running(state: _State):
        more = (state.position < width - 1) & ~jnp.all(state.done)
        return more & (state.ended.failed < 0)

    def advance(state: _State) -> _State:
        position = state.position
        flat_written = state.written.reshape(-1, width)
        last = jax.lax.dynamic_index_in_dim(flat_written, position, axis=1, keepdims=False)
        logits, cache = step(last, state.cache)
        logits = logits.astype(jnp.float32)
        vocab_size = logits.shape[-1]
        count = position - prefix_lens
        context = Context(
            written=flat_written,
            length=position + 1,
            num_new=jnp.repeat(count, num_beams),
            limit=limit,
            states=state.allowed.reshape(-1),
        )
        scores = rules.apply(jax.nn.log_softmax(logits), context, eos_id=eos_id)
        scores = scores.reshape(batch, num_beams, vocab_size)
        in_prefix = count < 0
        if prefix_width:
            next_given = jax.lax.dynamic_index_in_dim(given, position + 1, axis=1)
            forced = jnp.where(jnp.arange(vocab_size)[None] == next_given, 0.0, -jnp.inf)
            scores = jnp.where(in_prefix[:, None, None], forced[:, None], scores)
        totals = scores + state.log_probs[..., None]

        # Twice as many as beams: of each open sequence one candidate at most has ended.
        num_candidates = min(2 * num_beams, num_beams * vocab_size)
        best, flat = jax.lax.top_k(totals.reshape(batch, -1), num_candidates)
        parents, tokens = flat // vocab_size, (flat % vocab_size).astype(jnp.int32)
        sequences = jnp.take_along_axis(state.written, parents[..., None], axis=1)
        sequences = jax.lax.dynamic_update_index_in_dim(sequences, tokens, position + 1, axis=2)
        allowed = jnp.take_along_axis(state.allowed, parents, axis=1)
        stopping = jnp.take_along_axis(state.stopping, parents, axis=1)
        beginning = in_prefix[:, None]
        finish = jnp.where(count + 1 == limit, LIMIT, 0)[:, None]
        if rules.automaton is not None:
            allowed = jnp.where(beginning, allowed, _advance(rules.automaton, allowed, tokens))
            finish = jnp.where(automaton_ended(rules.automaton, allowed) & ~beginning, STOP, finish)
        if rules.stop is not None:
            stopping = jnp.where(beginning, stopping, _advance(rules.stop, stopping, tokens))
            finish = jnp.where(automaton_ended(rules.stop, stopping) & ~beginning, STOP, finish)
        finish = jnp.where((tokens == eos_id) & ~beginning, EOS, finish)
        possible = best > _NEVER / 2
        ends = finish > 0

        # Those that ended count if they are among the best K, ended or not.
        length = jnp.maximum(count + 1, 1)
        ranked = jnp.arange(num_candidates)[None] < num_beams
        candidate = ends & possible & ranked & ~state.done[:, None]
        weighted = jnp.where(candidate, best / penalty(length)[:, None], -jnp.inf)
        finish = jnp.broadcast_to(finish, best.shape).astype(jnp.int32)
        lengths = jnp.full(best.shape, position + 1)
        ended = _best(num_beams, state.ended, (sequences, weighted, best, finish, lengths))
        highest = jnp.max(logits, axis=-1).reshape(shape)
        broken = jnp.any(~jnp.isfinite(highest) & ~state.done[:, None])
        ended = ended._replace(failed=jnp.where(broken, position, jnp.int32(-1)))

        open_log_probs, kept = jax.lax.top_k(jnp.where(ends, _NEVER, best), num_beams)
        parents = jnp.take_along_axis(parents, kept, axis=1)
        rows = jnp.arange(batch)[:, None] * num_beams + parents
        cache = jax.tree.map(lambda leaf: leaf[rows.reshape(-1)] if leaf.ndim else leaf, cache)
        if early_stopping == "full":
            done = jnp.all(ended.scores > -jnp.inf, axis=1)
        else:
            best_length = limit if early_stopping == "never" else length
            # Log-probabilities fall, and penalties may rise or fall with the length.
            reachable = jnp.maximum(
                open_log_probs[:, 0] / penalty(length), open_log_probs[:, 0] / penalty(best_length)
            )
            done = jnp.min(ended.scores, axis=1) >= reachable
        # Without an open sequence there is nothing to go on with.
        done = done | (open_log_probs[:, 0] <= _NEVER / 2)
        return _State(
            position=position + 1,
            cache=cache,
            written=jnp.take_along_axis(sequences, kept[..., None], axis=1),
            log_probs=open_log_probs,
            allowed=jnp.take_along_axis(allowed, kept, axis=1),
            stopping=jnp.take_along_axis(stopping, kept, axis=1),
            ended=ended,
            done=state.done | done,
        )

    return jax.lax.while_loop(running, advance, state).ended


def _advance(of: automaton.Automaton, states: Int[Array, "B C"], tokens: Int[Array, "B C"]):
    return automaton.advance_states(of, states.reshape(-1), tokens.reshape(-1)).reshape(
        states.shape
    )


def _best(num_beams: int, ended: Beams, new: tuple[Array, ...]) -> Beams:
    """The best of those that had ended and of new ones."""
    parts = [jnp.concatenate(pair, axis=1) for pair in zip(ended[:-1], new, strict=True)]
    _, index = jax.lax.top_k(parts[1], num_beams)
    tokens = jnp.take_along_axis(parts[0], index[..., None], axis=1)
    scores, log_probs, finish, lengths = (
        jnp.take_along_axis(part, index, axis=1) for part in parts[1:]
    )
    return Beams(tokens, scores, log_probs, finish, lengths, ended.failed)
