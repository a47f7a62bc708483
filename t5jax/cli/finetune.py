"""`t5jax finetune`: fine-tune a model on the tasks in a JSON file."""

import dataclasses
from typing import Annotated

from tyro.conf import arg

from t5jax.data import load_tasks
from t5jax.recipes import FinetuneConfig, finetune
from t5jax.runtime import keep_memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune(FinetuneConfig):
    """Fine-tune a T5 on the tasks in a JSON file.

    The file contains a list of objects such as {"name": "de", "train": "train.tsv", "validation":
    "dev.tsv", "input": "to German: {en}", "target": "{de}", "metrics": ["bleu"]}.

    After Ctrl-C, SIGTERM or a crash, the same command resumes the run.  `--config FILE` reads
    options from a YAML or JSON file, such as the `options.yaml` of another run.

    Attributes:
      tasks: JSON file with one or more tasks, each with the fields of `t5jax.Task`.
    """

    tasks: Annotated[str, arg(metavar="FILE")]


def finetune_tasks(config: Finetune) -> None:
    """Read the tasks and fine-tune.

    Args:
      config: options of the run.
    Raises:
      ValueError, OSError, RunAborted: see `load_tasks` and `finetune`.
    """
    keep_memory()
    finetune(load_tasks(config.tasks), config)
