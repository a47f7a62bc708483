import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from t5jax.cli import plan as command
from t5jax.cli.plan import Plan
from t5jax.planning.cost_model import Estimate

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("option", ["batch_size", "accumulate", "max_compilations"])
def test_plan_refuses_numbers_below_1(option):
    with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0"):
        Plan(**{option: 0})


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


ESTIMATE = Estimate(
    memory={"parameters": 2**30},
    hbm_bytes=2**34,
    compiled_flops=3e12,
    model_flops=2e12,
    bytes_accessed=1e9,
    collectives=[],
    compute_time=0.5,
    memory_time=0.25,
    link_time=0.0,
    compile_time=1.0,
    largest=[],
    unknown_loops=[],
)
RANKED = {"remat": "none", "fits": False, "total_bytes": 2**34, "step_time": None, "bound": None}


def test_plan_prints_an_estimate_and_writes_it(t5jax, tmp_path, monkeypatch):
    tasks = []
    monkeypatch.setattr(command, "slice_devices", lambda topology: range(8))
    monkeypatch.setattr(
        command, "plan_step", lambda task, devices, *, chip: tasks.append(task) or ESTIMATE
    )
    status, out, err = t5jax("plan", "--remat", "full", "--json", tmp_path / "plan.json")
    assert (status, err) == (0, "")
    assert "16 sequences of 512 + 114 tokens; per device, 8 devices (v5e:2x4)" in out
    assert "1 GiB of 16 GiB, 15 GiB free" in out
    assert (tasks[0].batch_size, tasks[0].policy.remat) == (16, "full")
    found = json.loads((tmp_path / "plan.json").read_text())
    assert (found["model"], found["step"], found["remat"]) == ("t5-v1_1-base", "train", "full")
    assert (found["step_time"], found["bound"]) == (0.5, "compute")


def test_plan_prints_a_ranking(t5jax, tmp_path, monkeypatch):
    ranked = [{**RANKED, "mesh": {"data": 1, "fsdp": 8}}]
    monkeypatch.setattr(command, "slice_devices", lambda topology: range(8))
    monkeypatch.setattr(command, "rank_meshes", lambda *_, **__: ranked)
    status, out, _ = t5jax("plan", "--search", "--json", tmp_path / "plan.json")
    assert status == 0
    assert "does not fit" in out
    assert json.loads((tmp_path / "plan.json").read_text())["ranking"] == ranked
