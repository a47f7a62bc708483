"""Text out of ids that are still being written."""

from collections.abc import Sequence

from t5jax.tokenizers import Tokenizer

# What decoding writes for bytes that are no character, or not yet one.
_INCOMPLETE = "\ufffd"


class StreamingDetokenizer:
    """The text of a growing sequence, in pieces that joined are the text of the whole.

    A piece is given out when later tokens can no longer change it: a character whose bytes are not
    all there waits for them, spaces wait for what follows, and so does what may turn out to be the
    beginning of a stop string.

    Args:
      tokenizer: what decodes the ids.
      stop_strings: the text ends before the first of them.
      prefix_len: ids in which stop strings are not looked for.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, stop_strings: Sequence[str] = (), prefix_len: int = 0
    ):
        self._tokenizer = tokenizer
        self._stop_strings = stop_strings
        self._prefix_len = prefix_len
        self._given = 0

    def grow(self, ids: Sequence[int], *, ended: bool) -> str:
        """The next piece of text, which may be empty.

        Args:
          ids: all ids so far.
          ended: whether there will be no more.
        """
        text = detokenize(
            self._tokenizer, ids, stop_strings=self._stop_strings, prefix_len=self._prefix_len
        )
        if not ended:
            text = self._certain(text, ids)
            text = text.rstrip(_INCOMPLETE + " ")
            text = text[: len(text) - _begun(text, self._stop_strings)]
        piece = text[self._given :]
        self._given = max(self._given, len(text))
        return piece

    def _certain(self, text: str, ids: Sequence[int]) -> str:
        """What one more byte leaves of the text: some vocabularies decode a run of bytes as a whole
        or not at all, so that a character's first byte undoes the characters before it."""
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
    """The text of some ids, up to the first stop string behind the prefix."""
    text = tokenizer.decode(ids)
    if not stop_strings:
        return text
    # As the automaton sees it: the text of the ids behind the prefix, whatever joins them.
    behind = tokenizer.decode(ids[prefix_len:])
    places = [behind.find(string) for string in stop_strings]
    first = min((place for place in places if place >= 0), default=len(behind))
    return text[: len(text) - (len(behind) - first)]


def _begun(text: str, stop_strings: Sequence[str]) -> int:
    """How many characters at the end of a text could be the beginning of a stop string."""
    return max(
        (
            size
            for string in stop_strings
            for size in range(1, len(string))
            if text.endswith(string[:size])
        ),
        default=0,
    )
