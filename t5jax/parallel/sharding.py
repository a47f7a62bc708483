"""Sharding of parameters (by path rules), activations and batches."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Int, PyTree

from t5jax.parallel.mesh import AXES

PartitionRules = Sequence[tuple[str, P]]
# Devices along the other axes share the same examples.
BATCH_AXES = ("data", "fsdp")
BATCH_SPEC = P(BATCH_AXES)
# Shards batch and positions; further axes are replicated.
ACTIVATION_SPEC = P(BATCH_AXES, "sequence")


def with_shardings(shapes: PyTree, where: PyTree) -> PyTree:
    """Add a tree of shardings to a tree of shapes."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, where
    )


@dataclasses.dataclass(frozen=True)
class Sharder:
    """Sharding constraints on a model's activations; no effect without a mesh.

    Only this class reads the mesh of `jax.set_mesh`, once per `bind`.

    Attributes:
      mesh: mesh with the axes of `MeshConfig`, or None.

    Examples:
      >>> with jax.set_mesh(t5jax.parallel.make_mesh(t5jax.parallel.MeshConfig())):
      ...     sharder = t5jax.parallel.Sharder.from_context()
      >>> sharder.num_shards() == jax.device_count()
      True
    """

    mesh: Mesh | AbstractMesh | None = None

    @classmethod
    def from_context(cls) -> "Sharder":
        """Create a sharder from the mesh of `jax.set_mesh`, if set.

        Returns:
          The sharder.
        """
        mesh = jax.sharding.get_abstract_mesh()
        return cls(None if mesh.empty else mesh)

    @property
    def platform(self) -> str:
        """Platform of the mesh's devices, present or not; JAX's default without a mesh."""
        mesh = self.mesh.abstract_mesh if isinstance(self.mesh, Mesh) else self.mesh
        device = None if mesh is None else mesh.abstract_device
        return jax.default_backend() if device is None else device.platform

    def num_shards(self, axes: Sequence[str] = BATCH_AXES) -> int:
        """Return the number of shards along axes of the mesh.

        Args:
          axes: mesh axes; defaults to those that shard the batch.
        Returns:
          Product of the axis sizes; 1 without a mesh.
        """
        return 1 if self.mesh is None else num_shards(self.mesh, axes)

    def constrain_activations(self, x: jax.Array) -> jax.Array:
        """Constrain an activation to be sharded along batch and positions.

        Args:
          x: [B, T, ...] activation.
        Returns:
          `x` with a sharding constraint; unchanged without a mesh.
        """
        if self.mesh is None or not set(AXES) <= set(self.mesh.axis_names):
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, ACTIVATION_SPEC))


def on_cpu() -> bool:
    """Return True if the program being traced is for a CPU.

    Functions that get no sharder call this; it reads `jax.set_mesh`, so a program for other devices
    than JAX's default must be traced under it.
    """
    return Sharder.from_context().platform == "cpu"


def num_shards(mesh: Mesh | AbstractMesh, axes: Sequence[str] = BATCH_AXES) -> int:
    """Return the number of shards along axes of a mesh.

    Args:
      mesh: device mesh; an axis that it lacks counts as 1.
      axes: mesh axes; defaults to those that shard the batch.
    Returns:
      Product of the axis sizes.
    """
    return math.prod(mesh.shape.get(axis, 1) for axis in axes)


