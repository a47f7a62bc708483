"""Two real processes against one; killed, stopped and started again, against undisturbed ones."""

import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.launched_runs import finish, free_port, options, started, wait, wait_for_step
from helpers.small_runs import training_losses, write_inputs

from t5jax.parallel.distributed import (
    HostsConfig,
    StopVote,
    abort_together,
    agree_on,
    barrier,
    gather_arrays,
    initialize,
    is_main_process,
    main_process_first,
    process_count,
    process_index,
)
from t5jax.parallel.mesh import MeshConfig, make_mesh
from t5jax.training.tracker import read_metrics

STEPS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def inputs(folder) -> dict[str, str]:
    return write_inputs(folder)


@pytest.fixture(scope="module")
def calm(folder, inputs) -> Path:
    """The folder of an undisturbed run of two processes."""
    finish(options(inputs, folder / "calm", STEPS), folder, count=2)
    return folder / "calm"


@pytest.mark.slow
def test_two_processes_train_as_one_does(folder, inputs, calm):
    finish(options(inputs, folder / "one", STEPS), folder)
    one, two = training_losses(folder / "one"), training_losses(calm)
    assert list(two) == list(range(1, STEPS + 1))
    for step in range(1, STEPS + 1):
        # Float32 sums in another order; each step learns from the differences of those before.
        assert two[step] == pytest.approx(one[step], abs=1e-5 if step <= 10 else 1e-3)


@pytest.mark.slow
def test_what_is_written_once_is_written_by_process_0(calm):
    entries = [e["step"] for e in read_metrics(calm) if "loss" in e]
    assert entries == sorted(set(entries))
    assert [p.name for p in (calm / "logs").iterdir()] == ["process-1.log"]
    assert len(list((calm / "tensorboard").iterdir())) == 1
    assert f"step {STEPS}: loss" in (calm / "logs" / "process-1.log").read_text()


@pytest.mark.slow
def test_a_killed_and_a_stopped_process_leave_a_run_that_continues_exactly(folder, inputs, calm):
    output = folder / "disturbed"
    arguments = options(inputs, output, STEPS)
    with started(arguments, folder, count=2) as running:
        wait_for_step(12, output, running)
        running[1].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        (status, shown), _ = wait(running, timeout=60)
        assert time.monotonic() - killed < 30
    assert status not in (0, -signal.SIGKILL)
    assert "error: process 1 of 2 is gone, so process 0 ends too" in shown
    assert shown.count("error: ") == 1

    with started(arguments, folder, count=2) as running:
        wait_for_step(22, output, running)
        running[1].send_signal(signal.SIGTERM)
        (first, shown), (second, _) = wait(running, timeout=60)
    assert (first, second) == (0, 0), shown
    saved = max(int(p.name) for p in (output / "checkpoints").iterdir() if p.name.isdigit())
    assert saved == max(training_losses(output)) < STEPS
    assert f"saved step {saved} in" in shown

    shown, _ = finish(arguments, folder, count=2)
    assert f"continuing at step {saved} of {STEPS}" in shown
    assert training_losses(output) == training_losses(calm)  # bit for bit


def test_a_host_that_never_joins_is_named(folder, inputs):
    arguments = options(inputs, folder / "absent", 5, **{"hosts.timeout": 2})
    address = f"127.0.0.1:{free_port()}"

    def alone(index: int) -> tuple[int, str]:
        own = ["--hosts.coordinator", address, "--hosts.count", "3", "--hosts.index", str(index)]
        with started([*arguments, *own], folder) as running:
            return wait(running, timeout=60)[0]

    status, shown = alone(0)
    assert status == 2
    assert "all 3 processes must join within 2 s, and processes 1, 2 did not" in shown
    status, shown = alone(1)
    assert status == 2
    assert f"process 1 of 3 waited 2 s for process 0 at {address}" in shown
    assert not (folder / "absent").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"index": 0}, "must be given together, got only hosts.index"),
        ({"auto": True, "count": 2}, "hosts.auto must stand alone, got hosts.count too"),
        ({"coordinator": "a", "count": 2, "index": 0}, "must be host:port of process 0, got 'a'"),
        ({"coordinator": "a:1", "count": 2, "index": 2}, r"must be in \[0, hosts.count = 2\)"),
        ({"timeout": 0}, "hosts.timeout must be at least 1 second"),
    ],
)
def test_hosts_config_refuses_what_cannot_work(given, message):
    with pytest.raises(ValueError, match=message):
        HostsConfig(**given)


def test_one_process_needs_nobody():
    initialize(HostsConfig())
    assert (process_index(), process_count(), is_main_process()) == (0, 1, True)
    barrier("nowhere")
    assert agree_on(7) == 7
    with main_process_first("anything"), pytest.raises(KeyError), abort_together():
        raise KeyError
    tree = {"x": jax.numpy.ones(3)}
    assert gather_arrays(tree) is tree


def test_stop_vote_of_one_process_is_its_own_wish():
    mesh = make_mesh(MeshConfig())
    vote = StopVote(mesh)
    assert [vote(wanted) for wanted in (False, False, True)] == [False, False, True]


def test_agree_reduces_what_all_say():
    assert agree_on(3, reduce=np.max) == 3
