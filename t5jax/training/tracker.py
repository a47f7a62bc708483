"""Trackers of the metrics of a run.

Metric names have the form `group/name`: `train/loss`, `eval/loss`, `speed/tokens_per_second`,
`skipped/chunks`. Trackers ignore groups they do not know.
"""

import contextlib
import json
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from t5jax.fileio import JsonObject, write_atomically
from t5jax.parallel import process_index

METRICS_FILE = "metrics.jsonl"

# Metrics by name: numbers, not always finite, and the list `skipped/chunks`.
LoggedMetrics = Mapping[str, float | int | Sequence[int]]

_log = logging.getLogger("t5jax")

# Seconds between writes of TensorBoard's file to disk.
_FLUSH_SECONDS = 30.0
# Wall-clock rates for the progress bar; files record `speed/tokens_per_second` instead.
TOKEN_RATE, NON_PAD_TOKEN_RATE = "speed/tok/s", "speed/non-pad tok/s"


@runtime_checkable
class Tracker(Protocol):
    """Protocol of objects that receive the metrics of a run.

    Examples:
      >>> class Printer:
      ...     def log(self, step, metrics):
      ...         print(step, metrics)
      ...
      ...     def close(self):
      ...         pass
      >>> isinstance(Printer(), t5jax.training.Tracker)
      True
    """

    def log(self, step: int, metrics: LoggedMetrics) -> None:
        """Record metrics of a step.

        Args:
          step: step, counted from 1; it never decreases, and several calls may have the same step.
          metrics: metrics by name.  Numbers, not always finite: `train/*`, `batch/tokens` and
            `batch/non_pad_tokens` for every training step, `eval/*` for an evaluation, `speed/*`
            since the last such call, and `skipped/steps`, the total at a skipped step.  A list of
            numbers: `skipped/chunks`.
        """
        ...

    def close(self) -> None:
        """Flush and free resources; nothing is logged afterwards."""
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

    Process 0 writes `metrics.jsonl`, `loss.png` and TensorBoard files and shows a progress bar;
    every other process writes a separate text log.

    Args:
      folder: run directory.
      total_steps: total number of steps in the run.
      start_step: step that the run resumes from; entries of later steps are dropped.
      others: additional trackers, used by process 0.
      process: process index; defaults to this process.
    Yields:
      A tracker that logs to all of them.
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
        # Errors while closing must not replace the original error.
        with contextlib.suppress(OSError):
            tracker.close()
        raise
    tracker.close()


class TrackerGroup:
    """Tracker that forwards to several trackers."""

    def __init__(self, trackers: Sequence[Tracker]):
        """Store the trackers; they are closed in reverse order."""
        self._trackers = trackers

    def log(self, step: int, metrics: LoggedMetrics) -> None:
        """Log to each tracker in order."""
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def close(self) -> None:
        """Close all trackers, even if closing one fails."""
        with contextlib.ExitStack() as stack:
            for tracker in self._trackers:
                stack.callback(tracker.close)


class MetricsFile:
    """Tracker that writes `metrics.jsonl`, and plots `loss.png` at the end.

    One JSON object per line: `{"step": 7, "loss": ...}` for a training step, `{"step": 200,
    "eval_loss": ...}` for an evaluation, `{"step": 10, "goodput": ...}` for the speed, and
    `{"step": 9, "skipped_chunks": ...}` for a skipped step. Non-finite numbers are null.
    """

    def __init__(self, folder: str | os.PathLike, *, start_step: int):
        """Open the file and drop entries after `start_step`, which the run repeats."""
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / METRICS_FILE
        entries = [entry for entry in read_metrics(folder) if entry["step"] <= start_step]
        write_atomically(path, "".join(map(_line, entries)))
        self._file = path.open("a")

    def log(self, step: int, metrics: LoggedMetrics) -> None:
        """Append a line; see `Tracker.log`."""
        record = _record(metrics)
        if record:
            self._file.write(_line({"step": step, **record}))
        if not _of_training_step(metrics):
            self._file.flush()

    def close(self) -> None:
        """Close the file and plot the losses."""
        self._file.close()
        entries = read_metrics(self._folder)
        names = {name for e in entries for name, value in e.items() if value is not None}
        if names & {"loss", "eval_loss"}:
            _draw(entries, self._folder / "loss.png")


