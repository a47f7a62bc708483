"""Checkpoints that are written whole or not at all, and that say when they are damaged."""

import contextlib
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5jax.checkpoint.trees import (
    ArrayMismatch,
    checksum,
    first_line,
    import_orbax,
    load_tree,
    this_process_only,
)
from t5jax.parallel import (
    agree_on,
    barrier,
    is_main_process,
    process_index,
)

_RECORD = "record"


class CheckpointManager:
    """The checkpoints of one run: `folder/<step>/`, the newest few kept.

    Each holds named pytrees, such as parameters and optimizer state, and one JSON record, such as
    the position in the data.  Writing goes on while training does; a checkpoint takes its final
    name only when complete.
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
        """Opens `folder`, made if absent.

        Args:
          folder: the same for all processes, on a disk that they share.
          keep: the newest so many stay.
          keep_every: so do those of steps that are a multiple of this.
          keep_best: so do the so many with the lowest loss, of those saved with one.
          keep_round: so do the newest `count` of steps that are a multiple of `every`.
        """
        self._folder = Path(folder).resolve()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._losses: dict[int, float] = {}
        if keep_best:
            for step in complete_steps(self._folder):
                self._note_loss(step)

        rules: dict[str, Any] = {"keep": keep, "keep_every": keep_every}
        rules |= {"keep_best": keep_best, "keep_round": keep_round}
        self._preserve = _Preserve(lambda steps: steps_to_keep(steps, self._losses, **rules))
        self._manager = self._open()

    def _open(self):
        ocp = import_orbax()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._preserve,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        return ocp.CheckpointManager(self._folder, options=options)

    def _note_loss(self, step: int) -> None:
        with contextlib.suppress(ValueError):  # damaged, which `restore_latest` deals with
            loss = _read_record(self._folder / str(step))["loss"]
            if loss is not None:
                self._losses[step] = loss

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, ascending."""
        return complete_steps(self._folder)

    def save(
        self,
        step: int,
        trees: Mapping[str, Any],
        record: Mapping[str, Any],
        *,
        loss: float | None = None,
    ) -> None:
        """Starts writing; returns as soon as the arrays may change.  All processes must call it.

        Args:
          step: names the checkpoint; there must be none of that step.
          trees: named pytrees of arrays.
          record: anything JSON can hold.
          loss: on held-out data, for `keep_best`.
        Raises:
          OSError: this or the preceding save could not be written, as when the disk is full.
        """
        ocp = import_orbax()
        sums = {name: int(checksum(tree)) for name, tree in trees.items()}
        items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items[_RECORD] = ocp.args.JsonSave(
            {"record": dict(record), "checksums": sums, "loss": loss}
        )
        if loss is not None:
            self._losses[step] = loss
        self._guard(lambda: self._manager.save(step, args=ocp.args.Composite(**items), force=True))

    def restore_latest(
        self, abstract: Mapping[str, Any], *, warn: Callable[[str], None]
    ) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
        """The newest checkpoint that can be read whole.

        A damaged one is renamed to `<step>.damaged`, and the one before it is tried.

        Args:
          abstract: named pytrees of shapes, dtypes and shardings, as they were saved.
          warn: told, in one sentence, of every damaged checkpoint.
        Returns:
          Step, pytrees and record; None if there is no checkpoint.
        Raises:
          ValueError: there are checkpoints, and not one can be read.
        """
        damaged: list[tuple[int, str]] = []
        for step in self._common_steps():
            found, reason = self._try_restore(step, abstract)
            if found is None:
                damaged.append((step, reason))
                continue
            for bad, why in damaged:
                aside = self._set_aside(bad)
                warn(f"checkpoint {bad} is damaged ({why}); it was moved to {aside}.")
            return step, *found
        if damaged:
            raise ValueError(
                f"none of the checkpoints in {self._folder} can be read "
                f"(step {damaged[0][0]}: {damaged[0][1]}); restore one from a backup, or choose "
                "another output folder to start anew."
            )
        return None

    def _common_steps(self) -> list[int]:
        """The steps to try, newest first, the same list in all processes.

        Raises:
          OSError: the processes see different checkpoints.
        """
        steps = self.steps()
        seen = zlib.crc32(repr(steps).encode()) >> 1
        if agree_on(seen, reduce=np.ptp):
            raise OSError(
                f"all processes must see the same checkpoints in {self._folder}, and they do not "
                f"(process {process_index()} sees steps {steps}); the folder must be on a disk "
                "that they share."
            )
        return steps[::-1]

    def _try_restore(self, step: int, abstract: Mapping[str, Any]) -> tuple[Any, str]:
        """Pytrees and record; or None and the reason, if any process finds the step damaged."""
        folder = self._folder / str(step)
        found, reason = None, ""
        try:
            # Each process reads its own parts, and waits for nobody who may have failed.
            trees = {name: load_tree(folder / name, tree) for name, tree in abstract.items()}
            found = trees, _read_record(folder)
        except (MemoryError, PermissionError, ArrayMismatch):
            raise
        # Orbax and TensorStore raise bare Exceptions, and no two kinds of damage the same.
        except Exception as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise
            reason = first_line(error)
        if not agree_on(found is not None) or found is None:
            return None, reason or "another process could not read its part"
        trees, record = found
        for name, tree in trees.items():
            if int(checksum(tree)) != record["checksums"].get(name):
                return None, f"{folder} is damaged (the checksum of {name} differs)."
        return (trees, record["record"]), ""

    def _set_aside(self, step: int) -> Path:
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
        """Returns when everything saved is on disk; raises OSError if it could not be written."""
        self._guard(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits, and frees the background threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _guard(self, action: Callable[[], Any]) -> None:
        try:
            action()
        # A full disk arrives as OSError from Python or as ValueError from TensorStore.
        except (OSError, ValueError, RuntimeError) as error:
            raise OSError(
                f"could not write a checkpoint to {self._folder}: {first_line(error)}. Those saved "
                f"before are intact (steps {self.steps()}); make room and run the same command."
            ) from error


def steps_to_keep(
    steps: Sequence[int],
    losses: Mapping[int, float],
    *,
    keep: int,
    keep_every: int | None,
    keep_best: int,
    keep_round: tuple[int, int] | None = None,
) -> set[int]:
    """Which of `steps` stay: the newest, those of round numbers, and those of the lowest losses."""
    kept = set(sorted(steps)[-keep:])
    if keep_every is not None:
        kept |= {step for step in steps if step % keep_every == 0}
    if keep_round is not None:
        count, every = keep_round
        kept.update([step for step in sorted(steps) if step % every == 0][-count:])
    measured = sorted((losses[step], step) for step in steps if step in losses)
    return kept | {step for _, step in measured[:keep_best]}


class _Preserve:
    """`steps_to_keep` as Orbax asks for it."""

    def __init__(self, choose: Callable[[list[int]], set[int]]):
        self._choose = choose

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        kept = self._choose([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]


def load_checkpoint_tree(folder: str | os.PathLike, name: str, abstract: Any) -> Any:
    """One of the trees of a run's checkpoint `<step>/`, its checksum compared.

    Raises:
      ValueError: as from `load_tree`, or the checksum differs.
    """
    tree = load_tree(Path(folder) / name, abstract)
    if int(checksum(tree)) != recorded_checksum(folder, name):
        raise ValueError(f"{folder} is damaged (the checksum of {name} differs).")
    return tree


def recorded_checksum(folder: str | os.PathLike, name: str) -> int | None:
    """The checksum of one of the trees of a run's checkpoint `<step>/`, when it was saved."""
    return _read_record(Path(folder))["checksums"].get(name)


def recorded_loss(folder: str | os.PathLike) -> float | None:
    """What a run's checkpoint `<step>/` was saved with as its loss."""
    return _read_record(Path(folder))["loss"]


def complete_steps(folder: str | os.PathLike) -> list[int]:
    """Steps of the complete checkpoints in a run's folder, ascending; others have other names."""
    folder = Path(folder)
    return (
        sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []
    )


def _read_record(folder: Path) -> dict[str, Any]:
    ocp = import_orbax()
    alone = this_process_only()
    handler = ocp.JsonCheckpointHandler(**alone)
    with ocp.Checkpointer(handler, **alone) as checkpointer:
        try:
            found = checkpointer.restore((folder / _RECORD).resolve())
            return {
                "record": found["record"],
                "checksums": dict(found["checksums"]),
                "loss": found.get("loss"),  # absent in older ones
            }
        except Exception as error:  # as in `restore_latest`
            raise ValueError(f"{folder} is damaged (its record cannot be read).") from error
