"""Checkpoints of a run: written atomically, and verified when read."""

import contextlib
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from t5jax.checkpoint.trees import (
    ArrayMismatch,
    checksum,
    first_line,
    load_tree,
    this_process_only,
)
from t5jax.fileio import JsonObject, is_full
from t5jax.parallel import (
    agree_on,
    barrier,
    is_main_process,
    process_index,
)

_RECORD = "record"
# Metadata of a checkpoint, at most.
_OVERHEAD_BYTES = 256 * 1024


class CheckpointManager:
    """Checkpoints of one run, in `folder/<step>/`.

    A checkpoint holds named pytrees, such as parameters and optimizer state, and a JSON record,
    such as the position in the data.  It is written in the background, and gets its final name only
    when complete.

    Examples:
      >>> checkpoints = t5jax.checkpoint.CheckpointManager("run", keep=2)
      >>> checkpoints.save(10, {"params": {"w": jnp.ones(3)}}, {"examples": 640})
      >>> checkpoints.wait()
      >>> abstract = {"params": {"w": jnp.zeros(3)}}
      >>> step, trees, record = checkpoints.restore_latest(abstract, warn=print)
      >>> step, trees["params"]["w"], record
      (10, Array([1., 1., 1.], dtype=float32), {'examples': 640})
      >>> checkpoints.close()
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        keep: int,
        keep_every: int | None = None,
        keep_best: int = 0,
        keep_round: tuple[int, int] | None = None,
    ):
        """Open the checkpoints of a run; those that no option keeps are deleted.

        Args:
          folder: checkpoint folder, created if absent; the same for all processes, on a shared
            disk.
          keep: number of newest checkpoints to keep.
          keep_every: also keep steps that are a multiple of this.
          keep_best: also keep this number of checkpoints with the lowest loss.
          keep_round: (count, every); also keep the newest `count` multiples of `every`.
        """
        self._folder = Path(folder).resolve()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._keep_best = keep_best
        self._losses = _recorded_losses(self._folder) if keep_best else {}
        self._policy = preservation_policy(
            self._losses,
            keep=keep,
            keep_every=keep_every,
            keep_best=keep_best,
            keep_round=keep_round,
        )
        self._manager = self._open()

    def _open(self):
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        return ocp.CheckpointManager(self._folder, options=options)

    @property
    def keeps_best(self) -> bool:
        """True if checkpoints with the lowest losses are kept."""
        return self._keep_best > 0

    def steps(self) -> list[int]:
        """Return the steps of complete checkpoints, in ascending order."""
        return complete_steps(self._folder)

    def save(
        self,
        step: int,
        trees: Mapping[str, PyTree],
        record: JsonObject,
        *,
        loss: float | None = None,
    ) -> None:
        """Start writing a checkpoint; return as soon as the arrays may change.

        All processes must call it.

        Args:
          step: step of the checkpoint; must not exist yet.
          trees: pytrees of arrays, by name.
          record: JSON-serializable mapping.
          loss: held-out loss, for `keep_best`.
        Raises:
          OSError: this or the previous checkpoint could not be written, e.g. the disk is full.
        """
        import orbax.checkpoint as ocp

        self._check_space(trees)
        checksums = {name: int(checksum(tree)) for name, tree in trees.items()}
        items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        contents = {"record": dict(record), "checksums": checksums, "loss": loss}
        items[_RECORD] = ocp.args.JsonSave({**contents, "digest": _digest(contents)})
        if loss is not None:
            self._losses[step] = loss
        with self._explain_write_errors():
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def _check_space(self, trees: Mapping[str, PyTree]) -> None:
        """Raise OSError if the disk has no space, before Orbax fails to write in the background."""
        shards = (
            shard.data.nbytes
            for leaf in jax.tree.leaves(dict(trees))
            for shard in getattr(leaf, "addressable_shards", ())
            if shard.replica_id == 0
        )
        needed, free = sum(shards) + _OVERHEAD_BYTES, shutil.disk_usage(self._folder).free
        if free < needed:
            raise OSError(
                f"could not write a checkpoint to {self._folder}: it needs "
                f"{needed / 2**20:.1f} MiB, got {free / 2**20:.1f} MiB of free space. Earlier "
                f"checkpoints are intact (steps {self.steps()}); free disk space and rerun the "
                "same command."
            )

    def restore_latest(
        self, abstract: Mapping[str, PyTree], *, warn: Callable[[str], None]
    ) -> tuple[int, dict[str, PyTree], JsonObject] | None:
        """Restore the newest intact checkpoint.

        Newer damaged checkpoints are renamed to `<step>.damaged`.  All processes must call it.

        Args:
          abstract: pytrees with the shapes, dtypes and shardings that were saved, by name.
          warn: called with a one-sentence warning for each damaged checkpoint.
        Returns:
          Step, pytrees and record; None if there is no checkpoint.
        Raises:
          ValueError: no checkpoint can be read, or its arrays differ from `abstract`.
          OSError: the processes see different checkpoints.
        """
        damaged: dict[int, str] = {}
        for step in self._common_steps():
            try:
                trees, record = self._restore(step, abstract)
            except _DamagedError as error:
                damaged[step] = str(error)
                continue
            for damaged_step, reason in damaged.items():
                aside = self._set_aside(damaged_step)
                warn(f"checkpoint {damaged_step} is damaged ({reason}); it was moved to {aside}.")
            return step, trees, record
        if damaged:
            newest = max(damaged)
            raise ValueError(
                f"none of the checkpoints in {self._folder} can be read "
                f"(step {newest}: {damaged[newest]}); restore one from a backup, or choose "
                "another output folder to start over."
            )
        return None

    def _common_steps(self) -> list[int]:
        """Return the steps to try, newest first, and check that all processes see the same.

        Raises:
          OSError: the processes see different checkpoints.
        """
        steps = self.steps()
        digest = zlib.crc32(repr(steps).encode()) >> 1
        if agree_on(digest, reduce=np.ptp):
            raise OSError(
                f"all processes must see the same checkpoints in {self._folder}, got steps {steps} "
                f"in process {process_index()} and others elsewhere; use a folder on a shared disk."
            )
        return steps[::-1]

    def _restore(
        self, step: int, abstract: Mapping[str, PyTree]
    ) -> tuple[dict[str, PyTree], JsonObject]:
        """Read the pytrees and the record of a step.

        Raises:
          _DamagedError: a process cannot read its shards.
        """
        folder = self._folder / str(step)
        trees, contents, reason = {}, None, ""
        try:
            # Each process reads its own shards, without waiting for others, which may have failed.
            trees = {name: load_tree(folder / name, tree) for name, tree in abstract.items()}
            contents = _read_record(folder)
        except (MemoryError, PermissionError, ArrayMismatch):
            raise
        # Orbax and TensorStore raise bare Exceptions, different ones for each kind of damage.
        except Exception as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise
            reason = first_line(error)
        if not agree_on(contents is not None) or contents is None:
            raise _DamagedError(reason or "another process could not read its shards")
        for name, tree in trees.items():
            if int(checksum(tree)) != contents["checksums"].get(name):
                raise _DamagedError(f"the checksum of {name} differs")
        return trees, contents["record"]

    def _set_aside(self, step: int) -> Path:
        """Rename a damaged checkpoint, so that its step can be saved again."""
        source = self._folder / str(step)
        target = self._folder / f"{step}.damaged"
        count = 1
        while target.exists():
            count += 1
            target = self._folder / f"{step}.damaged{count}"
        self._losses.pop(step, None)
        self._manager.close()
        barrier("a damaged checkpoint found")
        if is_main_process():
            source.rename(target)
        barrier("a damaged checkpoint set aside")
        self._manager = self._open()
        return target

    def wait(self) -> None:
        """Wait until every checkpoint is on disk.

        Raises:
          OSError: a checkpoint could not be written.
        """
        with self._explain_write_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait until every checkpoint is on disk, and free the background threads.

        Raises:
          OSError: a checkpoint could not be written.
        """
        try:
            self.wait()
        finally:
            self._manager.close()

    @contextlib.contextmanager
    def _explain_write_errors(self) -> Iterator[None]:
        """Turn a failed write into an OSError that names the intact checkpoints and a remedy."""
        try:
            yield
        # A full disk arrives as OSError from Python or as ValueError from TensorStore.
        except (OSError, ValueError, RuntimeError) as error:
            full = is_full(error) or "RESOURCE_EXHAUSTED" in str(error)
            remedy = "free disk space" if full else "make it writable"
            raise OSError(
                f"could not write a checkpoint to {self._folder}: {first_line(error)}. Earlier "
                f"checkpoints are intact (steps {self.steps()}); {remedy} and rerun the same "
                "command."
            ) from error


