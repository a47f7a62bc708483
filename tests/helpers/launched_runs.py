"""Runs of `scripts/` in processes of their own, one or several together."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from helpers.small_runs import training_losses

ROOT = Path(__file__).parents[2]


def options(inputs: dict[str, str], output: Path, steps: int, **more) -> list[str]:
    named = {
        "output": output,
        "model": inputs["model"],
        "tokenizer": inputs["tokenizer"],
        "data.path": inputs["text"],
        "input-length": 48,
        "batch-size": 8,
        "eval-examples": 20,
        "steps": steps,
        "eval-every": 50,
        "checkpoint-every": 10,
        "log-every": 1,
        **more,
    }
    return [part for name, value in named.items() for part in (f"--{name}", str(value))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def started(
    arguments: Sequence[str],
    cache: Path,
    *,
    count: int = 1,
    devices: int = 1,
    script: str = "pretrain.py",
) -> Iterator[list[subprocess.Popen]]:
    """`count` processes of one run, with `devices` CPU devices each."""
    environment = {
        **os.environ,
        "HF_DATASETS_CACHE": str(cache / "datasets"),
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        # Most of a test's time is compiling.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    hosts = ["--hosts.coordinator", f"127.0.0.1:{free_port()}", "--hosts.count", str(count)]
    running = []
    for index in range(count):
        own = [*hosts, "--hosts.index", str(index)] if count > 1 else []
        running.append(
            subprocess.Popen(
                [sys.executable, str(ROOT / "scripts" / script), *arguments, *own],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.communicate()


def wait(running: Sequence[subprocess.Popen], *, timeout: float = 200) -> list[tuple[int, str]]:
    """Exit status and output of each."""
    outputs = [process.communicate(timeout=timeout)[0] for process in running]
    return [(p.returncode, shown) for p, shown in zip(running, outputs, strict=True)]


def finish(arguments: Sequence[str], cache: Path, *, count: int = 1, devices: int = 1) -> list[str]:
    """What each process printed; all must succeed."""
    with started(arguments, cache, count=count, devices=devices) as running:
        ended = wait(running)
    assert [status for status, _ in ended] == [0] * count, "\n".join(shown for _, shown in ended)
    return [shown for _, shown in ended]


def wait_for_step(step: int, output: Path, running: Sequence[subprocess.Popen]) -> None:
    """Returns once the step is logged."""
    deadline = time.monotonic() + 120
    while max(training_losses(output), default=0) < step:
        for process in running:
            assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