class TensorBoard:
    """Tracker that writes TensorBoard scalars to `tensorboard/`."""

    def __init__(self, folder: str | os.PathLike, *, start_step: int):
        """Open the folder; TensorBoard hides existing entries after `start_step`."""
        from tensorboardX import RecordWriter
        from tensorboardX.proto import event_pb2

        # The thread of tensorboardX's SummaryWriter outlives a full disk, and so does its noise.
        path = Path(folder) / "tensorboard"
        path.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._writer = RecordWriter(str(path / name))
        self._flush_at = time.monotonic()
        self._write(file_version="brain.Event:2")
        start = {"status": event_pb2.SessionLog.START}  # pyright: ignore[reportAttributeAccessIssue]
        self._write(step=start_step + 1, session_log=start)

    def log(self, step: int, metrics: LoggedMetrics) -> None:
        """Add scalars; see `Tracker.log`."""
        from tensorboardX.summary import scalar

        for name, value in metrics.items():
            if name.startswith(("train/", "eval/", "speed/")):
                self._write(step=step, summary=scalar(name, value))
        if time.monotonic() > self._flush_at:
            self._writer.flush()
            self._flush_at = time.monotonic() + _FLUSH_SECONDS

    def _write(self, **fields: object) -> None:
        from tensorboardX.proto import event_pb2

        event = event_pb2.Event(wall_time=time.time(), **fields)  # pyright: ignore[reportAttributeAccessIssue]
        self._writer.write(event.SerializeToString())

    def close(self) -> None:
        """Flush and close the files."""
        self._writer.close()


class ProgressBar:
    """Progress bar with losses and speed; outside a terminal or notebook, log messages."""

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

    def log(self, step: int, metrics: LoggedMetrics) -> None:
        """Store training metrics and show them with the next other metrics; see `Tracker.log`."""
        if "skipped/steps" in metrics:
            _log.warning(
                "step %d was skipped: non-finite loss or gradient, or gradient spike; chunks %s",
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
        if _of_training_step(metrics):
            return
        if self._bar.disable:
            values = ", ".join(f"{name} {value}" for name, value in self._shown.items())
            _log.info("step %d of %d: %s", step, self._total_steps, values)
        else:
            self._bar.set_postfix(self._shown, refresh=False)
            self._bar.n = step
            self._bar.refresh()

    def close(self) -> None:
        """Close the bar and leave it on screen."""
        self._bar.close()


class ProcessLog:
    """Tracker that writes `logs/process-<i>.log`, for processes other than 0."""

    def __init__(self, folder: str | os.PathLike, *, process: int):
        """Open the log of a process."""
        path = Path(folder) / "logs" / f"process-{process}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        self._note("started")

    def log(self, step: int, metrics: LoggedMetrics) -> None:
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


def _of_training_step(metrics: LoggedMetrics) -> bool:
    """Return True for the metrics of a training step, which need no flush."""
    return "train/loss" in metrics


def _record(metrics: LoggedMetrics) -> JsonObject:
    """Return metrics under their names in `metrics.jsonl`."""
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


def _line(entry: JsonObject) -> str:
    # JSON has no NaN or infinity, such as the loss of a skipped step.
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in entry.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


def read_metrics(folder: str | os.PathLike) -> list[JsonObject]:
    """Read the entries of a run's `metrics.jsonl`, up to an incomplete last line."""
    path = Path(folder) / METRICS_FILE
    entries = []
    text = path.read_bytes().decode("utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def read_evaluations(folder: str | os.PathLike, *, until: int) -> list[dict[str, float]]:
    """Read the evaluations of a run up to a step, with NaN for non-finite numbers."""
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


def _draw(entries: list[JsonObject], path: Path) -> None:
    # pyplot would set a backend for the whole process.
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
