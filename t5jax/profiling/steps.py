"""Step times, traces and peak memory of a training loop."""

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

_WINDOW = 1000  # most recent steps in percentiles
_STEPS_ON_REQUEST = 5  # steps traced per request


class StepTimer:
    """Timer of training steps.

    Goodput is the fraction of wall time spent in steps; the rest is the first step, which compiles,
    and everything else, such as evaluations and checkpoints.

    Args:
      clock: function that returns the time in seconds.

    Examples:
      >>> times = iter([0.0, 10.0, 12.0, 16.0])
      >>> timer = t5jax.profiling.StepTimer(clock=lambda: next(times))
      >>> timer.finished(tokens=100)  # compiled from 0 to 10
      >>> timer.finished(tokens=100)
      >>> reading = timer.reading()
      >>> reading["tokens_per_second"], reading["goodput"]
      (50.0, 0.125)
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._start = self._last = clock()
        self._steps: collections.deque[float] = collections.deque(maxlen=_WINDOW)
        self._training = self._recent = self._waited = 0.0
        self._finished = self._tokens = self._recent_steps = 0

    def finished(self, tokens: int) -> None:
        """Record the end of a step, which began when the previous one ended.

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
        """Count the time of the block as waiting for a batch.

        Yields:
          None.
        """
        begin = self._clock()
        yield
        self._waited += self._clock() - begin

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the block from step times; call between steps.

        Yields:
          None.
        """
        yield
        self._last = self._clock()

    def reading(self) -> dict[str, float]:
        """Return the measurements since the last reading and reset them.

        Returns:
          `tokens_per_second`; `data_wait_seconds`, the mean per step; percentiles
          `step_seconds_p50`, `_p90` and `_p99` of the last 1000 steps; `goodput` since the start.
          Empty if no step finished.
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
    """Return the peak memory so far of the device that used most.

    Args:
      devices: JAX devices.
    Returns:
      Bytes; the peak memory of this process if no device reports its own.

    Examples:
      >>> t5jax.profiling.peak_memory_bytes(jax.local_devices()) > 0
      True
    """
    stats = [device.memory_stats() or {} for device in devices]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    if peaks:
        return float(max(peaks))
    # ru_maxrss is in kilobytes, except on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


class Profiler:
    """Context manager that traces selected steps, and the next five after each SIGUSR1.

    Args:
      folder: folder for the traces.
      steps: first and last step to trace, counted from 1; None traces only on SIGUSR1.

    Examples:
      >>> with t5jax.profiling.Profiler("traces", steps=(10, 12)) as profiler:
      ...     for step in range(1, 4):
      ...         profiler.before(step)  # then run the step
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
        """Start or stop a trace if needed; call before each step.

        Args:
          step: number of the step about to run, from 1.
        """
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
