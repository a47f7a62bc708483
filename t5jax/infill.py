"""Fills the blanks of sentences with what a model writes, beside what stood there."""

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from t5jax import denoise
from t5jax.text2text import Text2Text
from t5jax.tokenizer import Tokenizer

# A plain sentence: a capital, words and ordinary punctuation, a full stop.
_SENTENCE = re.compile(r"(?<![^\s])[A-Z][A-Za-z0-9,;:'()\- ]{60,140}\.(?=\s|$)")


def sentences(documents: Iterable[str], *, count: int) -> list[str]:
    """The first sentence of plain English in each of the first documents that have one."""
    found = []
    for document in documents:
        match = _SENTENCE.search(" ".join(document.split()))
        if match and match.group() not in found:
            found.append(match.group())
        if len(found) == count:
            break
    return found


def show(
    t5: Text2Text, sentences: Sequence[str], *, corruption: denoise.SpanCorruption, seed: int
) -> Iterator[str]:
    """Each sentence with its hidden spans as `[hidden -> filled in]`."""
    tokenizer = t5.tokenizer
    if tokenizer is None:
        raise ValueError("t5 must have a tokenizer to fill in text, got None; load one with it.")
    sentinels = np.array([tokenizer.sentinel_id(k) for k in range(tokenizer.num_sentinels)])
    for i, sentence in enumerate(sentences):
        tokens = np.array(tokenizer.encode(sentence), np.int32)
        if len(tokens) < 2:
            continue
        mask = denoise.noise_mask(
            len(tokens), corruption=corruption, rng=np.random.default_rng([seed, i])
        )
        inputs, targets = denoise.corrupt(
            tokens, mask, sentinels=sentinels, eos_id=tokenizer.eos_id
        )
        written = t5.generate_ids(
            inputs[None],
            encoder_mask=np.ones((1, len(inputs)), bool),
            max_new_tokens=2 * len(targets),
        )[0]
        truth = spans(targets, tokenizer)
        guess = spans(written, tokenizer)
        pieces, k = [], 0
        for part in _split(inputs[:-1], sentinels):
            if part is None:
                pieces.append(f" [{truth.get(k, '')} -> {guess.get(k, '')}]")
                k += 1
            else:
                pieces.append(_spaced(tokenizer, part))
        yield "".join(pieces).strip()


def spans(targets: Sequence[int] | np.ndarray, tokenizer: Tokenizer) -> dict[int, str]:
    """Texts behind each sentinel of a target sequence, by the sentinel's number."""
    number = {tokenizer.sentinel_id(k): k for k in range(tokenizer.num_sentinels)}
    found: dict[int, list[int]] = {}
    current: list[int] = []
    for token in map(int, targets):
        if token == tokenizer.eos_id:
            break
        if token in number:
            current = found.setdefault(number[token], [])
        else:
            current.append(token)
    return {k: tokenizer.decode(ids) for k, ids in found.items()}


def _split(inputs: np.ndarray, sentinels: np.ndarray) -> Iterator[np.ndarray | None]:
    """Runs of ordinary ids, and None for each sentinel."""
    places = np.flatnonzero(np.isin(inputs, sentinels))
    start = 0
    for place in places:
        yield inputs[start:place]
        yield None
        start = place + 1
    yield inputs[start:]


def _spaced(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    """Text of ids from the middle of a sentence, with the space that decoding strips."""
    text = tokenizer.decode(ids)
    anchor = tokenizer.decode([*tokenizer.encode("a"), *map(int, ids)])
    return f" {text}" if anchor.startswith("a ") else text
