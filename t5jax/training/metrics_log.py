"""What a run writes while it trains: progress bar, `metrics.jsonl`, TensorBoard, `loss.png`."""

import contextlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from t5jax.fileio import write_atomically

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Logs of one run; opened again at a later step, it goes on where that step was.

    `metrics.jsonl` has one object a line: `{"step": 7, "loss": ...}` for a training step,
    `{"step": 200, "eval_loss": ...}` for an evaluation, `{"step": 10, "goodput": ...}` for how fast
    it went, and `{"step": 9, "skipped_chunks": ...}` for a step that was skipped.  What is not
    finite is null.
    """

    def __init__(self, folder: str | os.PathLike, *, total_steps: int, start_step: int):
        """Opens the logs; entries of steps after `start_step` are dropped, to be written anew."""
        from tensorboardX import SummaryWriter
        from tqdm.auto import tqdm

        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / METRICS_FILE
        kept = [entry for entry in read_metrics(folder) if entry["step"] <= start_step]
        write_atomically(path, "".join(map(_line, kept)))
        self._file = path.open("a")
        self._board = SummaryWriter(str(self._folder / "tensorboard"), purge_step=start_step + 1)
        self._bar = tqdm(
            total=total_steps, initial=start_step, desc="training", unit="step", dynamic_ncols=True
        )
        self._step = start_step
        self._shown: dict[str, str] = {}
        self._clock = time.perf_counter()
        self._tokens = self._real_tokens = 0

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        with contextlib.ExitStack() as stack:
            if kind is not None:  # what went wrong must not be hidden by what follows from it
                stack.enter_context(contextlib.suppress(OSError))
            stack.callback(self.close)

    def training(self, step: int, metrics: dict[str, float], tokens: int, real_tokens: int) -> None:
        """One training step: its metrics, positions computed, and positions not padding."""
        self._write(step, metrics, "train")
        self._tokens += tokens
        self._real_tokens += real_tokens
        self._step = step
        self._shown["loss"] = f"{metrics['loss']:.3f}"

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """One evaluation on held-out data."""
        self._write(step, {f"eval_{name}": value for name, value in metrics.items()}, "eval")
        self._shown["eval"] = f"{metrics['loss']:.3f}"
        if "score" in metrics:
            self._shown["score"] = f"{metrics['score']:.2f}"
        self.refresh()

    def speed(self, step: int, reading: dict[str, float]) -> None:
        """How fast the steps up to this one were, as from `StepTimer.reading`."""
        self._file.write(_line({"step": step, **reading}))
        for name, value in reading.items():
            self._board.add_scalar(f"speed/{name}", value, step)
        if "mfu" in reading:
            self._shown["mfu"] = f"{reading['mfu']:.1%}"

    def skipped(self, step: int, known: dict[str, Any]) -> None:
        """A step that changed nothing, and what is known of it."""
        self._file.write(_line({"step": step, **known}))
        self._bar.write(
            f"step {step} was skipped, its loss or gradient could not be trusted; "
            f"chunks {known.get('skipped_chunks')}",
            file=sys.stderr,
        )

    def refresh(self) -> None:
        """Shows rates since the last call and makes sure that everything is in the files."""
        now = time.perf_counter()
        if self._tokens:
            seconds = now - self._clock
            rates = {
                "tok/s": self._tokens / seconds,
                "non-pad tok/s": self._real_tokens / seconds,
            }
            for name, rate in rates.items():
                self._shown[name] = f"{rate:,.0f}"
                self._board.add_scalar(f"speed/{name}", rate, self._step)
        self._tokens = self._real_tokens = 0
        self._clock = now
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.n = self._step
        self._bar.refresh()
        self._file.flush()

    def close(self) -> None:
        """Closes the files and draws `loss.png`."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._draw)
            stack.callback(self._board.close)
            stack.callback(self._file.close)
            stack.callback(self._bar.close)

    def _draw(self) -> None:
        entries = read_metrics(self._folder)
        known = {name for e in entries for name, value in e.items() if value is not None}
        if known & {"loss", "eval_loss"}:
            _draw(entries, self._folder / "loss.png")

    def _write(self, step: int, metrics: dict[str, float], group: str) -> None:
        self._file.write(_line({"step": step, **metrics}))
        for name, value in metrics.items():
            self._board.add_scalar(f"{group}/{name.removeprefix('eval_')}", value, step)


def _line(entry: dict[str, Any]) -> str:
    # JSON has no word for what is not finite, such as the loss of a step that was skipped.
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in entry.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


def read_metrics(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """All entries of a run's `metrics.jsonl`; a last line that was cut off is left out."""
    path = Path(folder) / METRICS_FILE
    entries = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def read_evaluations(folder: str | os.PathLike, *, until: int) -> list[dict[str, float]]:
    """What a run's evaluations up to a step have found; NaN for what was not finite."""
    found = []
    for entry in read_metrics(folder):
        numbers = {
            name.removeprefix("eval_"): math.nan if value is None else value
            for name, value in entry.items()
            if name.startswith("eval_")
        }
        if numbers and entry["step"] <= until:
            found.append(numbers)
    return found


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


def open_metrics_log(
    folder: str | os.PathLike, *, total_steps: int, start_step: int, process: int
) -> "MetricsLog | ProcessLog":
    """Process 0 writes the logs of the run; every other a text file of its own."""
    if process == 0:
        return MetricsLog(folder, total_steps=total_steps, start_step=start_step)
    return ProcessLog(folder, process=process)


class ProcessLog:
    """What a process that is not the first writes: lines in `logs/process-<i>.log`."""

    def __init__(self, folder: str | os.PathLike, *, process: int):
        path = Path(folder) / "logs" / f"process-{process}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        self.note("started")

    def __enter__(self) -> "ProcessLog":
        return self

    def __exit__(self, *rest: object) -> None:
        self._file.close()

    def training(self, step: int, metrics: dict[str, float], tokens: int, real_tokens: int) -> None:
        """As `MetricsLog.training`."""
        self.note(f"step {step}: loss {metrics['loss']:.4f}, {real_tokens} of {tokens} tokens")

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """As `MetricsLog.evaluation`."""
        self.note(f"step {step}: held-out loss {metrics['loss']:.4f}")

    def speed(self, step: int, reading: dict[str, float]) -> None:
        """As `MetricsLog.speed`."""
        shown = ", ".join(f"{name} {value:.4g}" for name, value in reading.items())
        self.note(f"step {step}: {shown}")

    def skipped(self, step: int, known: dict[str, Any]) -> None:
        """As `MetricsLog.skipped`."""
        self.note(f"step {step} was skipped, chunks {known.get('skipped_chunks')}")

    def note(self, text: str) -> None:
        """One line with the time."""
        self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def refresh(self) -> None:
        """Makes sure that everything is in the file."""
        self._file.flush()
