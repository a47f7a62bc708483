import os
import signal

import jax.numpy as jnp
import pytest

from t5jax.profiling.steps import Profiler


@pytest.fixture
def traced(monkeypatch) -> list[str]:
    """Starts and ends of traces; one real trace takes longer than all other tests here."""
    events: list[str] = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: events.append("start"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: events.append("stop"))
    return events


def walk(profiler: Profiler, steps: range, events: list[str]) -> None:
    for step in steps:
        profiler.before(step)
        events.append(str(step))


def test_profiler_traces_the_steps_asked_for(tmp_path, traced):
    with Profiler(tmp_path / "profile", steps=(2, 3)) as profiler:
        walk(profiler, range(1, 6), traced)
    assert traced == ["1", "start", "2", "3", "stop", "4", "5"]


def test_profiler_ends_its_trace_with_the_run(tmp_path, traced):
    with Profiler(tmp_path, steps=(2, 9)) as profiler:
        walk(profiler, range(1, 3), traced)
    assert traced == ["1", "start", "2", "stop"]


def test_profiler_traces_a_few_steps_after_a_signal(tmp_path, traced):
    before = signal.getsignal(signal.SIGUSR1)
    with Profiler(tmp_path) as profiler:
        walk(profiler, range(1, 3), traced)
        os.kill(os.getpid(), signal.SIGUSR1)
        walk(profiler, range(3, 10), traced)
    assert traced == ["1", "2", "start", "3", "4", "5", "6", "7", "stop", "8", "9"]
    assert signal.getsignal(signal.SIGUSR1) is before


def test_profiler_writes_a_trace(tmp_path):
    with Profiler(tmp_path / "profile", steps=(1, 1)) as profiler:
        profiler.before(1)
        (jnp.ones(8) + 1).block_until_ready()
        profiler.before(2)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
