"""Sharding of parameters by the rules of a path, of activations and of batches."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Int

from t5jax.parallel.mesh import AXES

PartitionRules = Sequence[tuple[str, P]]
# Examples of a batch are divided over all devices that do not split a model between them.
BATCH_AXES = ("data", "fsdp")
BATCH_SPEC = P(BATCH_AXES)
# The same, and positions; further axes are whole.
ACTIVATION_SPEC = P(BATCH_AXES, "sequence")


def with_shardings(shapes: Any, where: Any) -> Any:
    """Shapes that say where they lie, of a tree of shapes and one of shardings."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, where
    )


@dataclasses.dataclass(frozen=True)
class Sharder:
    """Divides a model's activations over a mesh; without one, leaves them as they are.

    Only this class reads the mesh of `jax.set_mesh`: `bind` does so once for a model.

    Attributes:
      mesh: with the axes of `MeshConfig`, or None.
    """

    mesh: Mesh | AbstractMesh | None = None

    @classmethod
    def from_context(cls) -> "Sharder":
        """Return the sharder of the mesh of `jax.set_mesh`, or of none."""
        mesh = jax.sharding.get_abstract_mesh()
        return cls(None if mesh.empty else mesh)

    @property
    def platform(self) -> str:
        """Platform of the mesh's devices, which need not be there, or else JAX's default."""
        mesh = self.mesh.abstract_mesh if isinstance(self.mesh, Mesh) else self.mesh
        device = None if mesh is None else mesh.abstract_device
        return jax.default_backend() if device is None else device.platform

    def num_shards(self, axes: Sequence[str] = BATCH_AXES) -> int:
        """Return the number of parts that axes of the mesh divide something into together."""
        return 1 if self.mesh is None else num_shards(self.mesh, axes)

    def constrain_activations(self, x: jax.Array) -> jax.Array:
        """Keep examples and positions of an activation, its first two axes, divided."""
        if self.mesh is None or not set(AXES) <= set(self.mesh.axis_names):
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, ACTIVATION_SPEC))


def on_cpu() -> bool:
    """Return whether the program that is being traced is for a CPU.

    Products that no model calls do not know its sharder, so this goes by `jax.set_mesh`: a program
    for devices that JAX does not use by default must be traced under it.
    """
    return Sharder.from_context().platform == "cpu"


def num_shards(mesh: Mesh | AbstractMesh, axes: Sequence[str] = BATCH_AXES) -> int:
    """Return the number of parts that axes of a mesh divide something into together.

    Args:
      mesh: an axis that it lacks divides nothing.
      axes: those of a batch's examples by default.
    """
    return math.prod(mesh.shape.get(axis, 1) for axis in axes)


def path_name(path: jax.tree_util.KeyPath) -> str:
    """The path of a leaf, its parts joined by '/'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def matches_path(pattern: str, path: str) -> bool:
    """Whether a regular expression fits one or more whole '/'-separated parts of a path."""
    return re.search(f"(?:^|/)(?:{pattern})(?:/|$)", path) is not None


def infer_shardings(tree: Any, *, mesh: Mesh, rules: PartitionRules) -> Any:
    """A sharding for every leaf, by the first rule whose pattern occurs in the leaf's path.

    A pattern is a regular expression that covers whole '/'-separated parts of the path, so state
    that an optimizer keeps under a parameter's path follows the parameter.  Axes of size 1, such
    as those that factored moments are reduced to, stay whole; so do scalars.

    Args:
      tree: arrays or shapes, such as parameters or a whole training state.
      mesh: the mesh.
      rules: patterns and partition specs, most specific first.
    Raises:
      ValueError: no rule fits a path, or a mesh axis does not divide an array's axis.
    """

    def sharding(path, leaf):
        if leaf.ndim == 0:
            return NamedSharding(mesh, P())
        name = path_name(path)
        for pattern, spec in rules:
            if matches_path(pattern, name):
                return NamedSharding(mesh, _fit(name, leaf.shape, spec, mesh))
        raise ValueError(
            f"no sharding rule fits {name} of shape {leaf.shape}; add one for it, P() to replicate."
        )

    return jax.tree.map_with_path(sharding, tree)


def _fit(name: str, shape: tuple[int, ...], spec: P, mesh: Mesh) -> P:
    if len(spec) > len(shape):
        raise ValueError(f"{name} has shape {shape}, fewer axes than its sharding rule {spec}.")
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
    """The numbers of the examples of a batch that devices of this process need, ascending.

    Processes that split a model between them need the same examples, and each makes them.

    Args:
      batch_size: examples in the whole batch, a multiple of `num_shards`.
      mesh: of all processes.
    """
    length = batch_size // num_shards(mesh)
    return np.concatenate([np.arange(part * length, (part + 1) * length) for part in _parts(mesh)])


def global_batch_size(num_rows: int, *, mesh: Mesh) -> int:
    """Examples in the batch of which this process has `num_rows`."""
    return num_rows * num_shards(mesh) // len(_parts(mesh))


def shard_rows(local: np.ndarray, *, mesh: Mesh) -> jax.Array:
    """The batch whose `local_rows` every process has, divided over the mesh.

    Args:
      local: [R, ...] what `local_rows` says of one field of the batch.
      mesh: of all processes.
    """
    parts = _parts(mesh)
    length = len(local) // len(parts)
    begin = {part * length: i * length for i, part in enumerate(parts)}

    def piece(index: Any) -> np.ndarray:
        first = begin[index[0].start or 0]
        return local[(slice(first, first + length), *index[1:])]

    shape = (global_batch_size(len(local), mesh=mesh), *local.shape[1:])
    return jax.make_array_from_callback(shape, NamedSharding(mesh, BATCH_SPEC), piece)


def shard_batch(batch: Mapping[str, np.ndarray], *, mesh: Mesh) -> dict[str, jax.Array]:
    """Place a batch on the mesh, its rows divided over the devices.

    Args:
      batch: arrays [R, ...] of the rows that this process needs, see `local_rows`; all rows, with
        one process.
      mesh: mesh of all processes.
    Raises:
      ValueError: the devices do not divide the rows.
    """
    num_rows = len(next(iter(batch.values())))
    check_batch_size(global_batch_size(num_rows, mesh=mesh), mesh=mesh)
    return {name: shard_rows(value, mesh=mesh) for name, value in batch.items()}


def check_batch_size(batch_size: int, *, mesh: Mesh, accumulate: int = 1) -> None:
    """Raise ValueError unless the devices divide every one of `accumulate` parts of a batch."""
    shards = num_shards(mesh)
    if batch_size % (shards * accumulate):
        rule = f"data x fsdp = {shards}"
        if accumulate > 1:
            rule = f"accumulate x data x fsdp = {accumulate} x {shards}"
        raise ValueError(f"the batch size must be a multiple of {rule}, got {batch_size}.")


def check_lengths(lengths: Mapping[str, int], *, mesh: Mesh) -> None:
    """Raise ValueError unless the mesh divides all lengths of rows, given by name."""
    for name, length in lengths.items():
        if length % mesh.shape["sequence"]:
            raise ValueError(
                f"mesh axis sequence = {mesh.shape['sequence']} must divide the length of {name}, "
                f"{length}; make it a multiple, or choose a divisor."
            )


@functools.cache
def _parts(mesh: Mesh) -> tuple[int, ...]:
    """The parts of a batch that lie on devices of this process."""
    where = NamedSharding(mesh, BATCH_SPEC)
    indices = where.addressable_devices_indices_map((num_shards(mesh),)).values()
    return tuple(sorted({index[0].start or 0 for index in indices if index is not None}))
