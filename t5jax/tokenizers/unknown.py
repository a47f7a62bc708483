"""Counts of text that a vocabulary cannot spell."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from t5jax.tokenizers.base import Tokenizer

_MAX_CHARACTERS = 10
# SentencePiece models may turn these into spaces.
_WHITESPACE = "\n\t"


class UnknownCounts(NamedTuple):
    """Texts that a tokenizer does not encode without loss.

    Attributes:
      texts: number of texts.
      tokens: number of tokens.
      unknown_texts: number of texts with an unknown token.
      unknown_tokens: number of unknown tokens.
      characters: characters of these texts without a token, most frequent first, at most 10.
      lost_whitespace: number of texts whose line breaks or tabs become spaces.

    Examples:
      >>> tokenizer = t5jax.tokenizers.ByteTokenizer()
      >>> texts = ["any", "text"]
      >>> ids = [tokenizer.encode(text) for text in texts]
      >>> t5jax.tokenizers.count_unknown(texts, ids, tokenizer=tokenizer).unknown_texts
      0
    """

    texts: int
    tokens: int
    unknown_texts: int
    unknown_tokens: int
    characters: list[str]
    lost_whitespace: int

    def __str__(self) -> str:
        rate = self.unknown_tokens / max(self.tokens, 1)
        shown = " ".join(self.characters)
        what = f": the vocabulary lacks {shown}" if shown else ""
        return (
            f"{self.unknown_texts} of {self.texts} have unknown tokens ({rate:.1%} of all "
            f"tokens){what}"
        )


def count_unknown(
    texts: Sequence[str], ids: Sequence[Sequence[int]], *, tokenizer: Tokenizer
) -> UnknownCounts:
    """Count the texts that a tokenizer does not encode without loss.

    Args:
      texts: texts.
      ids: ids of each text.
      tokenizer: tokenizer of the ids.
    Returns:
      The counts.

    Examples:
      >>> tokenizer = t5jax.tokenizers.train_tokenizer(["a b c"] * 9, vocab_size=8)
      >>> texts = ["a b", "a {b}"]
      >>> ids = [tokenizer.encode(text) for text in texts]
      >>> str(t5jax.tokenizers.count_unknown(texts, ids, tokenizer=tokenizer))
      '1 of 2 have unknown tokens (20.0% of all tokens): the vocabulary lacks { }'
    """
    unk = tokenizer.unk_id
    affected = [i for i, row in enumerate(ids) if unk in row]
    counts = Counter("".join(texts[i] for i in affected))
    missing = [x for x, _ in counts.most_common() if unk in tokenizer.encode(x)]
    lost = [x for x in _WHITESPACE if x not in tokenizer.decode(tokenizer.encode(f"a{x}a"))]
    return UnknownCounts(
        texts=len(texts),
        tokens=sum(map(len, ids)),
        unknown_texts=len(affected),
        unknown_tokens=sum(list(ids[i]).count(unk) for i in affected),
        characters=missing[:_MAX_CHARACTERS],
        lost_whitespace=sum(any(x in text for x in lost) for text in texts) if lost else 0,
    )
