"""Trace a few steps of a run, for TensorBoard's profiler or Perfetto."""

import os
import signal
import threading
from pathlib import Path
from types import TracebackType

import jax

_ON_REQUEST = 5  # steps


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
            self._begin(step + _ON_REQUEST)
        self._requested = False

    def _begin(self, stop_before: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        jax.profiler.start_trace(str(self._folder))
        self._stop_before = stop_before

    def _request(self, number: int, frame: object) -> None:
        self._requested = True
