"""Text of generated ids, whole or while they grow."""

from collections.abc import Sequence

from t5jax.tokenizers import Tokenizer

# Tokenizers decode bytes that are no character, or not yet one, as this.
_INCOMPLETE = "\ufffd"


class StreamingDetokenizer:
    """Decodes a growing sequence into pieces of text; joined, they are the text of the whole.

    A piece is returned when later tokens can no longer change it: a character waits for its last
    byte, spaces for the next character, and a possible beginning of a stop string for its rest.

    Args:
      tokenizer: decodes the ids.
      stop_strings: the text ends before the first of them.
      prefix_len: number of ids in which stop strings do not count.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, stop_strings: Sequence[str] = (), prefix_len: int = 0
    ):
        self._tokenizer = tokenizer
        self._stop_strings = stop_strings
        self._prefix_len = prefix_len
        self._num_returned = 0

    def grow(self, ids: Sequence[int], *, ended: bool) -> str:
        """Return the next piece of text, which may be empty.

        Args:
          ids: all ids so far.
          ended: True if there will be no more.
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
        """Return the start of the text that one more byte cannot change.

        Some vocabularies decode a run of bytes as a whole or not at all, so that the first byte of
        a character undoes the characters before it.
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
      tokenizer: decodes the ids.
      ids: ids with the prefix.
      stop_strings: the text ends before the first of them.
      prefix_len: number of ids in which stop strings do not count.
    """
    text = tokenizer.decode(ids)
    if not stop_strings:
        return text
    # The automaton sees the text of the ids after the prefix, whatever joins them.
    suffix = tokenizer.decode(ids[prefix_len:])
    places = [suffix.find(string) for string in stop_strings]
    first = min((place for place in places if place >= 0), default=len(suffix))
    return text[: len(text) - (len(suffix) - first)]


def _stop_string_overlap(text: str, stop_strings: Sequence[str]) -> int:
    """Return the number of last characters that could begin a stop string."""
    return max(
        (
            size
            for string in stop_strings
            for size in range(1, len(string))
            if text.endswith(string[:size])
        ),
        default=0,
    )