def path_name(path: jax.tree_util.KeyPath) -> str:
    """Return the path of a leaf, its parts joined by '/'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def matches_path(pattern: str, path: str) -> bool:
    """Return True if a regular expression matches whole '/'-separated parts of a path."""
    return re.search(f"(?:^|/)(?:{pattern})(?:/|$)", path) is not None


def infer_shardings(tree: PyTree, *, mesh: Mesh, rules: PartitionRules) -> PyTree:
    """Infer the sharding of every leaf from the first rule that matches its path.

    A pattern is a regular expression that matches whole '/'-separated parts of the path, so
    optimizer state under a parameter's path is sharded like the parameter. Scalars and axes of
    size 1, such as those of factored moments, are replicated.

    Args:
      tree: tree of arrays or shapes, such as parameters or a whole training state.
      mesh: device mesh.
      rules: pairs of a pattern and a partition spec, most specific first.
    Returns:
      Tree of the same structure with a `NamedSharding` per leaf.
    Raises:
      ValueError: no rule matches a path, or a mesh axis does not divide an array's axis.

    Examples:
      >>> mesh = t5jax.parallel.make_mesh(t5jax.parallel.MeshConfig())
      >>> rules = [("mlp/wi", jax.sharding.PartitionSpec("fsdp", "tensor"))]
      >>> params = {"mlp": {"wi": jnp.ones((4, 6))}}
      >>> shardings = t5jax.parallel.infer_shardings(params, mesh=mesh, rules=rules)
      >>> tuple(shardings["mlp"]["wi"].spec)
      ('fsdp', 'tensor')
    """

    def sharding(path, leaf):
        if leaf.ndim == 0:
            return NamedSharding(mesh, P())
        name = path_name(path)
        for pattern, spec in rules:
            if matches_path(pattern, name):
                return NamedSharding(mesh, _fit(name, leaf.shape, spec, mesh))
        raise ValueError(
            f"no sharding rule matches {name} of shape {leaf.shape}; add one (P() replicates)."
        )

    return jax.tree.map_with_path(sharding, tree)


def _fit(name: str, shape: tuple[int, ...], spec: P, mesh: Mesh) -> P:
    if len(spec) > len(shape):
        raise ValueError(
            f"{name} has shape {shape}, fewer axes than its sharding rule {spec}; shorten the rule."
        )
    axes = [axis if size > 1 else None for axis, size in zip(spec, shape, strict=False)]
    for axis, size in zip(axes, shape, strict=False):
        names = axis if isinstance(axis, tuple) else (axis,) if axis else ()
        parts = num_shards(mesh, names)
        if size % parts:
            raise ValueError(
                f"mesh axis {' x '.join(names)} = {parts} must divide every axis it shards, but "
                f"{name} has shape {shape}; choose a divisor of {size}."
            )
    return P(*axes)


def local_rows(batch_size: int, *, mesh: Mesh) -> Int[np.ndarray, " R"]:
    """Return the rows of a global batch that this process must provide.

    Processes that share a model replica need the same rows, and each provides them.

    Args:
      batch_size: global batch size, a multiple of data x fsdp.
      mesh: mesh of all processes.
    Returns:
      [R] int, row indices in ascending order.

    Examples:
      >>> mesh = t5jax.parallel.make_mesh(t5jax.parallel.MeshConfig())
      >>> t5jax.parallel.local_rows(8, mesh=mesh).tolist()
      [0, 1, 2, 3, 4, 5, 6, 7]
    """
    length = batch_size // num_shards(mesh)
    return np.concatenate([np.arange(part * length, (part + 1) * length) for part in _parts(mesh)])


def global_batch_size(num_rows: int, *, mesh: Mesh) -> int:
    """Return the global batch size if this process has `num_rows` rows."""
    return num_rows * num_shards(mesh) // len(_parts(mesh))


def shard_rows(local: np.ndarray, *, mesh: Mesh) -> jax.Array:
    """Shard one field of a batch over the mesh.

    Args:
      local: [R, ...] the rows `local_rows` of the field.
      mesh: mesh of all processes.
    Returns:
      [B, ...] array of all rows, sharded along the first axis.
    """
    parts = _parts(mesh)
    length = len(local) // len(parts)
    begin = {part * length: i * length for i, part in enumerate(parts)}

    def piece(index: Any) -> np.ndarray:
        first = begin[index[0].start or 0]
        return local[(slice(first, first + length), *index[1:])]

    shape = (global_batch_size(len(local), mesh=mesh), *local.shape[1:])
    return jax.make_array_from_callback(shape, NamedSharding(mesh, BATCH_SPEC), piece)


# Batch on the devices, see `t5jax.data.Batch`.
DeviceBatch = Mapping[str, jax.Array]


def shard_batch(batch: Mapping[str, np.ndarray], *, mesh: Mesh) -> dict[str, jax.Array]:
    """Shard a batch over the mesh.

    Args:
      batch: arrays [R, ...] of the rows `local_rows`, all rows with a single process.
      mesh: mesh of all processes.
    Returns:
      Arrays [B, ...] of all rows, sharded along the first axis.
    Raises:
      ValueError: the global batch size is not a multiple of data x fsdp.

    Examples:
      >>> mesh = t5jax.parallel.make_mesh(t5jax.parallel.MeshConfig())
      >>> batch = t5jax.parallel.shard_batch({"targets": np.ones((8, 3), np.int32)}, mesh=mesh)
      >>> batch["targets"].shape, len(batch["targets"].devices()) == jax.device_count()
      ((8, 3), True)
    """
    num_rows = len(next(iter(batch.values())))
    check_batch_size(global_batch_size(num_rows, mesh=mesh), mesh=mesh)
    return {name: shard_rows(value, mesh=mesh) for name, value in batch.items()}


def check_batch_size(batch_size: int, *, mesh: Mesh, accumulate: int = 1) -> None:
    """Check that the devices divide every micro-batch.

    Args:
      batch_size: global batch size.
      mesh: mesh of all processes.
      accumulate: number of micro-batches.
    Raises:
      ValueError: the batch size is not a multiple of accumulate x data x fsdp.
    """
    shards = num_shards(mesh)
    if batch_size % (shards * accumulate):
        rule = f"data x fsdp = {shards}"
        if accumulate > 1:
            rule = f"accumulate x data x fsdp = {accumulate} x {shards}"
        raise ValueError(f"the batch size must be a multiple of {rule}, got {batch_size}.")


def check_lengths(lengths: Mapping[str, int], *, mesh: Mesh) -> None:
    """Raise ValueError unless the sequence axis of the mesh divides all lengths, keyed by name."""
    for name, length in lengths.items():
        if length % mesh.shape["sequence"]:
            raise ValueError(
                f"mesh axis sequence = {mesh.shape['sequence']} must divide the length of {name}, "
                f"{length}; change one of them."
            )


@functools.cache
def _parts(mesh: Mesh) -> tuple[int, ...]:
    """Return the indices of the batch shards on devices of this process."""
    where = NamedSharding(mesh, BATCH_SPEC)
    indices = where.addressable_devices_indices_map((num_shards(mesh),)).values()
    return tuple(sorted({index[0].start or 0 for index in indices if index is not None}))
