"""What an answer may and must hold, in a user's words, and as rules of a decoding loop."""

import dataclasses
import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from t5jax.decoding import Automaton, LogitsProcessors, check_automaton, matcher, trie
from t5jax.models import T5Config
from t5jax.tokenizers import Tokenizer

Ids = Sequence[int]


# An automaton has a state for every byte of them.
_LONGEST_STOPS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constraints:
    """What an answer may and must hold; the default allows everything.

    Attributes:
      min_new_tokens: EOS may not be among the first so many tokens.
      decoder_prefix: what an answer begins with: one text for all inputs or a list with one for
        each; ids in place of a text.  It counts in no limit, length or score.
      forced_bos_token_id: the first token behind the prefix.
      forced_eos_token_id: the last token, if an answer reaches the limit.
      suppress_tokens: ids that are never written.
      begin_suppress_tokens: ids that are not written first; behind a forced first token, second.
      repetition_penalty: logits of tokens that occur already are divided by it if positive, and
        multiplied if negative; above 1 they become less likely.  (arXiv:1909.05858, section 4.1)
      no_repeat_ngram_size: no sequence of so many tokens occurs twice; 0 is off.
      bad_words: texts that are not written, in the tokens that the tokenizer makes of them.
      bad_words_ids: sequences of ids that are not written.
      stop_strings: an answer ends where its text holds one of them, and is cut before it.
      allowed_texts: an answer is one of these, in the tokens that the tokenizer makes of it.
      automaton: must accept what is written behind the prefix; see `t5jax.decoding.automaton`.
    """

    min_new_tokens: int = 0
    decoder_prefix: str | Sequence[str | Ids] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    suppress_tokens: Ids = ()
    begin_suppress_tokens: Ids = ()
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words: Sequence[str] = ()
    bad_words_ids: Sequence[Ids] = ()
    stop_strings: Sequence[str] = ()
    allowed_texts: Sequence[str] | None = None
    automaton: Automaton | None = None

    def __post_init__(self):
        for name in ("min_new_tokens", "no_repeat_ngram_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")
        if not self.repetition_penalty > 0:
            raise ValueError(
                f"repetition_penalty must be above 0, got {self.repetition_penalty}; 1.0 is none."
            )
        for name in ("bad_words", "stop_strings", "allowed_texts"):
            texts = getattr(self, name)
            if isinstance(texts, str):
                raise ValueError(f"{name} must be a list of texts, got the text {texts!r:.60}.")
        for name in ("bad_words", "stop_strings"):
            if "" in getattr(self, name):
                raise ValueError(f"{name} must not hold the empty text, which is everywhere.")
        if sum(map(len, self.stop_strings)) > _LONGEST_STOPS:
            raise ValueError(
                f"stop_strings must have at most {_LONGEST_STOPS} characters together, got "
                f"{sum(map(len, self.stop_strings))}."
            )
        if any(len(ids) == 0 for ids in self.bad_words_ids):
            raise ValueError("bad_words_ids must not hold the empty sequence, which is everywhere.")
        if self.allowed_texts is not None and not len(self.allowed_texts):
            raise ValueError("allowed_texts must hold a text to write, got none.")
        if self.allowed_texts is not None and self.automaton is not None:
            raise ValueError("allowed_texts and automaton must not both be given; use one.")
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            if getattr(self, name) in self.suppress_tokens:
                raise ValueError(f"{name} = {getattr(self, name)} must not be suppressed too.")

    def rules(
        self, config: T5Config, tokenizer: Tokenizer | None, *, max_new_tokens: int
    ) -> LogitsProcessors:
        """The constraints as arrays.

        Args:
          config: of the model.
          tokenizer: of the model; texts need one.
          max_new_tokens: the limit, which everything that must be written has to fit into.
        Raises:
          ValueError: an id outside the vocabulary, a text that the tokenizer cannot write, or
            constraints that no answer fulfils.
        """
        vocab_size = config.vocab_size
        if self.min_new_tokens > max_new_tokens:
            raise ValueError(
                f"min_new_tokens must be at most max_new_tokens = {max_new_tokens}, got "
                f"{self.min_new_tokens}."
            )
        words = [list(ids) for ids in self.bad_words_ids]
        words += [_spelled(word, _need(tokenizer, "bad_words")) for word in self.bad_words]
        given = {
            "bad_words_ids": [i for ids in words for i in ids],
            "suppress_tokens": self.suppress_tokens,
            "begin_suppress_tokens": self.begin_suppress_tokens,
            "forced_bos_token_id": _listed(self.forced_bos_token_id),
            "forced_eos_token_id": _listed(self.forced_eos_token_id),
        }
        for name, ids in given.items():
            for token in ids:
                if not 0 <= token < vocab_size:
                    raise ValueError(
                        f"{name} must be in [0, vocab_size = {vocab_size}), got {token}."
                    )
        accepting = self.allowed_texts is not None or self.automaton is not None
        if self.allowed_texts is not None and config.eos_id in self.suppress_tokens:
            raise ValueError(
                f"suppress_tokens must not hold the end of a sequence, {config.eos_id}, with "
                "allowed_texts, which end with it."
            )
        if accepting and self.stop_strings:
            raise ValueError(
                "stop_strings must be left out with allowed_texts or an automaton, which say "
                "themselves where an answer ends."
            )
        if [config.eos_id] in words:
            raise ValueError(
                f"bad_words_ids must not be the end of a sequence, got [{config.eos_id}]; use "
                "min_new_tokens or suppress_tokens."
            )
        return LogitsProcessors(
            repetition_penalty=(
                None if self.repetition_penalty == 1 else jnp.float32(self.repetition_penalty)
            ),
            bad_words_ids=jnp.asarray(_right_aligned(words)) if words else None,
            min_new_tokens=_scalar(self.min_new_tokens or None),
            automaton=self._automaton(config, tokenizer, max_new_tokens),
            forced_bos_token_id=_scalar(self.forced_bos_token_id),
            forced_eos_token_id=_scalar(self.forced_eos_token_id),
            suppress_tokens=_mask(self.suppress_tokens, vocab_size),
            begin_suppress_tokens=_mask(self.begin_suppress_tokens, vocab_size),
            stop_automaton=(
                _stop(_need(tokenizer, "stop_strings"), tuple(self.stop_strings), vocab_size)
                if self.stop_strings
                else None
            ),
            no_repeat_ngram_size=self.no_repeat_ngram_size,
        )

    def prefixes(
        self, count: int, config: T5Config, tokenizer: Tokenizer | None, *, most: int
    ) -> list[list[int]]:
        """Ids of the prefix of each of `count` inputs.

        Args:
          count: number of inputs.
          config: of the model.
          tokenizer: of the model; texts need one.
          most: longest prefix allowed, in tokens.
        Raises:
          ValueError: not one for each, one that is too long, or an id outside the vocabulary.
        """
        given = self.decoder_prefix
        if given is None:
            return [[]] * count
        listed = [given] * count if isinstance(given, str) else list(given)
        if not all(isinstance(one, Sequence | np.ndarray) for one in listed):
            raise ValueError(
                "decoder_prefix must be one text, or a list of texts or lists of ids, got "
                f"{given!r:.60}; ids of one prefix belong in a list of their own."
            )
        if len(listed) != count:
            raise ValueError(
                f"decoder_prefix must be one text, or one for each of {count} inputs, got "
                f"{len(listed)}."
            )
        found = [
            _need(tokenizer, "decoder_prefix").encode(one) if isinstance(one, str) else list(one)
            for one in listed
        ]
        for i, ids in enumerate(found):
            if len(ids) > most:
                raise ValueError(
                    f"decoder_prefix[{i}] must have at most {most} tokens, got {len(ids)}; "
                    "shorten it or raise max_input_tokens."
                )
            if config.eos_id in ids:
                raise ValueError(
                    f"decoder_prefix[{i}] must not hold the end of a sequence, {config.eos_id}, "
                    f"got {ids}."
                )
            if not all(0 <= token < config.vocab_size for token in ids):
                raise ValueError(
                    f"decoder_prefix[{i}] must hold ids in [0, vocab_size = {config.vocab_size}), "
                    f"got {ids}."
                )
        return found

    def _automaton(
        self, config: T5Config, tokenizer: Tokenizer | None, max_new_tokens: int
    ) -> Automaton | None:
        if self.allowed_texts is not None:
            texts = tuple(self.allowed_texts)
            tokenizer = _need(tokenizer, "allowed_texts")
            found, longest, needed = _allow(texts, tokenizer, config)
            if needed > max_new_tokens:
                raise ValueError(
                    f"max_new_tokens must be at least {needed} for allowed_texts to be written to "
                    f"their end, got {max_new_tokens}; the longest is {longest!r:.60}."
                )
            return found
        if self.automaton is not None:
            check_automaton(self.automaton, config.vocab_size)
            shortest = int(self.automaton.distance[0])
            if shortest > max_new_tokens:
                raise ValueError(
                    "automaton must accept something of at most max_new_tokens = "
                    f"{max_new_tokens} tokens, EOS included, and it does not; "
                    + ("it accepts nothing." if shortest >= 2**30 else f"it needs {shortest}.")
                )
        return self.automaton


