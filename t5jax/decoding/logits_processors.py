"""What may be written next: each rule changes the scores of a step, most by ruling tokens out.

Scores are logits, or in a beam search log-probabilities; a token that is out has -inf.  The rules
and their order are those of Hugging Face transformers, but for the automaton, which has the last
word.  Shape letters: R rows of a decoding loop, beams innermost, W written positions, V vocabulary.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5jax.decoding.automaton import Automaton, allowed_tokens


class Context(NamedTuple):
    """How far every row has come."""

    written: Int[Array, "R W"]
    """Start token, prefix and what was written; from `length` on, anything."""
    length: Int[Array, ""]
    """Tokens in `written`, the start token among them."""
    num_new: Int[Array, " R"]
    """Tokens that were written behind the prefix; negative within it."""
    limit: Int[Array, ""]
    """Most tokens to write behind the prefix."""
    states: Int[Array, " R"]
    """Of the automaton of `LogitsProcessors`, if it has one."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitsProcessors:
    """All rules; None is off.  Which are on is known when compiling, their values are not.

    Attributes:
      repetition_penalty: scores of tokens that occur already are divided by it if positive, and
        multiplied if negative.  (arXiv:1909.05858, section 4.1)
      bad_words: sequences that may not occur, right-aligned behind -1.
      min_tokens: EOS is out before so many tokens.
      automaton: must accept what is written behind the prefix.
      forced_first: the only first token.
      forced_last: the only token at the limit.
      suppressed: True for tokens that are always out.
      first_suppressed: True for tokens that are out as the first, or behind `forced_first`.
      stop: an automaton that ends a row when it arrives at an end; it rules nothing out.
      no_repeat_ngram: no sequence of so many tokens occurs twice; 0 is off.
    """

    repetition_penalty: Float[Array, ""] | None = None
    bad_words: Int[Array, "words length"] | None = None
    min_tokens: Int[Array, ""] | None = None
    automaton: Automaton | None = None
    forced_first: Int[Array, ""] | None = None
    forced_last: Int[Array, ""] | None = None
    suppressed: Bool[Array, " V"] | None = None
    first_suppressed: Bool[Array, " V"] | None = None
    stop: Automaton | None = None
    no_repeat_ngram: int = dataclasses.field(default=0, metadata={"static": True})

    def apply(
        self, scores: Float[Array, "R V"], context: Context, *, eos_id: int
    ) -> Float[Array, "R V"]:
        """Scores of the next token by all rules that are on."""
        if self.repetition_penalty is not None:
            scores = penalize_repetition(scores, context, self.repetition_penalty)
        if self.no_repeat_ngram:
            scores = forbid_repeated_ngrams(scores, context, self.no_repeat_ngram)
        if self.bad_words is not None:
            scores = forbid_sequences(scores, context, self.bad_words)
        if self.min_tokens is not None:
            early = (context.num_new < self.min_tokens)[:, None]
            scores = _rule_out(scores, early & _is(eos_id, scores))
        if self.forced_first is not None:
            scores = _force(scores, self.forced_first, context.num_new == 0)
        if self.forced_last is not None:
            scores = _force(scores, self.forced_last, context.num_new == context.limit - 1)
        if self.suppressed is not None:
            scores = _rule_out(scores, self.suppressed[None])
        if self.first_suppressed is not None:
            # A forced token leaves no choice; the one behind it is the first that is chosen.
            first = 0 if self.forced_first is None else 1
            here = (context.num_new == first)[:, None]
            scores = _rule_out(scores, here & self.first_suppressed[None])
        if self.automaton is not None:
            # Last, for a forced token too must be one that it allows.
            remaining = context.limit - context.num_new
            may = allowed_tokens(self.automaton, context.states, remaining)
            scores = _rule_out(scores, ~may)
        return scores


def automaton_ended(of: Automaton, states: Int[Array, "*A"]) -> Bool[Array, "*A"]:
    """Whether an automaton has arrived at an end."""
    return (states >= 0) & of.ends[states]


def penalize_repetition(
    scores: Float[Array, "R V"], context: Context, penalty: Float[Array, ""]
) -> Float[Array, "R V"]:
    """Makes tokens that occur already less likely, or more with a penalty below 1."""
    occurs = _mark(context.written, _so_far(context), scores.shape)
    return jnp.where(occurs, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def forbid_repeated_ngrams(
    scores: Float[Array, "R V"], context: Context, size: int
) -> Float[Array, "R V"]:
    """Rules out tokens that would complete a sequence of `size` tokens that occurs already."""
    written, length = context.written, context.length
    width = written.shape[1]
    # Whether the `size - 1` tokens from each position on are the last ones.
    same = jnp.ones(written.shape, bool)
    for k in range(size - 1):
        # Before there are so many tokens, the index is of no position.
        last = jnp.take(written, length - size + 1 + k, axis=1, mode="clip")
        same = same & (jnp.roll(written, -k, axis=1) == last[:, None])
    following = jnp.roll(written, 1 - size, axis=1)
    complete = (jnp.arange(width) + size - 1 < length) & (length + 1 >= size)
    return _rule_out(scores, _mark(following, same & complete[None], scores.shape))


def forbid_sequences(
    scores: Float[Array, "R V"], context: Context, words: Int[Array, "words length"]
) -> Float[Array, "R V"]:
    """Rules out tokens that would complete one of some sequences."""
    written, length = context.written, context.length
    size = words.shape[1]
    begun = jnp.ones((len(written), len(words)), bool)
    for k in range(size - 1):
        last = jnp.take(written, length - size + 1 + k, axis=1, mode="clip")
        begun = begun & ((words[None, :, k] == last[:, None]) | (words[None, :, k] < 0))
    # A sequence is looked for where its tokens fit behind the start token.
    fits = jnp.sum(words >= 0, axis=1, dtype=jnp.int32) <= length
    endings = jnp.broadcast_to(words[None, :, -1], begun.shape)
    return _rule_out(scores, _mark(endings, begun & fits[None], scores.shape))


def _so_far(context: Context) -> Bool[Array, "R W"]:
    positions = jnp.arange(context.written.shape[1]) < context.length
    return jnp.broadcast_to(positions[None], context.written.shape)


def _mark(tokens: Int[Array, "R n"], chosen: Bool[Array, "R n"], shape: tuple[int, ...]) -> Array:
    """True for the chosen tokens of every row."""
    rows = jnp.arange(shape[0])[:, None]
    # Past the vocabulary, so that it is dropped.
    tokens = jnp.where(chosen, tokens, shape[1])
    return jnp.zeros(shape, bool).at[rows, tokens].set(True, mode="drop")


def _is(token: Int[Array, ""] | int, scores: Float[Array, "R V"]) -> Bool[Array, "1 V"]:
    return (jnp.arange(scores.shape[1]) == token)[None]


def _force(
    scores: Float[Array, "R V"], token: Int[Array, ""], here: Bool[Array, " R"]
) -> Float[Array, "R V"]:
    """Score 0 for the token and -inf for all others, in some rows."""
    only = jnp.where(_is(token, scores), jnp.float32(0), -jnp.inf)
    return jnp.where(here[:, None], only, scores)


def _rule_out(scores: Float[Array, "R V"], out: Bool[Array, "#R V"]) -> Float[Array, "R V"]:
    return jnp.where(out, -jnp.inf, scores)
