"""Rows and their places against plain slices; several processes are those of test_processes.py."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from t5jax.parallel import sharding
from t5jax.parallel.mesh import MeshConfig, make_mesh as mesh_make_mesh
from t5jax.parallel.sharding import (
    BATCH_SPEC,
    global_batch_size,
    local_rows,
    num_batch_shards,
    shard_rows,
)


def make_mesh(**axes: int) -> jax.sharding.Mesh:
    return mesh_make_mesh(MeshConfig(**axes))


@pytest.mark.parametrize("axes", [{}, {"fsdp": 4}, {"tensor": 4, "fsdp": 2}, {"tensor": 8}])
def test_place_gives_every_device_its_own_rows(axes):
    mesh = make_mesh(**axes)
    values = np.arange(16 * 3).reshape(16, 3)
    assert local_rows(16, mesh=mesh).tolist() == list(range(16))
    placed = shard_rows(values, mesh=mesh)
    expected = jax.device_put(values, NamedSharding(mesh, BATCH_SPEC))
    assert placed.sharding == expected.sharding
    for one, other in zip(placed.addressable_shards, expected.addressable_shards, strict=True):
        np.testing.assert_array_equal(one.data, other.data)


def test_ways_are_those_of_the_axes_that_divide_a_batch():
    assert num_batch_shards(make_mesh(fsdp=2, tensor=2)) == 4
    assert global_batch_size(12, mesh=make_mesh(fsdp=2, tensor=2)) == 12


@pytest.mark.parametrize(("parts", "expected"), [((0, 2), [0, 1, 4, 5]), ((3,), [6, 7])])
def test_rows_are_those_of_the_parts_of_this_process(monkeypatch, parts, expected):
    mesh = make_mesh(fsdp=4, tensor=2)
    monkeypatch.setattr(sharding, "_parts", lambda mesh: parts)
    assert local_rows(8, mesh=mesh).tolist() == expected
    assert global_batch_size(len(expected), mesh=mesh) == 8
