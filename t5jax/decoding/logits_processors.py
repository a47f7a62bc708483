"""Logits processors: functions that change the scores of a step, mostly to rule tokens out.

Scores are logits, or log-probabilities in a beam search; -inf rules a token out.  The processors
and their order are those of Hugging Face transformers, except that the automaton comes last.

Shape letters: R rows of a decoding loop, beams innermost, W width of the sequences, V vocabulary.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5jax.decoding.automaton import Automaton, allowed_tokens

# Larger n-grams are compared in a loop, whose program does not grow with their size.
_MAX_UNROLLED = 16


class Context(NamedTuple):
    """Progress of every row at the current step.

    Attributes:
      sequences: start token, prefix and generated tokens; arbitrary from position `length` on.
      length: number of valid tokens in `sequences`, including the start token.
      num_new: number of tokens generated after the prefix; negative within it.
      max_new_tokens: maximum number of tokens to generate after the prefix.
      states: states of `LogitsProcessors.automaton`; ignored if it is None.
    """

    sequences: Int[Array, "R W"]
    length: Int[Array, ""]
    num_new: Int[Array, " R"]
    max_new_tokens: Int[Array, ""]
    states: Int[Array, " R"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitsProcessors:
    """The logits processors of a decoding loop.

    Names follow the generation config of transformers.  None (or an n-gram size of 0) disables a
    processor.  The set of enabled processors is static, their values are traced.

    Attributes:
      repetition_penalty: > 0; divides positive and multiplies negative scores of tokens that
        already occur in the sequence.  (arXiv:1909.05858, section 4.1)
      bad_words_ids: token sequences that must not occur, padded on the left with -1.
      min_new_tokens: minimum number of tokens before EOS is allowed.
      automaton: constraint on the tokens after the prefix.
      forced_bos_token_id: first token after the prefix.
      forced_eos_token_id: last token of a row that reaches the limit.
      suppress_tokens: True for tokens that are never generated.
      begin_suppress_tokens: True for tokens that are not generated first, or second if
        `forced_bos_token_id` is set.
      stop_automaton: ends a row that reaches one of its ends; rules nothing out.
      no_repeat_ngram_size: size of n-grams that must not occur twice; static.

    Examples:
      >>> from t5jax.decoding.logits_processors import Context
      >>> zero = jnp.array([0])
      >>> context = Context(zero[None], jnp.int32(1), zero, jnp.int32(8), zero)
      >>> processors = t5jax.decoding.LogitsProcessors(min_new_tokens=jnp.int32(2))
      >>> processors(jnp.zeros((1, 3)), context, eos_id=1).tolist()
      [[0.0, -inf, 0.0]]
    """

    repetition_penalty: Float[Array, ""] | None = None
    bad_words_ids: Int[Array, "words length"] | None = None
    min_new_tokens: Int[Array, ""] | None = None
    automaton: Automaton | None = None
    forced_bos_token_id: Int[Array, ""] | None = None
    forced_eos_token_id: Int[Array, ""] | None = None
    suppress_tokens: Bool[Array, " V"] | None = None
    begin_suppress_tokens: Bool[Array, " V"] | None = None
    stop_automaton: Automaton | None = None
    no_repeat_ngram_size: int = dataclasses.field(default=0, metadata={"static": True})

    def __call__(
        self, scores: Float[Array, "R V"], context: Context, *, eos_id: int
    ) -> Float[Array, "R V"]:
        """Apply all enabled processors to the scores of the next token.

        Args:
          scores: [R, V] float32 logits or log-probabilities.
          context: progress of every row.
          eos_id: id of EOS.
        Returns:
          [R, V] float32, -inf for tokens ruled out.
        """
        if self.repetition_penalty is not None:
            scores = _repetition_penalty(scores, context, self.repetition_penalty)
        if self.no_repeat_ngram_size:
            scores = _no_repeat_ngram(scores, context, self.no_repeat_ngram_size)
        if self.bad_words_ids is not None:
            scores = _no_bad_words(scores, context, self.bad_words_ids)
        if self.min_new_tokens is not None:
            scores = _min_new_tokens(scores, context, self.min_new_tokens, eos_id=eos_id)
        if self.forced_bos_token_id is not None:
            scores = _forced_bos_token(scores, context, self.forced_bos_token_id)
        if self.forced_eos_token_id is not None:
            scores = _forced_eos_token(scores, context, self.forced_eos_token_id)
        if self.suppress_tokens is not None:
            scores = _suppress_tokens(scores, self.suppress_tokens)
        if self.begin_suppress_tokens is not None:
            # After a forced token, the second token is the first free choice.
            begin = 0 if self.forced_bos_token_id is None else 1
            scores = _suppress_tokens_at_begin(
                scores, context, self.begin_suppress_tokens, begin_index=begin
            )
        if self.automaton is not None:
            # Last, so that forced tokens must satisfy it too.
            scores = _automaton_constraint(scores, context, self.automaton)
        return scores


def _repetition_penalty(
    scores: Float[Array, "R V"], context: Context, penalty: Float[Array, ""]
) -> Float[Array, "R V"]:
    """Penalize tokens that already occur, as RepetitionPenaltyLogitsProcessor does."""
    positions = jnp.arange(context.sequences.shape[1]) < context.length
    valid = jnp.broadcast_to(positions[None], context.sequences.shape)
    occurs = _token_mask(context.sequences, valid, scores.shape)
    return jnp.where(occurs, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def _no_repeat_ngram(
    scores: Float[Array, "R V"], context: Context, ngram_size: int
) -> Float[Array, "R V"]:
    """Rule out tokens that would repeat an n-gram, as NoRepeatNGramLogitsProcessor does."""
    sequences, length = context.sequences, context.length
    width = sequences.shape[1]
    if ngram_size > width:
        return scores

    def match(k: int | Array, matches: Bool[Array, "R W"]) -> Bool[Array, "R W"]:
        # In shorter sequences the clipped index is arbitrary; `complete` masks them.
        last = jnp.take(sequences, length - ngram_size + 1 + k, axis=1, mode="clip")
        return matches & (jnp.roll(sequences, -k, axis=1) == last[:, None])

    # True where the `ngram_size - 1` tokens starting at a position equal the last ones.
    matches = jnp.ones(sequences.shape, bool)
    if ngram_size <= _MAX_UNROLLED:
        for k in range(ngram_size - 1):
            matches = match(k, matches)
    else:
        matches = jax.lax.fori_loop(0, ngram_size - 1, match, matches)
    continuations = jnp.roll(sequences, 1 - ngram_size, axis=1)
    complete = (jnp.arange(width) + ngram_size - 1 < length) & (length + 1 >= ngram_size)
    repeats = _token_mask(continuations, matches & complete[None], scores.shape)
    return _rule_out(scores, repeats)


def _no_bad_words(
    scores: Float[Array, "R V"], context: Context, words: Int[Array, "words length"]
) -> Float[Array, "R V"]:
    """Rule out tokens that would complete a bad word, as NoBadWordsLogitsProcessor does."""
    sequences, length = context.sequences, context.length
    size = words.shape[1]
    begun = jnp.ones((len(sequences), len(words)), bool)
    for k in range(size - 1):
        last = jnp.take(sequences, length - size + 1 + k, axis=1, mode="clip")
        begun = begun & ((words[None, :, k] == last[:, None]) | (words[None, :, k] < 0))
    # Words longer than the sequence, excluding the start token, cannot be complete.
    fits = jnp.sum(words >= 0, axis=1, dtype=jnp.int32) <= length
    last_tokens = jnp.broadcast_to(words[None, :, -1], begun.shape)
    return _rule_out(scores, _token_mask(last_tokens, begun & fits[None], scores.shape))


def _min_new_tokens(
    scores: Float[Array, "R V"], context: Context, min_length: Int[Array, ""], *, eos_id: int
) -> Float[Array, "R V"]:
    """Rule out EOS before `min_length`, as MinNewTokensLengthLogitsProcessor does."""
    early = (context.num_new < min_length)[:, None]
    return _rule_out(scores, early & _one_hot(eos_id, scores))


def _forced_bos_token(
    scores: Float[Array, "R V"], context: Context, token: Int[Array, ""]
) -> Float[Array, "R V"]:
    """Force the first token, as ForcedBOSTokenLogitsProcessor does."""
    return _force(scores, token, context.num_new == 0)


def _forced_eos_token(
    scores: Float[Array, "R V"], context: Context, token: Int[Array, ""]
) -> Float[Array, "R V"]:
    """Force the last token before the limit, as ForcedEOSTokenLogitsProcessor does."""
    return _force(scores, token, context.num_new == context.max_new_tokens - 1)


def _suppress_tokens(scores: Float[Array, "R V"], tokens: Bool[Array, " V"]) -> Float[Array, "R V"]:
    """Rule out tokens at every step, as SuppressTokensLogitsProcessor does."""
    return _rule_out(scores, tokens[None])


def _suppress_tokens_at_begin(
    scores: Float[Array, "R V"], context: Context, tokens: Bool[Array, " V"], *, begin_index: int
) -> Float[Array, "R V"]:
    """Rule out tokens at one step, as SuppressTokensAtBeginLogitsProcessor does."""
    at_begin = (context.num_new == begin_index)[:, None]
    return _rule_out(scores, at_begin & tokens[None])


def _automaton_constraint(
    scores: Float[Array, "R V"], context: Context, automaton: Automaton
) -> Float[Array, "R V"]:
    """Rule out tokens after which the automaton cannot reach an end in time.

    Equivalent to PrefixConstrainedLogitsProcessor for the sequences that the automaton accepts.
    """
    remaining = context.max_new_tokens - context.num_new
    return _rule_out(scores, ~allowed_tokens(automaton, context.states, remaining))


def _token_mask(
    tokens: Int[Array, "R n"], selected: Bool[Array, "R n"], shape: tuple[int, ...]
) -> Bool[Array, "R V"]:
    """Return an [R, V] mask, True for the selected tokens of every row."""
    rows = jnp.arange(shape[0])[:, None]
    # V is out of range, so its update is dropped.
    tokens = jnp.where(selected, tokens, shape[1])
    return jnp.zeros(shape, bool).at[rows, tokens].set(True, mode="drop")


def _one_hot(token: Int[Array, ""] | int, scores: Float[Array, "R V"]) -> Bool[Array, "1 V"]:
    return (jnp.arange(scores.shape[1]) == token)[None]


def _force(
    scores: Float[Array, "R V"], token: Int[Array, ""], rows: Bool[Array, " R"]
) -> Float[Array, "R V"]:
    """Set the score of `token` to 0 and all others to -inf where `rows` is True."""
    forced = jnp.where(_one_hot(token, scores), jnp.float32(0), -jnp.inf)
    return jnp.where(rows[:, None], forced, scores)


def _rule_out(scores: Float[Array, "R V"], tokens: Bool[Array, "#R V"]) -> Float[Array, "R V"]:
    return jnp.where(tokens, -jnp.inf, scores)
