"""A run that is killed, stopped and damaged ends where an undisturbed run ends."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from small_runs import training_losses, write_inputs

ROOT = Path(__file__).parents[1]


def command(inputs: dict[str, str], output: Path, steps: int) -> list[str]:
    options = {
        "output": output,
        "model": inputs["model"],
        "tokenizer": inputs["tokenizer"],
        "data.path": inputs["text"],
        "input-length": 48,
        "batch-size": 8,
        "eval-examples": 16,
        "steps": steps,
        "eval-every": 50,
        "checkpoint-every": 20,
        "log-every": 1,
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, str(ROOT / "scripts" / "pretrain.py"), *flags]


@contextlib.contextmanager
def started(arguments: list[str], tmp_path: Path):
    environment = {
        **os.environ,
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
    }
    with subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def signal_at(step: int, number: int, arguments: list[str], output: Path, tmp_path: Path) -> int:
    """Runs the command, sends the signal once the step is logged, and returns the exit status."""
    with started(arguments, tmp_path) as process:
        deadline = time.monotonic() + 120
        while max(training_losses(output), default=0) < step:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate(timeout=60)
        return process.returncode


def finish(arguments: list[str], tmp_path: Path) -> str:
    with started(arguments, tmp_path) as process:
        shown, _ = process.communicate(timeout=200)
        assert process.returncode == 0, shown
        return shown


def test_run_disturbed_in_every_way_equals_an_undisturbed_one(tmp_path):
    inputs = write_inputs(tmp_path)
    steps = 240
    finish(command(inputs, tmp_path / "calm", steps), tmp_path)
    output = tmp_path / "disturbed"
    arguments = command(inputs, output, steps)
    assert signal_at(30, signal.SIGKILL, arguments, output, tmp_path) == -signal.SIGKILL
    assert signal_at(80, signal.SIGTERM, arguments, output, tmp_path) == 0
    saved = sorted(int(p.name) for p in (output / "checkpoints").iterdir() if p.name.isdigit())
    assert saved[-1] == max(training_losses(output))
    newest = output / "checkpoints" / str(saved[-1])
    largest = max(newest.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    largest.write_bytes(largest.read_bytes()[:100])
    shown = finish(arguments, tmp_path)
    assert f"checkpoint {saved[-1]} is damaged" in shown
    assert f"continuing at step {saved[-2]} of {steps}" in shown
    calm, disturbed = training_losses(tmp_path / "calm"), training_losses(output)
    assert sorted(disturbed) == list(range(1, steps + 1))
    assert disturbed == calm  # bit for bit: JSON holds every digit of a float
