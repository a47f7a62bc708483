"""A clock that is set by hand; every expected number is arithmetic."""

import pytest

from t5jax.profiling.step_timer import StepTimer, peak_memory_bytes


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_stopwatch_divides_the_time_of_a_run():
    clock = Clock()
    watch = StepTimer(clock=clock)
    clock.now += 30  # compilation
    watch.finished(500)
    assert watch.reading() == {}
    for seconds in (1, 1, 1, 3):
        with watch.waiting():
            clock.now += 0.25
        clock.now += seconds - 0.25
        watch.finished(600)
    with watch.paused():
        clock.now += 4  # an evaluation
    reading = watch.reading()
    assert reading["tokens_per_second"] == pytest.approx(4 * 600 / 6)
    assert reading["data_wait_seconds"] == pytest.approx(0.25)
    assert reading["goodput"] == pytest.approx(6 / 40)
    assert reading["step_seconds_p50"] == 1
    assert reading["step_seconds_p90"] == pytest.approx(1 + 0.7 * 2)  # rank 2.7 of 0..3
    assert watch.reading() == {}
    clock.now += 2
    watch.finished(600)
    assert watch.reading()["tokens_per_second"] == 300


class Device:
    def __init__(self, peak: int | None):
        self._peak = peak

    def memory_stats(self):
        return None if self._peak is None else {"peak_bytes_in_use": self._peak}


def test_memory_is_the_most_of_any_device_or_of_this_process():
    assert peak_memory_bytes([Device(5), Device(9)]) == 9
    assert 1e6 < peak_memory_bytes([Device(None)]) < 1e12
