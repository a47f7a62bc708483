"""How fast a run is, and where its time goes."""

import collections
import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

_WINDOW = 1000  # steps that percentiles look back on


class StepTimer:
    """Measures the steps of a training loop.

    Wall time divides into steps, the compilation in the first one, and everything else, such as
    evaluations and checkpoints; goodput is the share of the first.
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._start = self._last = clock()
        self._steps: collections.deque[float] = collections.deque(maxlen=_WINDOW)
        self._training = self._recent = self._waited = 0.0
        self._finished = self._tokens = self._recent_steps = 0

    def finished(self, tokens: int) -> None:
        """A step is through, with so many tokens, padding included; steps follow each other."""
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
        """What is inside waits for a batch."""
        begin = self._clock()
        yield
        self._waited += self._clock() - begin

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is inside is no part of a step; all steps before must be through."""
        yield
        self._last = self._clock()

    def reading(self) -> dict[str, float]:
        """What happened since the last reading; empty if no step did.

        `tokens_per_second`; percentiles `step_seconds_p50`, `_p90`, `_p99` over the last 1000
        steps; `data_wait_seconds`, a step's mean; `goodput`, of the whole time.
        """
        if not self._recent_steps:
            return {}
        found = {
            "tokens_per_second": self._tokens / max(self._recent, 1e-9),
            "data_wait_seconds": self._waited / self._recent_steps,
            "goodput": self._training / max(self._clock() - self._start, 1e-9),
        }
        for percent in (50, 90, 99):
            found[f"step_seconds_p{percent}"] = float(np.percentile(self._steps, percent))
        self._recent = self._waited = 0.0
        self._tokens = self._recent_steps = 0
        return found


def peak_memory_bytes(devices: Sequence) -> float:
    """Most memory in use so far on any of the devices; of this process, where they do not say."""
    stats = [device.memory_stats() or {} for device in devices]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    if peaks:
        return float(max(peaks))
    # In kilobytes, but on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
