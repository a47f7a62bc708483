"""Rows and their places against plain slices, in one process and in two."""

import jax
import numpy as np
import pytest
from helpers.launched_runs import finish, program
from jax.sharding import NamedSharding

from t5jax.parallel.mesh import MeshConfig, make_mesh as mesh_make_mesh
from t5jax.parallel.sharding import (
    BATCH_SPEC,
    global_batch_size,
    local_rows,
    num_shards,
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
    assert num_shards(make_mesh(fsdp=2, tensor=2)) == 4
    assert global_batch_size(12, mesh=make_mesh(fsdp=2, tensor=2)) == 12


def test_rows_are_those_of_the_devices_of_each_process(tmp_path):
    # Every second part of a batch is on a device of the same process; with tensor=2, every part.
    body = """
        devices = np.array(jax.devices()).reshape(2, 2)
        values = np.arange(8 * 3).reshape(8, 3)
        for shape in ((1, 4, 1, 1), (1, 2, 1, 2)):
            mesh = jax.sharding.Mesh(devices.T.reshape(shape), AXES)
            rows = local_rows(8, mesh=mesh)
            print(rows.tolist(), global_batch_size(len(rows), mesh=mesh))
            for shard in shard_rows(values[rows], mesh=mesh).addressable_shards:
                np.testing.assert_array_equal(shard.data, values[shard.index])
    """
    imports = """
import jax, numpy as np
from t5jax.parallel import global_batch_size, local_rows, shard_rows
from t5jax.parallel.mesh import AXES
"""
    script = program(tmp_path, body, imports)
    first, second = finish([], tmp_path, count=2, devices=2, script=script)
    whole = "[0, 1, 2, 3, 4, 5, 6, 7] 8"
    assert first.splitlines() == ["[0, 1, 4, 5] 8", whole]
    assert second.splitlines() == ["[2, 3, 6, 7] 8", whole]
