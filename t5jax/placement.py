"""Which examples of a batch a process makes, and how those of all processes become one array."""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Int

from t5jax import sharding


def ways(mesh: Mesh) -> int:
    """Into how many equal parts the examples of a batch are divided."""
    return sharding.ways(mesh, sharding.BATCH_AXES)


def rows(batch_size: int, *, mesh: Mesh) -> Int[np.ndarray, " R"]:
    """The numbers of the examples of a batch that devices of this process need, ascending.

    Processes that split a model between them need the same examples, and each makes them.

    Args:
      batch_size: examples in the whole batch, a multiple of `ways`.
      mesh: of all processes.
    """
    length = batch_size // ways(mesh)
    return np.concatenate([np.arange(part * length, (part + 1) * length) for part in _parts(mesh)])


def whole_batch_size(num_rows: int, *, mesh: Mesh) -> int:
    """Examples in the batch of which this process has `num_rows`."""
    return num_rows * ways(mesh) // len(_parts(mesh))


def place(local: np.ndarray, *, mesh: Mesh) -> jax.Array:
    """The batch whose `rows` every process has, divided over the mesh.

    Args:
      local: [R, ...] what `rows` says of one field of the batch.
      mesh: of all processes.
    """
    parts = _parts(mesh)
    length = len(local) // len(parts)
    begin = {part * length: i * length for i, part in enumerate(parts)}

    def piece(index: Any) -> np.ndarray:
        first = begin[index[0].start or 0]
        return local[(slice(first, first + length), *index[1:])]

    shape = (whole_batch_size(len(local), mesh=mesh), *local.shape[1:])
    return jax.make_array_from_callback(shape, NamedSharding(mesh, sharding.BATCH), piece)


@functools.cache
def _parts(mesh: Mesh) -> tuple[int, ...]:
    """The parts of a batch that lie on devices of this process."""
    where = NamedSharding(mesh, sharding.BATCH)
    found = where.addressable_devices_indices_map((ways(mesh),)).values()
    return tuple(sorted({index[0].start or 0 for index in found if index is not None}))
