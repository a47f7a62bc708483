"""Beam search: the likeliest sequences, as far as a few open ones at a time can find them."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5jax.decode.loop import Step

# Far below any log-probability, and finite, so that differences of two are numbers.
_NEVER = -1.0e9

EarlyStopping = Literal["full", "heuristic", "never"]
"""When a row is done: as soon as it has enough sequences; when the best open one, if it ended now,
would not be among them; or when no continuation can be."""


class Beams(NamedTuple):
    """The best sequences of every row, best first."""

    tokens: Int[Array, "B K max_len"]
    scores: Float[Array, "B K"]
    """Log-probability divided by the penalty of the length."""
    log_probs: Float[Array, "B K"]
    """Of the whole sequence, in nats."""


class _State(NamedTuple):
    length: Int[Array, ""]
    last: Int[Array, "B K"]
    cache: Any
    open_tokens: Int[Array, "B K max_len"]
    open_log_probs: Float[Array, "B K"]
    ended: Beams
    done: Bool[Array, " B"]


def power_penalty(alpha: Float[Array, ""]) -> Callable[[Array], Array]:
    """Length to the power of `alpha`, as in Hugging Face transformers; 0 is none."""
    return lambda length: length.astype(jnp.float32) ** alpha


def gnmt_penalty(alpha: Float[Array, ""]) -> Callable[[Array], Array]:
    """((5 + length) / 6) ** alpha, as in T5X and T5's paper.  (arXiv:1609.08144, equation 14)"""
    return lambda length: ((5.0 + length.astype(jnp.float32)) / 6.0) ** alpha


def search(
    step: Step,
    cache: Any,
    *,
    num_beams: int,
    penalty: Callable[[Int[Array, ""]], Float[Array, ""]],
    early_stopping: EarlyStopping,
    start_tokens: Int[Array, " B"],
    done: Bool[Array, " B"],
    limit: Int[Array, ""],
    max_len: int,
    eos_id: int,
    pad_id: int,
) -> Beams:
    """Keeps the `num_beams` likeliest open sequences of every row, and the best that have ended.

    A sequence ends with EOS, which counts in its length, or at `limit`.

    Args:
      step: from the last tokens, beams innermost, and the cache to the next logits and cache.
      cache: its first state; every array with axes has B * num_beams rows, beams innermost.
      num_beams: K, sequences kept, open and ended ones each.
      penalty: of a length, from 1 on; scores are log-probabilities divided by it.
      early_stopping: when a row is done.
      start_tokens: fed first, not returned.
      done: rows that are not to be decoded at all.
      limit: most tokens of a sequence, at most `max_len`; a traced value.
      max_len: width of the result.
      eos_id: ends a sequence; it is returned.
      pad_id: fills a sequence behind its end.
    """
    batch = start_tokens.shape[0]
    limit = jnp.minimum(limit, max_len)
    empty = jnp.full((batch, num_beams, max_len), pad_id, jnp.int32)
    # All beams start alike, so that only the first may go on.
    first = jnp.where(jnp.arange(num_beams)[None] == 0, 0.0, _NEVER)
    nothing = jnp.full((batch, num_beams), -jnp.inf, jnp.float32)
    state = _State(
        length=jnp.int32(0),
        last=jnp.broadcast_to(start_tokens[:, None], (batch, num_beams)).astype(jnp.int32),
        cache=cache,
        open_tokens=empty,
        open_log_probs=jnp.broadcast_to(first, (batch, num_beams)).astype(jnp.float32),
        ended=Beams(empty, nothing, nothing),
        done=done,
    )

    def running(state):
        return (state.length < limit) & ~jnp.all(state.done)

    def advance(state):
        logits, cache = step(state.last.reshape(-1), state.cache)
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
        log_probs = log_probs.reshape(batch, num_beams, -1) + state.open_log_probs[..., None]
        vocab_size = log_probs.shape[-1]
        # Twice as many as beams: of each open sequence one candidate at most has ended.
        count = min(2 * num_beams, num_beams * vocab_size)
        best, flat = jax.lax.top_k(log_probs.reshape(batch, -1), count)
        parents, tokens = flat // vocab_size, (flat % vocab_size).astype(jnp.int32)
        sequences = jnp.take_along_axis(state.open_tokens, parents[..., None], axis=1)
        sequences = jax.lax.dynamic_update_slice(
            sequences, tokens[..., None], (jnp.int32(0), jnp.int32(0), state.length)
        )
        length = state.length + 1
        ends = (tokens == eos_id) | (length == limit)

        # Those that ended count if they are among the best K, ended or not.
        counts = ends & (jnp.arange(count)[None] < num_beams) & ~state.done[:, None]
        candidate = counts & (best > _NEVER / 2)
        scores = jnp.where(candidate, best / penalty(length), -jnp.inf)
        merged = Beams(
            *(
                jnp.concatenate(pair, axis=1)
                for pair in zip(state.ended, Beams(sequences, scores, best), strict=True)
            )
        )
        ended = _take(merged, jax.lax.top_k(merged.scores, num_beams)[1])

        open_log_probs, kept = jax.lax.top_k(jnp.where(ends, _NEVER, best), num_beams)
        rows = jnp.arange(batch)[:, None] * num_beams + jnp.take_along_axis(parents, kept, axis=1)
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
        return _State(
            length=length,
            last=jnp.take_along_axis(tokens, kept, axis=1),
            cache=cache,
            open_tokens=jnp.take_along_axis(sequences, kept[..., None], axis=1),
            open_log_probs=open_log_probs,
            ended=ended,
            done=state.done | done,
        )

    return jax.lax.while_loop(running, advance, state).ended


def _take(beams: Beams, index: Int[Array, "B K"]) -> Beams:
    return Beams(
        jnp.take_along_axis(beams.tokens, index[..., None], axis=1),
        jnp.take_along_axis(beams.scores, index, axis=1),
        jnp.take_along_axis(beams.log_probs, index, axis=1),
    )
