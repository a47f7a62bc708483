import dataclasses
import importlib.util

import jax
import pytest

from t5jax.models.config import ComputePolicy
from t5jax.models.t5 import abstract_params
from t5jax.parallel.mesh import MeshConfig
from t5jax.planning.workload import Workload, lower_step, slice_devices


@pytest.fixture
def task(tiny_config):
    return Workload(
        config=tiny_config.replace(num_heads=4, vocab_size=96),
        policy=ComputePolicy(),
        mesh=MeshConfig(data=1, fsdp=1, tensor=1),
        batch_size=16,
        input_length=12,
        target_length=9,
    )


def test_lower_counts_parameters_of_one_device(task):
    lowered = lower_step(task, jax.devices()[:1])
    leaves = jax.tree.leaves(abstract_params(task.config))
    assert lowered.num_bytes["parameters"] == sum(4 * leaf.size for leaf in leaves)


def test_lower_of_decoding_knows_the_cache(task, own_checks):
    """Keys and values of three layers: 9 own positions, 12 of the input; 16 rows, 4 heads of 5."""
    lowered = lower_step(dataclasses.replace(task, decode=True), jax.devices()[:1])
    assert lowered.num_bytes["cache"] == 4 + 3 * 2 * 16 * 4 * 5 * (9 + 12) * 4


def test_lower_refuses_a_batch_that_devices_do_not_divide(task):
    wrong = dataclasses.replace(task, batch_size=12, mesh=MeshConfig(data=1, fsdp=-1))
    with pytest.raises(ValueError, match="must be a multiple of"):
        lower_step(wrong, jax.devices())


def test_slice_devices_without_libtpu_say_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install libtpu"):
        slice_devices("v5e:2x2")


def test_slice_devices_of_an_unknown_slice_suggest_one():
    with pytest.raises(ValueError, match="did you mean"):
        slice_devices("v5:2x2")
