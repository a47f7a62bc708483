"""Select checkpoints of a run, and average their parameters."""

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
    """Select checkpoints of a run.

    Args:
      folder: checkpoint folder of the run.
      choice: "best" = lowest recorded loss, "last" = newest.
      count: maximum number of checkpoints.
      every: for "last", only select the newest step and multiples of this, so that interruptions of
        the run do not change the selection.
    Returns:
      At most `count` steps, best or newest first.
    Raises:
      ValueError: `choice` is "best", and no checkpoint has a recorded loss.
    """
    steps = manager.complete_steps(folder)[::-1]
    if choice == "last":
        return [step for step in steps if step == steps[0] or step % every == 0][:count]
    measured = []
    for step in steps:
        with contextlib.suppress(ValueError):  # skip damaged checkpoints
            loss = manager.recorded_loss(folder / str(step))
            if loss is not None:
                measured.append((loss, step))
    if not measured:
        raise ValueError(
            f"{folder} must have an evaluated checkpoint to select the best, got only "
            f"steps {steps} without a loss; select the last instead."
        )
    return [step for _, step in sorted(measured)[:count]]


def is_best(folder: Path, step: int, losses: Sequence[float]) -> bool:
    """Return True if no evaluation of a run had a lower loss than a checkpoint.

    Args:
      folder: checkpoint folder of the run.
      step: step of the checkpoint; one without a recorded loss is not the best.
      losses: losses of all evaluations, as passed to `CheckpointManager.save`.
    Raises:
      ValueError: the checkpoint is damaged.
    """
    recorded = manager.recorded_loss(folder / str(step))
    return recorded is not None and all(recorded <= loss for loss in losses)


def average_checkpoints(folder: Path, steps: Sequence[int], name: str, abstract: PyTree) -> PyTree:
    """Average a pytree over several checkpoints, loading one at a time.

    Args:
      folder: checkpoint folder of the run.
      steps: steps of the checkpoints, at least one.
      name: name of the pytree, such as "params".
      abstract: pytree with the shapes, dtypes and shardings to load.
    Returns:
      Pytree of the means.
    Raises:
      ValueError: a checkpoint is damaged, or its arrays differ from `abstract`.

    Examples:
      >>> from pathlib import Path
      >>> checkpoints = t5jax.checkpoint.CheckpointManager("run", keep=2)
      >>> for step in (1, 2):
      ...     checkpoints.save(step, {"params": {"w": jnp.full(3, float(step))}}, {})
      >>> checkpoints.close()
      >>> abstract = {"w": jnp.zeros(3)}
      >>> t5jax.checkpoint.average_checkpoints(Path("run"), [1, 2], "params", abstract)
      {'w': Array([1.5, 1.5, 1.5], dtype=float32)}
    """
    total = manager.load_checkpoint_tree(folder / str(steps[0]), name, abstract)
    for step in steps[1:]:
        total = _add(total, manager.load_checkpoint_tree(folder / str(step), name, abstract))
    return total if len(steps) == 1 else jax.tree.map(lambda x: x / len(steps), total)


@functools.partial(jax.jit, donate_argnums=0)
def _add(total: PyTree, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x + y, total, tree)
