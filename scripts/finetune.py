"""Trains a T5 on pairs of texts: `python scripts/finetune.py --help`."""

import dataclasses
from typing import Annotated

from tyro.conf import arg

from t5jax.cli import run_command
from t5jax.data import load_tasks
from t5jax.recipes import FinetuneConfig, finetune
from t5jax.runtime import keep_memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(FinetuneConfig):
    """Trains a T5 on the tasks of a JSON file, a list of objects such as

    {"name": "de", "train": "train.tsv", "validation": "dev.tsv", "input": "to German: {en}",
    "target": "{de}", "metrics": ["bleu"]}.

    Stopped by Ctrl-C, SIGTERM or a crash, the same command continues where it was.
    """

    tasks: Annotated[str, arg(metavar="FILE")]
    """JSON file of one task or several; their fields are those of t5jax.Task."""


def main(config: Config) -> None:
    """Reads the tasks and trains."""
    finetune(load_tasks(config.tasks), config)


if __name__ == "__main__":
    keep_memory()
    run_command(Config, main)
