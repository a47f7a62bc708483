"""Infilling: predict masked words of sentences and show them next to the original words."""

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from t5jax.generation import pad_batch
from t5jax.text2text import Text2Text
from t5jax.tokenizers import Tokenizer, encode_with_eos

# A capital letter, words with ordinary punctuation, and a full stop.
_SENTENCE = re.compile(r"(?<!\S)[A-Z][A-Za-z0-9,;:'()\- ]{60,140}\.(?!\S)")


def plain_sentences(documents: Iterable[str], *, count: int) -> list[str]:
    """Return the first plain English sentence of each document, without duplicates.

    Args:
      documents: texts to search; it stops after `count` sentences.
      count: maximum number of sentences, >= 1.
    Returns:
      Sentences of at least 8 words and 62 to 142 characters, on one line each.

    Examples:
      >>> sentence = "The old dog sleeps in the kitchen while the rain falls on the roof."
      >>> documents = ["def f(x): ...", "Too short. " + sentence]
      >>> t5jax.recipes.plain_sentences(documents, count=5)
      ['The old dog sleeps in the kitchen while the rain falls on the roof.']
    """
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
    """Replace random runs of words with `<extra_id_0>`, `<extra_id_1>`, ...

    The first word, the last word and at least one word between blanks are kept.

    Args:
      sentence: words separated by spaces.
      num_blanks: number of blanks.
      words_in_blank: number of words per blank.
      rng: random generator for the positions.
    Returns:
      The sentence with blanks, and the hidden words of each blank.
    Raises:
      ValueError: the sentence is too short.
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
    """Generate the text of every `<extra_id_k>` in every text.

    Args:
      t5: model with a tokenizer.
      texts: texts whose blanks are numbered from 0.
      max_new_tokens: maximum number of generated tokens per text, for all its blanks.
    Returns:
      For each text, the generated text of each blank; "" if the model generated none.
    Raises:
      ValueError: the model has no tokenizer.

    Examples:
      >>> texts = ["The <extra_id_0> sleeps.", "No blanks."]
      >>> [len(blanks) for blanks in t5jax.recipes.fill_blanks(t5, texts, max_new_tokens=4)]
      [1, 0]
    """
    tokenizer = t5.tokenizer
    if tokenizer is None:
        raise ValueError("t5 must have a tokenizer, got None; load the model with one.")
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
    """Return the text after each of the first `count` sentinels of a sequence.

    Args:
      ids: generated ids; they are read up to EOS or sentinel number `count`.
      tokenizer: source of the sentinels.
      count: number of sentinels.
    Returns:
      Number of the sentinel -> text; sentinels that do not occur are missing.
    """
    # Later sentinels are ignored: those of ByT5 are also bytes of ordinary characters.
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
    """Yield each sentence with two blanks filled in, as `[original words -> generated text]`.

    Args:
      t5: model with a tokenizer.
      sentences: sentences of more than 6 words.
      seed: random seed for the positions of the blanks, of two words each.
    Yields:
      The sentence with the original and the generated text of each blank.
    Raises:
      ValueError: a sentence is too short, or the model has no tokenizer.

    Examples:
      >>> sentence = "The old dog sleeps in the warm kitchen."
      >>> for line in t5jax.recipes.show_blanks(t5, [sentence], seed=0):  # doctest: +SKIP
      ...     print(line)
      The [old dog -> big cat] sleeps [in the -> in our] warm kitchen.
    """
    rng = np.random.default_rng(seed)
    blanked = [hide_words(s, num_blanks=2, words_in_blank=2, rng=rng) for s in sentences]
    guesses = fill_blanks(t5, [text for text, _ in blanked])
    for (text, hidden), guessed in zip(blanked, guesses, strict=True):
        for k, (truth, guess) in enumerate(zip(hidden, guessed, strict=True)):
            text = text.replace(f"<extra_id_{k}>", f"[{truth} -> {guess}]")
        yield text
