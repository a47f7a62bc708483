"""A run that is killed, stopped and damaged ends where an undisturbed run ends."""

import signal
from pathlib import Path

import pytest
from helpers.launched_runs import finish, options, started, wait, wait_for_step
from helpers.small_runs import training_losses, write_inputs


def command(inputs: dict[str, str], output: Path, steps: int) -> list[str]:
    return options(inputs, output, steps, **{"eval-examples": 16, "checkpoint-every": 20})


def signal_at(step: int, number: int, arguments: list[str], output: Path, tmp_path: Path) -> int:
    """Runs the command, sends the signal once the step is logged, and returns the exit status."""
    with started(arguments, tmp_path) as running:
        wait_for_step(step, output, running)
        running[0].send_signal(number)
        ((status, _),) = wait(running, timeout=60)
        return status


@pytest.mark.slow
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
    (shown,) = finish(arguments, tmp_path)
    assert f"checkpoint {saved[-1]} is damaged" in shown
    assert f"continuing at step {saved[-2]} of {steps}" in shown
    calm, disturbed = training_losses(tmp_path / "calm"), training_losses(output)
    assert sorted(disturbed) == list(range(1, steps + 1))
    assert disturbed == calm  # bit for bit: JSON holds every digit of a float
