import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from t5jax.models.config import T5Config
from t5jax.parallel.mesh import MeshConfig
from t5jax.planning.cost_model import OutOfMemory
from t5jax.planning.plan import Plan, advice
from t5jax.planning.workload import Workload

ROOT = Path(__file__).parents[2]


def test_plan_refuses_a_batch_of_nothing():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Plan(batch_size=0)


def test_advice_names_three_changes_the_best_first():
    task = Workload(
        config=T5Config.preset("t5-v1_1-base"),
        mesh=MeshConfig(data=2, fsdp=4),
        batch_size=32,
        input_length=512,
        target_length=114,
    )
    error = OutOfMemory(20e9, 16e9, {"parameters": 10**9, "optimizer": 10**6})
    found = advice(task, error, count=8)
    saved = [amount for amount, _ in found]
    assert len(found) == 3
    assert saved == sorted(saved, reverse=True)
    assert found[0][1] == "--remat full"
    assert "--accumulate 2" in [change for _, change in found]

    error = OutOfMemory(50e9, 16e9, {"parameters": 10**9, "optimizer": 45 * 10**9})
    large, _, _ = advice(dataclasses.replace(task, optimizer="muon"), error, count=8)
    assert large[1] == "--optimizer adafactor"
    assert large not in advice(task, error, count=8)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_plan_compiles_for_a_slice_that_is_not_there(tiny_config, tmp_path):
    """In a process of its own, since libtpu stays loaded."""
    (tmp_path / "config.json").write_text(tiny_config.replace(vocab_size=96).to_json())
    code = "from t5jax.cli.main import entry; entry()"
    arguments = ["plan", "--model", "config.json", "--topology", "v5e:2x2", "--json", "plan.json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["devices"] == 4
    assert found["compiled_flops"] > 0