@functools.lru_cache(maxsize=8)
def _allow(
    texts: tuple[str, ...], tokenizer: Tokenizer, config: T5Config
) -> tuple[Automaton, str, int]:
    """`allow`, the text of most tokens, and how many those are, EOS included."""
    lengths = {text: len(tokenizer.encode(text)) + 1 for text in texts}
    longest = max(texts, key=lengths.__getitem__)
    return allow(texts, tokenizer, config), longest, lengths[longest]


def allow(texts: tuple[str, ...], tokenizer: Tokenizer, config: T5Config) -> Automaton:
    """The automaton that accepts some texts, each in the tokens that the tokenizer makes of it.

    Raises:
      ValueError: a text that would not come back from its tokens, such as one with characters
        that the vocabulary lacks.
    """
    encoded = [tokenizer.encode(text) for text in texts]
    for text, ids in zip(texts, encoded, strict=True):
        if tokenizer.decode(ids) != text:
            raise ValueError(
                f"allowed_texts must be texts that the tokenizer can write, got {text!r:.60}, "
                f"which it writes as {tokenizer.decode(ids)!r:.60}."
            )
    return trie(encoded, eos_id=config.eos_id, vocab_size=config.vocab_size)


@functools.lru_cache(maxsize=8)
def _stop(tokenizer: Tokenizer, strings: tuple[str, ...], vocab_size: int) -> Automaton:
    pieces, first_pieces = _pieces(tokenizer)
    return matcher(
        [string.encode() for string in strings],
        pieces,
        vocab_size=vocab_size,
        first_pieces=first_pieces,
    )


