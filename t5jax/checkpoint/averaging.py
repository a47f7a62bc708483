"""Choose among the checkpoints of a run, and average their parameters."""

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
from jaxtyping import PyTree

from t5jax.checkpoint import manager

CheckpointChoice = Literal["best", "last"]


def choose_checkpoints(
    folder: Path, *, choice: CheckpointChoice, count: int, every: int
) -> list[int]:
    """Choose the checkpoints of a run to use.

    Args:
      folder: the checkpoints of a run.
      choice: "best" for those with the lowest recorded loss, "last" for the newest.
      count: maximal number of checkpoints.
      every: for "last", take those whose step is a multiple of this, and the newest, so that it
        makes no difference where a run was interrupted.
    Returns:
      Their steps, best or newest first; fewer than `count` if there are fewer.
    Raises:
      ValueError: no checkpoint was saved with a loss, for "best".
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


def is_best(folder: Path, step: int, losses: Sequence[float]) -> bool:
    """Return whether no evaluation of a run was better than that of a checkpoint.

    Args:
      folder: the checkpoints of a run.
      step: of the checkpoint; one that was never evaluated is not the best.
      losses: of all evaluations, as `CheckpointManager.save` records them.
    Raises:
      ValueError: the checkpoint is damaged.
    """
    recorded = manager.recorded_loss(folder / str(step))
    return recorded is not None and all(recorded <= loss for loss in losses)


def average_checkpoints(folder: Path, steps: Sequence[int], name: str, abstract: PyTree) -> PyTree:
    """Average one of the pytrees of several checkpoints, loading one checkpoint after the other.

    Args:
      folder: the checkpoints of a run.
      steps: of the checkpoints, at least one.
      name: of the pytree, such as 'params'.
      abstract: its shapes, dtypes and shardings.
    Raises:
      ValueError: a checkpoint is damaged, or holds other arrays.
    """
    total = manager.load_checkpoint_tree(folder / str(steps[0]), name, abstract)
    for step in steps[1:]:
        total = _add(total, manager.load_checkpoint_tree(folder / str(step), name, abstract))
    return total if len(steps) == 1 else jax.tree.map(lambda x: x / len(steps), total)


@functools.partial(jax.jit, donate_argnums=0)
def _add(total: PyTree, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x + y, total, tree)
