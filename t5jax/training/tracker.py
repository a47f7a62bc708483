"""Trackers: where the metrics of a run go.

The trainer logs metrics under names with a group: `train/loss`, `eval/loss`,
`speed/tokens_per_second`, `skipped/chunks`. A tracker takes the groups that it knows, and ignores
the others.
"""

import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from t5jax.fileio import write_atomically
from t5jax.parallel import process_index

METRICS_FILE = "metrics.jsonl"

_log = logging.getLogger("t5jax")

# Rates of wall time, for the progress bar; files have `speed/tokens_per_second`.
TOKEN_RATE, NON_PAD_TOKEN_RATE = "speed/tok/s", "speed/non-pad tok/s"


@runtime_checkable
class Tracker(Protocol):
    """Receives the metrics of a run.

    Example:
      >>> class Printer:
      ...     def log(self, step, metrics):
      ...         print(step, metrics)
      ...
      ...     def close(self):
      ...         pass
      >>> isinstance(Printer(), Tracker)
      True
    """

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record metrics of a step.

        Args:
          step: number of the step, from 1; it never decreases, and occurs in several calls.
          metrics: by name. Numbers, some of which may not be finite, in
            `train/*` (every training step), `batch/tokens` and `batch/non_pad_tokens` (with them),
            `eval/*` (an evaluation), `speed/*` (since the last such call) and `skipped/steps` (in
            all, at a skipped step); a list of numbers in `skipped/chunks`.
        """
        ...

    def close(self) -> None:
        """Write what is left and free resources; nothing is logged afterwards."""
        ...


@contextlib.contextmanager
def open_tracker(
    folder: str | os.PathLike,
    *,
    total_steps: int,
    start_step: int,
    others: Sequence[Tracker] = (),
    process: int | None = None,
) -> Iterator[Tracker]:
    """Open the trackers of a run, and close them at the end.

    Process 0 writes `metrics.jsonl`, `loss.png` and TensorBoard's files and shows a progress bar;
    every other process writes a text file of its own.

    Args:
      folder: folder of the run.
      total_steps: steps of the whole run.
      start_step: step that the run continues from; entries of later steps are dropped.
      others: further trackers, which receive what process 0 logs.
      process: index of the process, defaults to this one's.
    """
    process = process_index() if process is None else process
    if process > 0:
        tracker = TrackerGroup([ProcessLog(folder, process=process)])
    else:
        tracker = TrackerGroup(
            [
                MetricsFile(folder, start_step=start_step),
                TensorBoard(folder, start_step=start_step),
                ProgressBar(total_steps=total_steps, start_step=start_step),
                *others,
            ]
        )
    try:
        yield tracker
    except BaseException:
        # The first error must not be hidden by those that follow from it.
        with contextlib.suppress(OSError):
            tracker.close()
        raise
    tracker.close()


class TrackerGroup:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]):
        """Combine trackers; they are closed in reverse order."""
        self._trackers = trackers

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Log to each tracker in order."""
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def close(self) -> None:
        """Close all trackers, even if closing one fails."""
        with contextlib.ExitStack() as stack:
            for tracker in self._trackers:
                stack.callback(tracker.close)


