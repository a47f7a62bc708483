"""Pronounce words that are not in CMUdict with several models, for one model to learn from.

    python examples/g2p_cmudict.py --output runs/one
    python examples/g2p_cmudict.py --output runs/two --seed 2
    python examples/g2p_teach.py --words WORDS --models runs/one/model runs/two/model
    python examples/g2p_cmudict.py --output runs/three --taught runs/taught.tsv

WORDS is a text with one word a line, such as /usr/share/dict/words.  Models that were trained apart
err apart, and together are more often right than each; one that learns from what they write, on
words beyond the dictionary too, keeps a part of that.  (Kim and Rush 2016, arXiv:1606.07947, for
whole sequences; Sun et al. 2019, arXiv:1904.03446, for pronunciation.)  Words of the dictionary are
left out, so that none of its test is learnt.

Ctrl-C loses at most some minutes; the same command goes on.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from g2p_cmudict import Lexicon, entries, phonemes, pronounce, rows
from tqdm import tqdm

import t5jax
from t5jax import cli, files, heap

_AT_ONCE = 4000
_LONGEST = 20  # three such words and their letters are a row of examples/g2p_cmudict.py


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Which words, and who pronounces them."""

    words: str
    """File with a word a line; what is no word of English letters is left out."""
    models: tuple[str, ...]
    """Models of examples/g2p_cmudict.py, whose probabilities are averaged."""
    data: str | None = None
    """As they were trained with."""
    output: str = "runs/taught.tsv"
    """File to write: word, tab, phonemes."""


def unknown(lines: Iterable[str], known: Iterable[str]) -> list[str]:
    """Words in upper case, each once, of 2 to 20 letters or apostrophes, without known ones."""
    words = dict.fromkeys(line.strip().upper() for line in lines)
    for word in known:
        words.pop(word, None)
    return [
        word
        for word in words
        if 2 <= len(word) <= _LONGEST and word.isascii() and word.replace("'", "").isalpha()
    ]


def teach(config: Config) -> Iterator[int]:
    """Writes the file, and yields how many words are done, of how many at first.

    Raises:
      FileNotFoundError: no such words or data.
      ValueError: the output is of other words.
    """
    splits = rows(config.data)
    known = (row["word"] for split in splits for row in split)
    path = Path(config.words).expanduser()
    with path.open(encoding="utf-8") as lines:
        words = unknown(lines, known)
    output = Path(config.output).expanduser()
    written = entries(output) if output.exists() else []
    if [word for word, _ in written] != words[: len(written)]:
        raise ValueError(f"output must be new or of these words, got {output}; choose another.")
    yield len(words)
    yield len(written)
    lexicon = Lexicon(splits[0])
    models = [t5jax.load(name, dtype="bfloat16") for name in config.models]
    output.parent.mkdir(parents=True, exist_ok=True)
    while len(written) < len(words):
        part = words[len(written) : len(written) + _AT_ONCE]
        letters = pronounce(models, lexicon, part, num_beams=1)
        written += zip(part, map(phonemes, letters), strict=True)
        files.write(output, "".join(f"{word}\t{spoken}\n" for word, spoken in written))
        yield len(written)


def main(config: Config) -> None:
    """Writes the file, with a progress bar."""
    steps = teach(config)
    with tqdm(total=next(steps), unit=" words", unit_scale=True) as bar:
        for done in steps:
            bar.update(done - bar.n)
    print(f"learn from it:  python examples/g2p_cmudict.py --taught {config.output}")


if __name__ == "__main__":
    heap.keep_memory()
    cli.main(Config, main, description=__doc__)
