import pytest

from t5jax.models.config import ComputePolicy
from t5jax.parallel.mesh import MeshConfig
from t5jax.planning.mesh_search import mesh_candidates, mesh_table, rank_meshes
from t5jax.planning.workload import Workload
from t5jax.profiling.hardware import CHIPS


@pytest.fixture
def task(tiny_config):
    return Workload(
        config=tiny_config.replace(num_heads=4, vocab_size=96),
        policy=ComputePolicy(),
        mesh=MeshConfig(),
        batch_size=4,
        input_length=12,
        target_length=9,
    )


def test_candidates_are_all_ways_that_divide(task):
    """By brute force, with 8 devices, 4 heads and 4 sequences."""
    meshes = {(way.mesh.data, way.mesh.fsdp, way.mesh.tensor) for way in mesh_candidates(task, 8)}
    sizes = (1, 2, 4, 8)
    assert meshes == {
        (data, fsdp, tensor)
        for data in sizes
        for fsdp in sizes
        for tensor in sizes
        if data * fsdp * tensor == 8 and 4 % tensor == 0 and 4 % (data * fsdp) == 0
    }
    assert {way.policy.remat for way in mesh_candidates(task, 8)} == {"none", "dots", "full"}


def test_rank_without_a_way_is_an_error(task):
    with pytest.raises(ValueError, match="batch_size must be"):
        rank_meshes(task, range(7), chip=CHIPS["v5e"], max_compilations=1)


def test_table_shows_what_does_not_fit():
    rows = [
        {
            "mesh": {"data": 1, "fsdp": 8, "tensor": 1},
            "remat": "none",
            "fits": False,
            "total_bytes": 2**34,
            "step_time": None,
            "bound": None,
        }
    ]
    assert "fsdp=8" in mesh_table(rows)
    assert "16 GiB" in mesh_table(rows)
    assert "does not fit" in mesh_table(rows)