class MetricsFile:
    """Writes `metrics.jsonl`, and draws `loss.png` at the end.

    One object a line: `{"step": 7, "loss": ...}` for a training step, `{"step": 200, "eval_loss":
    ...}` for an evaluation, `{"step": 10, "goodput": ...}` for the speed, and `{"step": 9,
    "skipped_chunks": ...}` for a skipped step. Numbers that are not finite are null.
    """

    def __init__(self, folder: str | os.PathLike, *, start_step: int):
        """Open the file; entries of steps after `start_step` are dropped, to be written again."""
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / METRICS_FILE
        entries = [entry for entry in read_metrics(folder) if entry["step"] <= start_step]
        write_atomically(path, "".join(map(_line, entries)))
        self._file = path.open("a")

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append a line; see `Tracker.log`."""
        record = _record(metrics)
        if record:
            self._file.write(_line({"step": step, **record}))
        if not _of_training_step(metrics):
            self._file.flush()

    def close(self) -> None:
        """Close the file and draw the losses."""
        self._file.close()
        entries = read_metrics(self._folder)
        names = {name for e in entries for name, value in e.items() if value is not None}
        if names & {"loss", "eval_loss"}:
            _draw(entries, self._folder / "loss.png")


class TensorBoard:
    """Writes scalars for TensorBoard, to the folder `tensorboard`."""

    def __init__(self, folder: str | os.PathLike, *, start_step: int):
        """Open the folder; TensorBoard hides what it holds of steps after `start_step`."""
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=start_step + 1)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Add scalars; see `Tracker.log`."""
        for name, value in metrics.items():
            if name.startswith(("train/", "eval/", "speed/")):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class ProgressBar:
    """Progress bar with the losses and the speed; off a terminal and a notebook, lines of a log."""

    def __init__(self, *, total_steps: int, start_step: int):
        """Show the bar at `start_step` of `total_steps`."""
        from tqdm.auto import tqdm

        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            disable=not (sys.stderr.isatty() or "ipykernel" in sys.modules),
        )
        self._total_steps = total_steps
        self._shown: dict[str, str] = {}

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Note the metrics of a training step, show those of all others; see `Tracker.log`."""
        if "skipped/steps" in metrics:
            _log.warning(
                "step %d was skipped, its loss or gradient could not be trusted; chunks %s",
                step,
                metrics["skipped/chunks"],
            )
            return
        for name, shown, form in (
            ("train/loss", "loss", ".3f"),
            ("eval/loss", "eval", ".3f"),
            ("eval/score", "score", ".2f"),
            ("speed/mfu", "mfu", ".1%"),
            (TOKEN_RATE, "tok/s", ",.0f"),
            (NON_PAD_TOKEN_RATE, "non-pad tok/s", ",.0f"),
        ):
            if name in metrics:
                self._shown[shown] = format(metrics[name], form)
        if self._bar.disable and not _of_training_step(metrics):
            values = ", ".join(f"{name} {value}" for name, value in self._shown.items())
            _log.info("step %d of %d: %s", step, self._total_steps, values)
        elif not _of_training_step(metrics):
            self._bar.set_postfix(self._shown, refresh=False)
            self._bar.n = step
            self._bar.refresh()

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


class ProcessLog:
    """Writes lines to `logs/process-<i>.log`, for processes other than the first."""

    def __init__(self, folder: str | os.PathLike, *, process: int):
        """Open the file of a process."""
        path = Path(folder) / "logs" / f"process-{process}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        self._note("started")

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write a line; see `Tracker.log`."""
        if "train/loss" in metrics:
            self._note(
                f"step {step}: loss {metrics['train/loss']:.4f}, "
                f"{metrics['batch/non_pad_tokens']} of {metrics['batch/tokens']} tokens"
            )
            return
        if "eval/loss" in metrics:
            self._note(f"step {step}: held-out loss {metrics['eval/loss']:.4f}")
        elif "skipped/steps" in metrics:
            self._note(f"step {step} was skipped, chunks {metrics['skipped/chunks']}")
        elif record := _record(metrics):
            shown = ", ".join(f"{name} {value:.4g}" for name, value in record.items())
            self._note(f"step {step}: {shown}")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _note(self, text: str) -> None:
        self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def _of_training_step(metrics: Mapping[str, Any]) -> bool:
    """Return True for metrics that come with every step, which nobody waits for."""
    return "train/loss" in metrics


def _record(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics under the names that files have for them."""
    record = {}
    for name, value in metrics.items():
        group, _, rest = name.partition("/")
        if group in ("eval", "skipped"):
            record[f"{group}_{rest}"] = value
        elif group == "train" or (
            group == "speed" and name not in (TOKEN_RATE, NON_PAD_TOKEN_RATE)
        ):
            record[rest] = value
    return record


def _line(entry: dict[str, Any]) -> str:
    # JSON has no word for what is not finite, such as the loss of a step that was skipped.
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in entry.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


def read_metrics(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """Read all entries of a run's `metrics.jsonl`, except a last line that was cut off."""
    path = Path(folder) / METRICS_FILE
    entries = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def read_evaluations(folder: str | os.PathLike, *, until: int) -> list[dict[str, float]]:
    """Read the evaluations of a run up to a step; numbers that were not finite are NaN."""
    evaluations = []
    for entry in read_metrics(folder):
        numbers = {
            name.removeprefix("eval_"): math.nan if value is None else value
            for name, value in entry.items()
            if name.startswith("eval_")
        }
        if numbers and entry["step"] <= until:
            evaluations.append(numbers)
    return evaluations


def _draw(entries: list[dict[str, Any]], path: Path) -> None:
    # The object interface: pyplot would choose a backend for the whole process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, label, style in (("loss", "training", "-"), ("eval_loss", "held out", "o-")):
        points = [(e["step"], e[name]) for e in entries if e.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1, markersize=4)
    axes.set(xlabel="step", ylabel="nats per target token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
