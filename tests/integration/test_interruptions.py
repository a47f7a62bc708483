"""Signals at any moment of a command: none is lost, and the run resumes with the same numbers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.launched_runs import ROOT, options
from helpers.small_runs import write_inputs

from t5jax.training.tracker import read_metrics

# 200 signals take half an hour on two cores.
COUNT = int(os.environ.get("T5JAX_INTERRUPTIONS", "8"))
STATUSES = {
    # Python itself handles what arrives before the command does.
    signal.SIGINT: (0, 130, 1, -signal.SIGINT),
    signal.SIGTERM: (0, 143, -signal.SIGTERM),
}


def rows(output: Path) -> list[dict[str, float]]:
    """Losses of steps and evaluations, without speeds."""
    names = ("step", "loss", "grad_norm", "eval_loss")
    entries = [{name: e[name] for name in names if name in e} for e in read_metrics(output)]
    return [entry for entry in entries if len(entry) > 1]


@pytest.mark.slow
def test_no_signal_is_lost_and_runs_resume_bit_for_bit(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "pretrain.py")]

    def arguments(output: Path) -> list[str]:
        inputs = write_inputs(tmp_path)
        every = {"eval-every": 30, "checkpoint-every": 20, "log-every": 7}
        return [*command, *options(inputs, output, 300, **every)]

    begin = time.monotonic()
    subprocess.run(arguments(tmp_path / "whole"), check=True, capture_output=True)
    whole = time.monotonic() - begin
    expected, runs, lost = rows(tmp_path / "whole"), 0, []
    for i in range(COUNT):
        number, after = (signal.SIGINT, signal.SIGTERM)[i % 2], whole * (i + 0.5) / COUNT
        output = tmp_path / f"run{runs}"
        process = subprocess.Popen(
            arguments(output), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            shown, _ = process.communicate(timeout=after)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            try:
                shown, _ = process.communicate(timeout=8)
            except subprocess.TimeoutExpired:
                process.kill()
                shown, _ = process.communicate()
                if b"waiting for" not in shown:
                    lost.append((after, shown.decode()[-300:]))
            else:
                assert process.returncode in STATUSES[number], (after, shown.decode())
        if process.returncode == 0 and b"saved step" not in shown:
            assert rows(output) == expected  # it was complete
            runs += 1
    output = tmp_path / f"run{runs}"
    subprocess.run(arguments(output), check=True, capture_output=True)
    assert rows(output) == expected
    assert not lost
