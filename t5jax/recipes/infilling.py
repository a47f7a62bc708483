"""Fill in the blanks of sentences, next to the words that were blanked."""

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from t5jax.generation import pad_batch
from t5jax.text2text import Text2Text
from t5jax.tokenizers import Tokenizer, encode_with_eos

# A plain sentence: a capital, words and ordinary punctuation, a full stop.
_SENTENCE = re.compile(r"(?<!\S)[A-Z][A-Za-z0-9,;:'()\- ]{60,140}\.(?!\S)")


def plain_sentences(documents: Iterable[str], *, count: int) -> list[str]:
    """Return the first plain English sentence of each of the first `count` documents with one."""
    sentences: list[str] = []
    for document in documents:
        match = _SENTENCE.search(" ".join(document.split()))
        if match and match.group() not in sentences and len(match.group().split()) >= 8:
            sentences.append(match.group())
        if len(sentences) == count:
            break
    return sentences


def hide_words(
    sentence: str, *, num_blanks: int, words_in_blank: int, rng: np.random.Generator
) -> tuple[str, list[str]]:
    """Replace runs of words by `<extra_id_0>`, `<extra_id_1>`, ...

    The first and the last word stay, and a word between blanks.

    Returns:
      The sentence with blanks, as one would type it, and the hidden words of each blank.
    """
    words = sentence.split()
    room = (len(words) - 1) // num_blanks
    if room <= words_in_blank:
        raise ValueError(
            f"sentence must have more than {num_blanks * (words_in_blank + 1)} words for "
            f"{num_blanks} blanks of {words_in_blank}, got {len(words)}."
        )
    pieces, hidden, end = [], [], 0
    for k in range(num_blanks):
        start = 1 + k * room + int(rng.integers(room - words_in_blank))
        pieces += [*words[end:start], f"<extra_id_{k}>"]
        end = start + words_in_blank
        hidden.append(" ".join(words[start:end]))
    return " ".join([*pieces, *words[end:]]), hidden


def fill_blanks(
    t5: Text2Text, texts: Sequence[str], *, max_new_tokens: int = 32
) -> list[list[str]]:
    """Generate the text of every `<extra_id_k>` of every text, "" for those left out."""
    tokenizer = t5.tokenizer
    if tokenizer is None:
        raise ValueError("t5 must have a tokenizer to fill in text, got None; load it with one.")
    inputs = [encode_with_eos(tokenizer, text) for text in texts]
    tokens, mask = pad_batch(inputs, pad_id=tokenizer.pad_id)
    written = t5.generate_ids(tokens, encoder_mask=mask, max_new_tokens=max_new_tokens)
    filled = []
    for text, ids in zip(texts, written, strict=True):
        count = text.count("<extra_id_")
        spans = read_spans(ids, tokenizer, count=count)
        filled.append([spans.get(k, "") for k in range(count)])
    return filled


def read_spans(
    ids: Sequence[int] | np.ndarray, tokenizer: Tokenizer, *, count: int
) -> dict[int, str]:
    """Return the text after each of the first `count` sentinels of a sequence, by its number.

    It ends at EOS, or where the sentinel after those begins a span that nobody asked for.
    """
    # No sentinel further than that: those of ByT5 are bytes of ordinary characters.
    number = {tokenizer.sentinel_id(k): k for k in range(count)}
    ends = {tokenizer.eos_id}
    if count < tokenizer.num_sentinels:
        ends.add(tokenizer.sentinel_id(count))
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in map(int, ids):
        if token in ends:
            break
        if token in number:
            current = spans.setdefault(number[token], [])
        else:
            current.append(token)
    return {k: tokenizer.decode(tokens) for k, tokens in spans.items()}


def show_blanks(t5: Text2Text, sentences: Sequence[str], *, seed: int) -> Iterator[str]:
    """Yield each sentence with two blanks, as `[what stood there -> what the model writes]`."""
    rng = np.random.default_rng(seed)
    blanked = [hide_words(s, num_blanks=2, words_in_blank=2, rng=rng) for s in sentences]
    guesses = fill_blanks(t5, [text for text, _ in blanked])
    for (text, hidden), guessed in zip(blanked, guesses, strict=True):
        for k, (truth, guess) in enumerate(zip(hidden, guessed, strict=True)):
            text = text.replace(f"<extra_id_{k}>", f"[{truth} -> {guess}]")
        yield text
