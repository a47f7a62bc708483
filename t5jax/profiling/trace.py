"""Traces of a few steps, for TensorBoard's profiler or Perfetto, taken while a run goes on."""

import os
import signal
import threading
from pathlib import Path
from types import TracebackType

import jax

_ON_REQUEST = 5  # steps


class Profiler:
    """Traces the steps asked for, and a few more after each SIGUSR1, into a folder."""

    def __init__(self, folder: str | os.PathLike, *, steps: tuple[int, int] | None = None):
        """`steps` are the first and the last step to trace, counted from 1."""
        self._folder = Path(folder)
        self._stop_before: int | None = None
        self._steps = steps
        self._requested = False
        self._previous: object = None
        self._handles = False

    def __enter__(self) -> "Profiler":
        main = threading.current_thread() is threading.main_thread()
        if main and hasattr(signal, "SIGUSR1"):
            self._previous = signal.signal(signal.SIGUSR1, self._request)
            self._handles = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._handles:
            signal.signal(signal.SIGUSR1, self._previous)  # pyright: ignore[reportArgumentType]
        if self._stop_before is not None:
            self._stop_before = None
            jax.profiler.stop_trace()

    def before(self, step: int) -> None:
        """Starts or ends a trace; `step` is the one to come."""
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
