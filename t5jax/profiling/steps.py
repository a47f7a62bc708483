"""Time and trace the steps of a training loop, and measure its peak memory."""

import collections
import contextlib
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import jax
import numpy as np

_WINDOW = 1000  # steps that percentiles are taken over
_STEPS_ON_REQUEST = 5  # steps that a trace on request takes


class StepTimer:
    """A timer of the steps of a training loop.

    Wall time divides into steps, the compilation in the first one, and everything else, such as
    evaluations and checkpoints; goodput is the share of the steps.

    Args:
      clock: returns the time in seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._start = self._last = clock()
        self._steps: collections.deque[float] = collections.deque(maxlen=_WINDOW)
        self._training = self._recent = self._waited = 0.0
        self._finished = self._tokens = self._recent_steps = 0

    def finished(self, tokens: int) -> None:
        """Record the end of a step, which began at the end of the one before.

        Args:
          tokens: number of tokens in the step's batch, padding included.
        """
        now = self._clock()
        seconds, self._last = now - self._last, now
        self._finished += 1
        if self._finished == 1:
            return  # most of it was compilation
        self._steps.append(seconds)
        self._training += seconds
        self._recent += seconds
        self._tokens += tokens
        self._recent_steps += 1

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for a batch."""
        begin = self._clock()
        yield
        self._waited += self._clock() - begin

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block out of every step; the last one must have finished."""
        yield
        self._last = self._clock()

    def reading(self) -> dict[str, float]:
        """Return the measurements since the last reading, and start the next.

        Returns:
          `tokens_per_second`; `data_wait_seconds`, the mean of a step; percentiles
          `step_seconds_p50`, `_p90` and `_p99` of the last 1000 steps; `goodput`, of the whole
          time. Empty if no step finished.
        """
        if not self._recent_steps:
            return {}
        measurements = {
            "tokens_per_second": self._tokens / max(self._recent, 1e-9),
            "data_wait_seconds": self._waited / self._recent_steps,
            "goodput": self._training / max(self._clock() - self._start, 1e-9),
        }
        for percent in (50, 90, 99):
            measurements[f"step_seconds_p{percent}"] = float(np.percentile(self._steps, percent))
        self._recent = self._waited = 0.0
        self._tokens = self._recent_steps = 0
        return measurements


def peak_memory_bytes(devices: Sequence) -> float:
    """Return the peak memory of the fullest device so far.

    Args:
      devices: of JAX; if none of them reports its memory, that of this process counts.
    """
    stats = [device.memory_stats() or {} for device in devices]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    if peaks:
        return float(max(peaks))
    # In kilobytes, but on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


class Profiler:
    """A context that traces chosen steps, and the next few after each SIGUSR1, to a folder.

    Args:
      folder: to write traces to.
      steps: the first and the last step to trace, counted from 1; None traces on request alone.
    """

    def __init__(self, folder: str | os.PathLike, *, steps: tuple[int, int] | None = None):
        self._folder = Path(folder)
        self._stop_before: int | None = None
        self._steps = steps
        self._requested = False
        self._previous: object = None
        self._handles_signal = False

    def __enter__(self) -> "Profiler":
        main = threading.current_thread() is threading.main_thread()
        if main and hasattr(signal, "SIGUSR1"):
            self._previous = signal.signal(signal.SIGUSR1, self._request)
            self._handles_signal = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._handles_signal:
            signal.signal(signal.SIGUSR1, self._previous)  # pyright: ignore[reportArgumentType]
        if self._stop_before is not None:
            self._stop_before = None
            jax.profiler.stop_trace()

    def before(self, step: int) -> None:
        """Start or end a trace as needed, before `step` begins."""
        if self._stop_before is not None and step >= self._stop_before:
            self._stop_before = None
            jax.profiler.stop_trace()
        if self._stop_before is not None:
            return
        if self._steps is not None and step == self._steps[0]:
            self._begin(self._steps[1] + 1)
        elif self._requested:
            self._begin(step + _STEPS_ON_REQUEST)
        self._requested = False

    def _begin(self, stop_before: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        jax.profiler.start_trace(str(self._folder))
        self._stop_before = stop_before

    def _request(self, number: int, frame: object) -> None:
        self._requested = True
