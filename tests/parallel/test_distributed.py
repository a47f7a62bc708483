"""Two real processes against one; killed, stopped and started again, against undisturbed ones."""

import re
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.launched_runs import (
    ROOT,
    finish,
    free_port,
    hosts,
    launched,
    options,
    program,
    started,
    wait,
    wait_for_step,
)
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
        (status, shown), _ = wait(running, timeout=60)
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


def slurm(index: int, port: int) -> dict[str, str]:
    """The environment of one task of two of a Slurm job on this machine."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
        "JAX_COORDINATOR_PORT": str(port),
    }


def test_a_host_that_never_joins_is_named(folder, inputs):
    arguments = options(inputs, folder / "absent", 5, **{"hosts.timeout": 2})
    other = [str(program(folder, "pass")), "--hosts.timeout", "2"]
    ports = [free_port() for _ in range(3)]  # each waits alone, at a port of its own
    commands = [
        [str(ROOT / "scripts" / "pretrain.py"), *arguments, *hosts(3, 0, ports[0])],
        [*other, *hosts(3, 1, ports[1])],
        [*other, "--hosts.auto"],
    ]
    with launched(commands, [{}, {}, slurm(0, ports[2])]) as running:
        ended = wait(running, timeout=60)
    assert [status for status, _ in ended] == [2, 2, 1]
    first, second, third = (shown for _, shown in ended)
    assert "all 3 processes must join within 2 s, but processes 1, 2 did not" in first
    assert f"process 1 of 3 waited 2 s for process 0 at 127.0.0.1:{ports[1]}" in second
    assert re.fullmatch(r"\s*error: all processes must join within 2 s, but some .*\n", third)
    assert not (folder / "absent").exists()


@pytest.mark.slow
def test_processes_agree_and_wait_for_each_other(tmp_path):
    body = """
        index = process_index()
        print(agree_on(3 + index), agree_on(3 + index, reduce=np.max))
        print(broadcast_from_main([index + 0.5, 7]))
        mesh = make_mesh(MeshConfig())
        rows = np.arange(6.0).reshape(2, 3)
        x = jax.make_array_from_callback((2, 3), NamedSharding(mesh, BATCH_SPEC), rows.__getitem__)
        print(gather_arrays({"x": x})["x"].tolist())
        with main_process_first("preparation"):
            path = pathlib.Path(__file__).with_name("written")
            assert path.exists() == (index == 1)
            path.touch()
        vote = StopVote(mesh)
        print([vote(index == 1 and step == 2) for step in range(6)])
        barrier("all")
        if index == 0:
            try:
                barrier("one", timeout=1)
            except TimeoutError as error:
                print(error)
        barrier("all")
    """
    imports = """
import pathlib
import jax, numpy as np
from jax.sharding import NamedSharding
from t5jax.parallel import BATCH_SPEC, MeshConfig, StopVote, agree_on, barrier
from t5jax.parallel import broadcast_from_main, gather_arrays, main_process_first
from t5jax.parallel import make_mesh, process_index
"""
    script = program(tmp_path, body, imports)
    for index, shown in enumerate(finish([], tmp_path, count=2, script=script)):
        lines = [line for line in shown.splitlines() if not line.startswith("[Gloo]")]
        assert lines[:4] == [
            "3 4",
            "[0.5, 7.0]",
            "[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]",
            "[False, False, False, False, True, False]",
        ]
        late = [line for line in lines if "reach one within 1 s" in line]
        assert len(late) == (index == 0)
        assert all("process 1 did not" in line for line in late)


IMPORTS = """
import os, signal, threading
from t5jax.parallel import process_index
"""


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_an_error_in_one_process_ends_all(tmp_path, index):
    # The other one waits as in a collective that never completes.
    body = f"""
        if process_index() == {index}:
            raise ValueError("no such text")
        threading.Event().wait()
    """
    path = program(tmp_path, body, IMPORTS)
    with started([], tmp_path, count=2, script=path) as running:
        ended = wait(running, timeout=60)
    assert [status for status, _ in ended] == [1, 1]
    assert ended[index][1].strip() == "error: no such text"
    reason = f"error: process {index} of 2 failed: ValueError: no such text, so process"
    assert ended[1 - index][1].strip().startswith(f"{reason} {1 - index} ends")


@pytest.mark.slow
def test_processes_detect_each_other_and_notice_a_death(tmp_path):
    body = """
        print("process", process_index(), flush=True)
        if process_index() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait()
    """
    command = [str(program(tmp_path, body, IMPORTS)), "--hosts.auto"]
    port = free_port()
    with launched([command] * 2, [slurm(index, port) for index in range(2)]) as running:
        (status, shown), (_, other) = wait(running, timeout=60)
    assert "process 0" in shown
    assert "process 1" in other
    assert status == 1
    assert "error: process 1 of 2 is gone, so process 0 ends too" in shown


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"index": 0}, "got only hosts.index"),
        ({"auto": True, "count": 2}, "hosts.auto and hosts.count must not both"),
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
