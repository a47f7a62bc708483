"""Runs of `scripts/` or of small programs in processes of their own, one or several together."""

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
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


def program(folder: Path, body: str, imports: str = "") -> Path:
    """Write a program that joins the processes of its `--hosts` options and runs `body`."""
    path = folder / "program.py"
    path.write_text(
        f"""
import dataclasses
from t5jax.cli import run_command
from t5jax.parallel import HostsConfig, abort_together, initialize
{imports}

@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    hosts: HostsConfig = HostsConfig()

def main(config):
    initialize(config.hosts)
    with abort_together():
{textwrap.indent(textwrap.dedent(body), " " * 8)}

run_command(Config, main)
"""
    )
    return path


def hosts(count: int, index: int, port: int) -> list[str]:
    """The options of one process of `count`."""
    options = {"coordinator": f"127.0.0.1:{port}", "count": count, "index": index}
    return [part for name, value in options.items() for part in (f"--hosts.{name}", str(value))]


@contextlib.contextmanager
def started(
    arguments: Sequence[str],
    cache: Path,
    *,
    count: int = 1,
    devices: int = 1,
    script: str | Path = "pretrain.py",
) -> Iterator[list[subprocess.Popen]]:
    """`count` processes of one run, with `devices` CPU devices each."""
    environment = {
        "HF_DATASETS_CACHE": str(cache / "datasets"),
        # Most of a test's time is compiling.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    port = free_port()
    command = [str(ROOT / "scripts" / script), *arguments]
    commands = [
        [*command, *(hosts(count, index, port) if count > 1 else [])] for index in range(count)
    ]
    with launched(commands, [environment] * count) as running:
        yield running


@contextlib.contextmanager
def launched(
    commands: Sequence[Sequence[str]], environments: Sequence[dict[str, str]]
) -> Iterator[list[subprocess.Popen]]:
    """Python processes on CPUs, each with its arguments and additions to the environment."""
    running = [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command, environment in zip(commands, environments, strict=True)
    ]
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


def finish(
    arguments: Sequence[str],
    cache: Path,
    *,
    count: int = 1,
    devices: int = 1,
    script: str | Path = "pretrain.py",
) -> list[str]:
    """What each process printed; all must succeed."""
    with started(arguments, cache, count=count, devices=devices, script=script) as running:
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