class _DamagedError(Exception):
    """Unreadable checkpoint, with the reason."""


def preservation_policy(
    losses: Mapping[int, float],
    *,
    keep: int,
    keep_every: int | None = None,
    keep_best: int = 0,
    keep_round: tuple[int, int] | None = None,
) -> Any:
    """Build the Orbax preservation policy for the options of `CheckpointManager`.

    Args:
      losses: losses by step, read at every save; steps without a loss are not among the best.
      keep: number of newest checkpoints to keep.
      keep_every: also keep steps that are a multiple of this.
      keep_best: also keep this number of checkpoints with the lowest loss.
      keep_round: (count, every); also keep the newest `count` multiples of `every`.
    Returns:
      The union of these policies.
    """
    from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, EveryNSteps, LatestN

    policies: list[Any] = [LatestN(keep), _LowestLosses(losses, keep_best)]
    if keep_every is not None:
        policies.append(EveryNSteps(keep_every))
    if keep_round is not None:
        count, every = keep_round
        policies.append(EveryNSteps(every, max_to_keep=count))
    return AnyPreservationPolicy(policies)


class _LowestLosses:
    """Policy that keeps the checkpoints with the lowest losses, preferring earlier ones in ties.

    Orbax's BestN keeps all checkpoints while there are at most `count`, with or without a loss, and
    needs losses in a file that older checkpoints do not have.
    """

    def __init__(self, losses: Mapping[int, float], count: int):
        self._losses = losses
        self._count = count

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        ranked = sorted((self._losses[step], step) for step in steps if step in self._losses)
        best = {step for _, step in ranked[: self._count]}
        return [step in best for step in steps]


