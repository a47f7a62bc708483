"""Beam search: approximate search for the most likely sequences.

Shape letters: B inputs, K beams, C = 2 K candidates, P prefix width, W = 1 + P + max_len sequence
width, V vocabulary.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from t5jax.decoding.logits_processors import Context, LogitsProcessors
from t5jax.decoding.loop import Finish, StepFn, advance_automaton

# Below any log-probability, but finite, so that differences are not NaN.
_NEVER = -1.0e9
StoppingRule = Literal["full", "heuristic", "never"]
"""Condition that ends the search of an input, `early_stopping` in transformers.

"full" (True): it has K finished sequences.
"heuristic" (False): its best open sequence, if it ended now, would not be among the K best.
"never": no continuation of an open sequence can be among the K best.
"""


class Beams(NamedTuple):
    """The best finished sequences of every input, in descending order of score.

    Attributes:
      tokens: start token, prefix and generated tokens, padded on the right.
      scores: log-probability divided by the length penalty; -inf where there is no sequence.
      log_probs: log-probability of the tokens after the prefix, in nats, after logits processors.
      finish: `Finish.EOS`, `LIMIT` or `STOP`.
      lengths: number of tokens after the start token, including the prefix.
      failed: first position with non-finite logits, or -1.

    Examples:
      >>> beams = t5jax.decoding.Beams(
      ...     tokens=jnp.array([[[0, 5, 6, 1], [0, 5, 1, 0]]]), scores=jnp.array([[-0.4, -0.6]]),
      ...     log_probs=jnp.array([[-1.2, -1.2]]), finish=jnp.array([[1, 1]]),
      ...     lengths=jnp.array([[3, 2]]), failed=jnp.int32(-1))
      >>> [row[1 : 1 + n].tolist() for row, n in zip(beams.tokens[0], beams.lengths[0])]
      [[5, 6, 1], [5, 1]]
    """

    tokens: Int[Array, "B K W"]
    scores: Float[Array, "B K"]
    log_probs: Float[Array, "B K"]
    finish: Int[Array, "B K"]
    lengths: Int[Array, "B K"]
    failed: Int[Array, ""]


class _Open(NamedTuple):
    """K open sequences or C candidates, in descending order of `log_probs`."""

    tokens: Int[Array, "B C W"]
    log_probs: Float[Array, "B C"]
    automaton_states: Int[Array, "B C"]
    stop_states: Int[Array, "B C"]


class _State(NamedTuple):
    """Carry of the search."""

    position: Int[Array, ""]
    cache: PyTree
    beams: _Open
    finished: Beams
    done: Bool[Array, " B"]


def power_penalty(alpha: Float[Array, ""]) -> Callable[[Array], Array]:
    """Return the length penalty of transformers, `length ** alpha`.

    Args:
      alpha: exponent; 0 disables the penalty, larger values favor longer sequences.
    Returns:
      A function from lengths, >= 1, to float32 divisors of log-probabilities.

    Examples:
      >>> t5jax.decoding.power_penalty(jnp.float32(1.0))(jnp.array([1, 7])).tolist()
      [1.0, 7.0]
    """
    return lambda length: length.astype(jnp.float32) ** alpha


def gnmt_penalty(alpha: Float[Array, ""]) -> Callable[[Array], Array]:
    """Return the length penalty of T5X and the T5 paper, `((5 + length) / 6) ** alpha`.

    arXiv:1609.08144, equation 14.

    Args:
      alpha: exponent; 0 disables the penalty, larger values favor longer sequences.
    Returns:
      A function from lengths, >= 1, to float32 divisors of log-probabilities.

    Examples:
      >>> t5jax.decoding.gnmt_penalty(jnp.float32(1.0))(jnp.array([1, 7])).tolist()
      [1.0, 2.0]
    """
    return lambda length: ((5.0 + length.astype(jnp.float32)) / 6.0) ** alpha


def beam_search(
    step: StepFn,
    cache: PyTree,
    *,
    num_beams: int,
    penalty: Callable[[Int[Array, "..."]], Float[Array, "..."]],
    early_stopping: StoppingRule,
    processors: LogitsProcessors,
    start_tokens: Int[Array, " B"],
    prefix: Int[Array, "B P"],
    prefix_lens: Int[Array, " B"],
    done: Bool[Array, " B"],
    max_new_tokens: Int[Array, ""],
    max_len: int,
    eos_id: int,
    pad_id: int,
) -> Beams:
    """Search for the most likely sequences of every input, keeping K open ones.

    A sequence ends with EOS, which counts in its length, at an end of an automaton, or at
    `max_new_tokens`.  The prefix counts neither in the length nor in the log-probability.

    Args:
      step: model step over B * K rows, the beams of an input adjacent.
      cache: initial cache; every array that is not a scalar has B * K rows.
      num_beams: K, the number of open and of finished sequences per input.
      penalty: maps lengths, >= 1, to divisors; score = log-probability / penalty(length).
      early_stopping: condition that ends the search of an input.
      processors: applied to the log-probabilities of every step.
      start_tokens: [B] tokens fed first.
      prefix: [B, P] tokens that every sequence starts with, padded on the right.
      prefix_lens: [B] number of tokens in every prefix.
      done: [B] True for inputs that are not decoded.
      max_new_tokens: maximum number of tokens after the prefix, at most `max_len`; traced.
      max_len: capacity of `tokens` after the prefix, in tokens.
      eos_id: ends a sequence and is part of it.
      pad_id: fills a sequence after its end.
    Returns:
      The K best finished sequences of every input.

    Examples:
      >>> probs = jnp.array([[0, 0, 0.6, 0.4], [0, 1, 0, 0], [0, 0.5, 0.5, 0], [0, 1, 0, 0]])
      >>> beams = t5jax.decoding.beam_search(
      ...     lambda tokens, cache: (jnp.log(probs)[tokens], cache), (), num_beams=2,
      ...     penalty=t5jax.decoding.power_penalty(jnp.float32(0.0)), early_stopping="never",
      ...     processors=t5jax.decoding.LogitsProcessors(), start_tokens=jnp.array([0]),
      ...     prefix=jnp.zeros((1, 0), jnp.int32), prefix_lens=jnp.array([0]),
      ...     done=jnp.array([False]), max_new_tokens=jnp.int32(3), max_len=3, eos_id=1, pad_id=0)
      >>> beams.tokens[0, 0].tolist()  # greedy decoding would start with 2
      [0, 3, 1, 0]
    """
    batch, prefix_width = prefix.shape
    width = 1 + prefix_width + max_len
    max_new_tokens = jnp.minimum(max_new_tokens, max_len)
    prompt = jnp.concatenate([start_tokens[:, None], prefix], axis=1).astype(jnp.int32)
    prompt = jnp.pad(prompt, ((0, 0), (0, max_len)), constant_values=pad_id)

    def running(state: _State) -> Bool[Array, ""]:
        open_inputs = (state.position < width - 1) & ~jnp.all(state.done)
        return open_inputs & (state.finished.failed < 0)

    def advance(state: _State) -> _State:
        position, beams = state.position, state.beams
        num_new = position - prefix_lens  # [B], negative within the prefix
        in_prefix = num_new < 0
        sequences = beams.tokens.reshape(-1, width)
        last = jax.lax.dynamic_index_in_dim(sequences, position, axis=1, keepdims=False)
        logits, cache = step(last, state.cache)
        logits = logits.astype(jnp.float32)
        context = Context(
            sequences=sequences,
            length=position + 1,
            num_new=jnp.repeat(num_new, num_beams),
            max_new_tokens=max_new_tokens,
            states=beams.automaton_states.reshape(-1),
        )
        log_probs = processors(jax.nn.log_softmax(logits), context, eos_id=eos_id)
        log_probs = log_probs.reshape(batch, num_beams, -1)
        if prefix_width:
            next_in_prefix = jax.lax.dynamic_index_in_dim(prompt, position + 1, axis=1)
            log_probs = _force(log_probs, next_in_prefix, in_prefix)

        candidates, parents, tokens = _expand(beams, log_probs, position)
        at_limit = num_new + 1 == max_new_tokens
        candidates, finish = _finish(candidates, tokens, in_prefix, at_limit, processors, eos_id)
        ended = finish > Finish.GOING_ON
        length = jnp.maximum(num_new + 1, 1)
        finished = _collect(
            state.finished,
            candidates,
            finish,
            ended & ~state.done[:, None],
            length=position + 1,
            penalty=penalty(length),
        )
        highest = jnp.max(logits, axis=-1).reshape(batch, num_beams)
        not_finite = jnp.any(~jnp.isfinite(highest) & ~state.done[:, None])
        finished = finished._replace(failed=jnp.where(not_finite, position, jnp.int32(-1)))

        beams, parents = _select_open(candidates, parents, ended, num_beams)
        done = _is_done(
            beams.log_probs[:, 0], finished.scores, early_stopping, penalty, length, max_new_tokens
        )
        return _State(
            position=position + 1,
            cache=_gather_cache(cache, parents),
            beams=beams,
            finished=finished,
            done=state.done | done,
        )

    state = _init_state(cache, prompt, num_beams, done)
    return jax.lax.while_loop(running, advance, state).finished


def _init_state(
    cache: PyTree, prompt: Int[Array, "B W"], num_beams: int, done: Bool[Array, " B"]
) -> _State:
    """Return the initial state, without finished sequences."""
    batch, width = prompt.shape
    shape = (batch, num_beams)
    tokens = jnp.broadcast_to(prompt[:, None], (*shape, width))
    # All beams are equal at first, so only one may be extended.
    first = jnp.where(jnp.arange(num_beams)[None] == 0, 0.0, _NEVER)
    log_probs = jnp.broadcast_to(first, shape).astype(jnp.float32)
    nothing = jnp.full(shape, -jnp.inf, jnp.float32)
    zeros = jnp.zeros(shape, jnp.int32)
    return _State(
        position=jnp.int32(0),
        cache=cache,
        beams=_Open(tokens, log_probs, automaton_states=zeros, stop_states=zeros),
        finished=Beams(tokens, nothing, nothing, zeros, zeros, failed=jnp.int32(-1)),
        done=done,
    )


def _force(
    log_probs: Float[Array, "B K V"], token: Int[Array, "B 1"], in_prefix: Bool[Array, " B"]
) -> Float[Array, "B K V"]:
    """Force the next token of the prefix in rows that are still within it."""
    vocab_size = log_probs.shape[-1]
    forced = jnp.where(jnp.arange(vocab_size)[None] == token, 0.0, -jnp.inf)
    return jnp.where(in_prefix[:, None, None], forced[:, None], log_probs)


def _expand(
    beams: _Open, log_probs: Float[Array, "B K V"], position: Int[Array, ""]
) -> tuple[_Open, Int[Array, "B C"], Int[Array, "B C"]]:
    """Extend every open sequence by one token, and keep the C best.

    At most one extension of each open sequence ends with EOS, so at least K of 2 K candidates
    continue.

    Args:
      beams: the K open sequences.
      log_probs: log-probability of every next token.
      position: position of the last token.
    Returns:
      The candidates, with the automaton states of their parents; their parent beams; and their
      last tokens.
    """
    batch, num_beams, vocab_size = log_probs.shape
    totals = log_probs + beams.log_probs[..., None]
    num_candidates = min(2 * num_beams, num_beams * vocab_size)
    best, index = jax.lax.top_k(totals.reshape(batch, -1), num_candidates)
    parents, tokens = index // vocab_size, (index % vocab_size).astype(jnp.int32)
    sequences = jnp.take_along_axis(beams.tokens, parents[..., None], axis=1)
    candidates = _Open(
        tokens=jax.lax.dynamic_update_index_in_dim(sequences, tokens, position + 1, axis=2),
        log_probs=best,
        automaton_states=jnp.take_along_axis(beams.automaton_states, parents, axis=1),
        stop_states=jnp.take_along_axis(beams.stop_states, parents, axis=1),
    )
    return candidates, parents, tokens


def _finish(
    candidates: _Open,
    tokens: Int[Array, "B C"],
    in_prefix: Bool[Array, " B"],
    at_limit: Bool[Array, " B"],
    processors: LogitsProcessors,
    eos_id: int,
) -> tuple[_Open, Int[Array, "B C"]]:
    """Advance the automata of all candidates by `tokens`, and return the `Finish` of each."""
    in_prefix = in_prefix[:, None]
    finish = jnp.where(at_limit, Finish.LIMIT, Finish.GOING_ON)[:, None]
    automaton_states, finish = advance_automaton(
        processors.automaton, candidates.automaton_states, tokens, finish, in_prefix=in_prefix
    )
    stop_states, finish = advance_automaton(
        processors.stop_automaton, candidates.stop_states, tokens, finish, in_prefix=in_prefix
    )
    finish = jnp.where((tokens == eos_id) & ~in_prefix, Finish.EOS, finish)
    candidates = candidates._replace(automaton_states=automaton_states, stop_states=stop_states)
    return candidates, finish


def _collect(
    finished: Beams,
    candidates: _Open,
    finish: Int[Array, "B C"],
    ended: Bool[Array, "B C"],
    *,
    length: Int[Array, ""],
    penalty: Float[Array, " B"],
) -> Beams:
    """Add ended candidates to the finished sequences, and keep the K best.

    As in transformers, a candidate counts only if it is among the K best, open or ended.
    """
    num_beams = finished.scores.shape[1]
    log_probs = candidates.log_probs
    is_possible = log_probs > _NEVER / 2
    is_ranked = jnp.arange(log_probs.shape[1])[None] < num_beams
    counts = ended & is_possible & is_ranked
    scores = jnp.where(counts, log_probs / penalty[:, None], -jnp.inf)
    lengths = jnp.full(log_probs.shape, length)

    def merge(old: Array, new: Array) -> Array:
        return jnp.concatenate([old, new], axis=1)

    all_scores = merge(finished.scores, scores)
    _, best = jax.lax.top_k(all_scores, num_beams)

    def take(old: Array, new: Array) -> Array:
        return jnp.take_along_axis(merge(old, new), best, axis=1)

    return Beams(
        tokens=jnp.take_along_axis(
            merge(finished.tokens, candidates.tokens), best[..., None], axis=1
        ),
        scores=jnp.take_along_axis(all_scores, best, axis=1),
        log_probs=take(finished.log_probs, log_probs),
        finish=take(finished.finish, finish),
        lengths=take(finished.lengths, lengths),
        failed=finished.failed,
    )


def _select_open(
    candidates: _Open,
    parents: Int[Array, "B C"],
    ended: Bool[Array, "B C"],
    num_beams: int,
) -> tuple[_Open, Int[Array, "B K"]]:
    """Return the K best open candidates and their parent beams."""
    log_probs, best = jax.lax.top_k(jnp.where(ended, _NEVER, candidates.log_probs), num_beams)
    beams = _Open(
        tokens=jnp.take_along_axis(candidates.tokens, best[..., None], axis=1),
        log_probs=log_probs,
        automaton_states=jnp.take_along_axis(candidates.automaton_states, best, axis=1),
        stop_states=jnp.take_along_axis(candidates.stop_states, best, axis=1),
    )
    return beams, jnp.take_along_axis(parents, best, axis=1)


def _gather_cache(cache: PyTree, parents: Int[Array, "B K"]) -> PyTree:
    """Gather the cache of every beam's parent."""
    batch, num_beams = parents.shape
    rows = jnp.arange(batch)[:, None] * num_beams + parents
    return jax.tree.map(lambda leaf: leaf[rows.reshape(-1)] if leaf.ndim else leaf, cache)


def _is_done(
    best_open: Float[Array, " B"],
    finished_scores: Float[Array, "B K"],
    early_stopping: StoppingRule,
    penalty: Callable[[Int[Array, "..."]], Float[Array, "..."]],
    length: Int[Array, " B"],
    max_new_tokens: Int[Array, ""],
) -> Bool[Array, " B"]:
    """Return True for inputs whose search has ended.

    Args:
      best_open: log-probability of the best open sequence.
      finished_scores: scores of the finished sequences, -inf where there are fewer than K.
      early_stopping: stopping rule.
      penalty: length penalty.
      length: number of tokens after the prefix.
      max_new_tokens: maximum of `length`.
    """
    if early_stopping == "full":
        done = jnp.all(finished_scores > -jnp.inf, axis=1)
    else:
        final_length = max_new_tokens if early_stopping == "never" else length
        # Log-probabilities decrease with length; penalties may increase or decrease.
        reachable = jnp.maximum(best_open / penalty(length), best_open / penalty(final_length))
        done = jnp.min(finished_scores, axis=1) >= reachable
    # No open sequence left.
    return done | (best_open <= _NEVER / 2)
