"""Detokenization of generated ids, at once or streaming."""

from collections.abc import Sequence

from t5jax.tokenizers import Tokenizer

# Tokenizers decode invalid or incomplete UTF-8 as this character.
_INCOMPLETE = "\ufffd"


class StreamingDetokenizer:
    """Detokenizer of a growing sequence; the returned pieces, joined, are its whole text.

    Text that later tokens may change is held back: partial UTF-8, trailing spaces and possible
    beginnings of stop strings.

    Args:
      tokenizer: tokenizer of the model.
      stop_strings: strings; the text ends before the first one.
      prefix_len: number of leading ids in which stop strings are ignored.

    Examples:
      >>> ids = t5.tokenizer.encode("the baker counts")
      >>> detokenizer = t5jax.generation.StreamingDetokenizer(t5.tokenizer)
      >>> pieces = [detokenizer.grow(ids[:n], ended=n == len(ids)) for n in range(len(ids) + 1)]
      >>> "".join(pieces)
      'the baker counts'
    """

    def __init__(
        self, tokenizer: Tokenizer, *, stop_strings: Sequence[str] = (), prefix_len: int = 0
    ):
        self._tokenizer = tokenizer
        self._stop_strings = stop_strings
        self._prefix_len = prefix_len
        self._num_returned = 0

    def grow(self, ids: Sequence[int], *, ended: bool) -> str:
        """Return the next piece of text.

        Args:
          ids: all ids so far.
          ended: True if no more will follow.
        Returns:
          The text that is new and final; may be empty.
        """
        text = detokenize(
            self._tokenizer, ids, stop_strings=self._stop_strings, prefix_len=self._prefix_len
        )
        if not ended:
            text = self._certain(text, ids)
            text = text.rstrip(_INCOMPLETE + " ")
            text = text[: len(text) - _stop_string_overlap(text, self._stop_strings)]
        piece = text[self._num_returned :]
        self._num_returned = max(self._num_returned, len(text))
        return piece

    def _certain(self, text: str, ids: Sequence[int]) -> str:
        """Return the beginning of the text that one more byte cannot change.

        Some vocabularies decode a run of bytes all or nothing, so that the first byte of a
        character invalidates the characters before it.
        """
        last = list(ids[-1:])
        if self._tokenizer.decode(last) != _INCOMPLETE:
            return text
        longer = self._tokenizer.decode([*ids, *last])
        while not longer.startswith(text):
            text = text[:-1]
        return text


def detokenize(
    tokenizer: Tokenizer, ids: Sequence[int], *, stop_strings: Sequence[str], prefix_len: int
) -> str:
    """Decode ids up to the first stop string after the prefix.

    Args:
      tokenizer: tokenizer of the model.
      ids: generated ids, including the prefix.
      stop_strings: strings; the text ends before the first one.
      prefix_len: number of leading ids in which stop strings are ignored.
    Returns:
      The text, including the prefix.
    """
    text = tokenizer.decode(ids)
    if not stop_strings:
        return text
    # Search what the stop automaton sees: the text of the ids after the prefix alone.
    suffix = tokenizer.decode(ids[prefix_len:])
    places = [suffix.find(string) for string in stop_strings]
    first = min((place for place in places if place >= 0), default=len(suffix))
    return text[: len(text) - (len(suffix) - first)]


def _stop_string_overlap(text: str, stop_strings: Sequence[str]) -> int:
    """Return the number of trailing characters that may begin a stop string."""
    return max(
        (
            size
            for string in stop_strings
            for size in range(1, len(string))
            if text.endswith(string[:size])
        ),
        default=0,
    )
