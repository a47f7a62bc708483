"""Rows and their places against plain slices; several processes are those of test_processes.py."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from t5jax import placement, sharding


def make_mesh(**axes: int) -> jax.sharding.Mesh:
    return sharding.make_mesh(sharding.MeshConfig(**axes))


@pytest.mark.parametrize("axes", [{}, {"fsdp": 4}, {"tensor": 4, "fsdp": 2}, {"tensor": 8}])
def test_place_gives_every_device_its_own_rows(axes):
    mesh = make_mesh(**axes)
    values = np.arange(16 * 3).reshape(16, 3)
    assert placement.rows(16, mesh=mesh).tolist() == list(range(16))
    placed = placement.place(values, mesh=mesh)
    expected = jax.device_put(values, NamedSharding(mesh, sharding.BATCH))
    assert placed.sharding == expected.sharding
    for one, other in zip(placed.addressable_shards, expected.addressable_shards, strict=True):
        np.testing.assert_array_equal(one.data, other.data)


def test_ways_are_those_of_the_axes_that_divide_a_batch():
    assert placement.ways(make_mesh(fsdp=2, tensor=2)) == 4
    assert placement.whole_batch_size(12, mesh=make_mesh(fsdp=2, tensor=2)) == 12


@pytest.mark.parametrize(("parts", "expected"), [((0, 2), [0, 1, 4, 5]), ((3,), [6, 7])])
def test_rows_are_those_of_the_parts_of_this_process(monkeypatch, parts, expected):
    mesh = make_mesh(fsdp=4, tensor=2)
    monkeypatch.setattr(placement, "_parts", lambda mesh: parts)
    assert placement.rows(8, mesh=mesh).tolist() == expected
    assert placement.whole_batch_size(len(expected), mesh=mesh) == 8
