"""Parameters out of the checkpoints of a run: the newest, the best, or a mean of several."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from t5jax import checkpoint

Choice = Literal["best", "last"]


def choose(folder: Path, *, choice: Choice, count: int) -> list[int]:
    """Steps of the checkpoints to use, best or newest first; fewer than `count` if there are fewer.

    Args:
      folder: the checkpoints of a run.
      choice: those with the lowest recorded loss, or the newest.
      count: how many, at most.
    """
    steps = checkpoint.complete_steps(folder)[::-1]
    if choice == "best":
        losses = {step: checkpoint.recorded_loss(folder / str(step)) for step in steps}
        measured = sorted((loss, step) for step, loss in losses.items() if loss is not None)
        steps = [step for _, step in measured] or steps
    return steps[:count]


def mean(folder: Path, steps: Sequence[int], name: str, abstract: Any) -> Any:
    """The mean over checkpoints of one of their trees, computed one checkpoint after the other.

    Args:
      folder: the checkpoints of a run.
      steps: which of them; at least one.
      name: of the tree, such as 'params'.
      abstract: its shapes, dtypes and shardings.
    Raises:
      ValueError: a checkpoint is damaged or holds other arrays.
    """
    total = checkpoint.load_item(folder / str(steps[0]), name, abstract)
    for step in steps[1:]:
        total = _add(total, checkpoint.load_item(folder / str(step), name, abstract))
    return total if len(steps) == 1 else jax.tree.map(lambda x: x / len(steps), total)


@jax.jit
def _add(total: Any, tree: Any) -> Any:
    return jax.tree.map(lambda x, y: x + y, total, tree)
