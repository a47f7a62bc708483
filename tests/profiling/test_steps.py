"""A clock that is set by hand; every expected number is arithmetic."""

import re
import types
from pathlib import Path

import pytest

from t5jax.profiling import steps
from t5jax.profiling.steps import StepTimer, peak_memory_bytes


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_timer_divides_the_time_of_a_run():
    clock = Clock()
    timer = StepTimer(clock=clock)
    clock.now += 30  # compilation
    timer.finished(500)
    assert timer.reading() == {}
    for seconds in (1, 1, 1, 3):
        with timer.waiting():
            clock.now += 0.25
        clock.now += seconds - 0.25
        timer.finished(600)
    with timer.paused():
        clock.now += 4  # an evaluation
    reading = timer.reading()
    assert reading["tokens_per_second"] == pytest.approx(4 * 600 / 6)
    assert reading["data_wait_seconds"] == pytest.approx(0.25)
    assert reading["goodput"] == pytest.approx(6 / 40)
    assert reading["step_seconds_p50"] == 1
    assert reading["step_seconds_p90"] == pytest.approx(1 + 0.7 * 2)  # rank 2.7 of 0..3
    assert timer.reading() == {}
    clock.now += 2
    timer.finished(600)
    assert timer.reading()["tokens_per_second"] == 300


class Device:
    def __init__(self, peak: int | None):
        self._peak = peak

    def memory_stats(self):
        return None if self._peak is None else {"peak_bytes_in_use": self._peak}


def test_memory_is_the_most_of_any_device_that_reports_it():
    assert peak_memory_bytes([Device(5), Device(None), Device(9)]) == 9


def test_memory_of_this_process_is_that_of_the_kernel():
    """Where no device reports its memory.  A wrong unit would be 1024 times off; the kernel's two
    counters are updated apart, and one of them starts at what the parent had."""
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("needs Linux's counters")
    kilobytes = re.search(r"VmHWM:\s*([0-9]+) kB", status.read_text())[1]
    peak = peak_memory_bytes([Device(None)])
    assert 0.9 < peak / (1024 * int(kilobytes)) < 3


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_memory_of_this_process_is_in_bytes(monkeypatch, platform, unit):
    """getrusage(2) counts kilobytes on Linux and bytes on macOS."""
    usage = types.SimpleNamespace(ru_maxrss=7)
    monkeypatch.setattr(steps.resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(steps.sys, "platform", platform)
    assert peak_memory_bytes([Device(None)]) == 7 * unit