@functools.lru_cache(maxsize=2)
def _pieces(tokenizer: Tokenizer) -> tuple[list[bytes], list[bytes]]:
    """What every token adds to a text, and to an empty one."""
    pieces = tokenizer.pieces()
    return pieces, [_first(tokenizer, token, piece) for token, piece in enumerate(pieces)]


def _first(tokenizer: Tokenizer, token: int, piece: bytes) -> bytes:
    """What a token adds to an empty text, where some tokenizers drop spaces."""
    if not piece.startswith(b" "):
        return piece
    text = tokenizer.decode([token])
    kept = len(text) - len(text.lstrip(" "))
    return b" " * kept + piece.lstrip(b" ")


def _spelled(word: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a bad word, which must have some and none that is shared by all unknown text."""
    ids = tokenizer.encode(word)
    if not ids or tokenizer.unk_id in ids:
        raise ValueError(
            f"bad_words must be texts that the tokenizer can write, got {word!r:.60}, which it "
            f"writes as {tokenizer.decode(ids)!r:.60}."
        )
    return ids


def _need(tokenizer: Tokenizer | None, name: str) -> Tokenizer:
    if tokenizer is None:
        raise ValueError(f"{name} must come with a tokenizer, and this model has none; give ids.")
    return tokenizer


def _listed(token: int | None) -> list[int]:
    return [] if token is None else [token]


def _scalar(token: int | None):
    return None if token is None else jnp.int32(token)


def _mask(tokens: Ids, vocab_size: int):
    if not len(tokens):
        return None
    mask = np.zeros(vocab_size, bool)
    mask[list(tokens)] = True
    return jnp.asarray(mask)


def _right_aligned(words: list[list[int]]) -> np.ndarray:
    """The words behind -1, in a number and a width that are powers of two: few programs."""
    width = 1 << (max(map(len, words)) - 1).bit_length()
    rows = np.full((1 << (len(words) - 1).bit_length(), width), -1, np.int32)
    for row, ids in zip(rows, words, strict=False):
        row[width - len(ids) :] = ids
    # Rows to spare are another copy of the first, which changes nothing.
    rows[len(words) :] = rows[0]
    return rows
