import json

import jax
import pytest

from t5jax.models.config import ComputePolicy
from t5jax.parallel.mesh import MeshConfig
from t5jax.planning.cost_model import (
    compile_step,
    estimate_lines,
    estimate_to_json,
    out_of_memory_sizes,
)
from t5jax.planning.workload import Workload, lower_step
from t5jax.profiling.hardware import CHIPS


def test_out_of_memory_sizes_are_read():
    """Both forms of what libtpu says."""
    text = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (23.72G) exceeds available HBM (15.75G). HLO module: jit_step"
    )
    assert out_of_memory_sizes(text) == (23.72 * 2**30, 15.75 * 2**30, True)
    text = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.50G of 15.75G hbm. "
        "Exceeded hbm capacity by 2.75G."
    )
    assert out_of_memory_sizes(text) == (18.5 * 2**30, 15.75 * 2**30, False)


def test_out_of_memory_sizes_of_another_error_are_none():
    assert out_of_memory_sizes("INVALID_ARGUMENT: no") is None


@pytest.fixture
def task(tiny_config):
    return Workload(
        config=tiny_config.replace(num_heads=4, vocab_size=96),
        policy=ComputePolicy(),
        mesh=MeshConfig(data=1, fsdp=-1),
        batch_size=16,
        input_length=12,
        target_length=9,
    )


def test_estimate_of_a_step_has_a_roofline_and_becomes_json(task):
    lowered = lower_step(task, jax.devices())
    estimate = compile_step(lowered, task, chip=CHIPS["v5e"], count=8)
    assert estimate.model_flops * 8 == task.flops()
    assert estimate.compute_time == estimate.compiled_flops / 197e12
    assert estimate.memory_time == estimate.bytes_accessed / 819e9
    assert estimate.step_time == max(estimate.times.values()) == estimate.times[estimate.bound]
    assert estimate.total_bytes == sum(estimate.memory.values())
    plain = json.loads(json.dumps(estimate_to_json(estimate)))
    assert {"memory", "collectives", "step_time", "bound", "largest"} <= set(plain)
    assert "memory: total" in dict(estimate_lines(estimate, num_tokens=100))