def load_checkpoint_tree(folder: str | os.PathLike, name: str, abstract: PyTree) -> PyTree:
    """Load a pytree of a checkpoint, and verify its checksum.

    Args:
      folder: folder of the checkpoint, `<step>/`.
      name: name of the pytree.
      abstract: pytree with the shapes, dtypes and shardings to load.
    Raises:
      ValueError: the checkpoint is damaged.
      ArrayMismatch: its arrays differ from `abstract`.
    """
    tree = load_tree(Path(folder) / name, abstract)
    if int(checksum(tree)) != recorded_checksum(folder, name):
        raise ValueError(f"{folder} is damaged (the checksum of {name} differs).")
    return tree


def recorded_checksum(folder: str | os.PathLike, name: str) -> int | None:
    """Read the recorded checksum of a pytree in a checkpoint folder, `<step>/`."""
    return _read_record(Path(folder))["checksums"].get(name)


def recorded_loss(folder: str | os.PathLike) -> float | None:
    """Read the recorded loss of a checkpoint folder, `<step>/`; None if it has none."""
    return _read_record(Path(folder))["loss"]


def _recorded_losses(folder: Path) -> dict[int, float]:
    """Read the losses of a run's checkpoints, by step."""
    losses = {}
    for step in complete_steps(folder):
        with contextlib.suppress(ValueError):  # damaged; `restore_latest` handles it
            loss = recorded_loss(folder / str(step))
            if loss is not None:
                losses[step] = loss
    return losses


def complete_steps(folder: str | os.PathLike) -> list[int]:
    """List the steps of complete checkpoints in a folder, in ascending order."""
    folder = Path(folder)
    # Incomplete checkpoints have other names.
    return (
        sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []
    )


def _digest(contents: JsonObject) -> str:
    text = json.dumps(json.loads(json.dumps(contents)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_record(folder: Path) -> JsonObject:
    import orbax.checkpoint as ocp

    alone = this_process_only()
    handler = ocp.JsonCheckpointHandler(**alone)
    with ocp.Checkpointer(handler, **alone) as checkpointer:
        try:
            contents = checkpointer.restore((folder / _RECORD).resolve())
            # Absent in older checkpoints.
            if "digest" in contents and contents.pop("digest") != _digest(contents):
                raise ValueError("the digest differs")
            return {
                "record": contents["record"],
                "checksums": dict(contents["checksums"]),
                "loss": contents.get("loss"),  # absent in older checkpoints
            }
        except Exception as error:  # as in `_restore`
            raise ValueError(f"{folder} is damaged (its record cannot be read).") from error
