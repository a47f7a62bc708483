"""Parameters out of the checkpoints of a run: the newest, the best, or a mean of several."""

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from t5jax.checkpoint import manager

CheckpointChoice = Literal["best", "last"]


def choose_checkpoints(
    folder: Path, *, choice: CheckpointChoice, count: int, every: int
) -> list[int]:
    """Steps of the checkpoints to use, best or newest first; fewer than `count` if there are fewer.

    Args:
      folder: the checkpoints of a run.
      choice: those with the lowest recorded loss, or the newest.
      count: how many, at most.
      every: of the newest, those whose step is a multiple of it, and the last; so where a run was
        interrupted makes no difference.
    Raises:
      ValueError: none was saved with a loss, for the best.
    """
    steps = manager.complete_steps(folder)[::-1]
    if choice == "last":
        return [step for step in steps if step == steps[0] or step % every == 0][:count]
    measured = []
    for step in steps:
        with contextlib.suppress(ValueError):  # a damaged one is not chosen
            loss = manager.recorded_loss(folder / str(step))
            if loss is not None:
                measured.append((loss, step))
    if not measured:
        raise ValueError(
            f"{folder} must hold a checkpoint that was evaluated, to choose the best from, got "
            f"{steps}; use the last instead."
        )
    return [step for _, step in sorted(measured)[:count]]


def is_best(folder: Path, step: int, numbers: Sequence[float]) -> bool:
    """Whether none of a run's evaluations was better than that of a checkpoint.

    Args:
      folder: the checkpoints of a run.
      step: of the checkpoint; one that was never evaluated is not the best.
      numbers: of all evaluations, what would be such a loss.
    Raises:
      ValueError: the checkpoint is damaged.
    """
    kept = manager.recorded_loss(folder / str(step))
    return kept is not None and all(kept <= number for number in numbers)


def average_checkpoints(folder: Path, steps: Sequence[int], name: str, abstract: Any) -> Any:
    """The mean over checkpoints of one of their trees, computed one checkpoint after the other.

    Args:
      folder: the checkpoints of a run.
      steps: which of them; at least one.
      name: of the tree, such as 'params'.
      abstract: its shapes, dtypes and shardings.
    Raises:
      ValueError: a checkpoint is damaged or holds other arrays.
    """
    total = manager.load_checkpoint_tree(folder / str(steps[0]), name, abstract)
    for step in steps[1:]:
        total = _add(total, manager.load_checkpoint_tree(folder / str(step), name, abstract))
    return total if len(steps) == 1 else jax.tree.map(lambda x: x / len(steps), total)


@functools.partial(jax.jit, donate_argnums=0)
def _add(total: Any, tree: Any) -> Any:
    return jax.tree.map(lambda x, y: x + y, total, tree)
