"""One mesh, and rules that say by its path how an array lies on it."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Rules = Sequence[tuple[str, P]]

# From the slowest network to the fastest.
AXES = ("data", "fsdp", "sequence", "tensor")
# Examples of a batch are divided over all devices that do not split a model between them.
BATCH_AXES = ("data", "fsdp")
BATCH = P(BATCH_AXES)
# The same, and positions; what comes behind is whole.
ACTIVATIONS = P(BATCH_AXES, "sequence")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many ways to divide work; -1 once means all devices that the other axes leave.

    Where devices form slices that only a slower network joins, `dcn_data` and `dcn_fsdp` say how
    many of the ways of `data` and `fsdp` go across them; their product is the number of slices.
    """

    data: int = -1
    """Ways to divide the batch, every device holding all parameters."""
    fsdp: int = 1
    """Ways to divide both the batch and the parameters, which are gathered layer by layer."""
    sequence: int = 1
    """Ways to divide the length of inputs and targets, for long ones."""
    tensor: int = 1
    """Ways to divide heads, hidden features and vocabulary of every layer."""
    dcn_data: int = 1
    """How many ways of `data` go across slices."""
    dcn_fsdp: int = 1
    """How many ways of `fsdp` go across slices."""

    def __post_init__(self):
        sizes = self._sizes()
        for axis, size in sizes.items():
            if size == 0 or size < -1:
                raise ValueError(f"mesh axis {axis} must be positive or -1, got {size}.")
        if list(sizes.values()).count(-1) > 1:
            raise ValueError(f"at most one mesh axis may be -1, got {sizes}.")
        for name in ("dcn_data", "dcn_fsdp"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")

    def _sizes(self) -> dict[str, int]:
        return {axis: getattr(self, axis) for axis in AXES}

    def sizes(self, num_devices: int) -> dict[str, int]:
        """Ways of every axis on so many devices.

        Raises:
          ValueError: the axes do not multiply to the number of devices, or an axis is not a
            multiple of its part across slices.
        """
        sizes = self._sizes()
        known = math.prod(max(size, 1) for size in sizes.values())
        for axis, size in sizes.items():
            if size == -1:
                sizes[axis] = max(num_devices // known, 1)
                known *= sizes[axis]
        if known != num_devices:
            product = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
            raise ValueError(
                f"mesh axes must multiply to the number of devices, {num_devices}, "
                f"got {product} = {known}; choose divisors of {num_devices}, or -1 for one axis."
            )
        for axis, across in (("data", self.dcn_data), ("fsdp", self.dcn_fsdp)):
            if sizes[axis] % across:
                raise ValueError(
                    f"mesh axis {axis} must be a multiple of dcn_{axis} = {across}, got "
                    f"{sizes[axis]}."
                )
        return sizes


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of all devices, axes as of `AXES`; one device is a mesh of ones.

    Raises:
      ValueError: the axes do not fit the devices, or their slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes(len(devices))
    axis_types = (AxisType.Auto,) * len(AXES)
    if config.dcn_data * config.dcn_fsdp == 1:
        return jax.make_mesh(tuple(sizes.values()), AXES, axis_types, devices=devices)
    return Mesh(_across_slices(config, sizes, devices), AXES, axis_types=axis_types)


def _across_slices(config: MeshConfig, sizes: dict[str, int], devices: Sequence[Any]) -> Any:
    """Devices in the shape of the mesh, the ways within a slice nearest to one another."""
    # TPU devices know their slice; elsewhere a process is a host, with a slower network around it.
    by_process = not all(hasattr(device, "slice_index") for device in devices)
    name = "process_index" if by_process else "slice_index"
    count = len({getattr(device, name) for device in devices})
    across = {"data": config.dcn_data, "fsdp": config.dcn_fsdp}
    if math.prod(across.values()) != count:
        raise ValueError(
            f"dcn_data x dcn_fsdp must be the number of slices, {count}, got "
            f"{config.dcn_data} x {config.dcn_fsdp}."
        )
    outer = [across.get(axis, 1) for axis in AXES]
    inner = [size // part for size, part in zip(sizes.values(), outer, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(
        inner, outer, devices, process_is_granule=by_process
    )


def ways(mesh: Mesh | AbstractMesh, axes: Sequence[str]) -> int:
    """Into how many parts axes of a mesh divide something together; one that it lacks, into one."""
    return math.prod(mesh.shape.get(axis, 1) for axis in axes)


def placed(shapes: Any, where: Any) -> Any:
    """Shapes that say where they lie, of a tree of shapes and one of shardings."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, where
    )


def divide(x: jax.Array) -> jax.Array:
    """Keeps examples and positions of an activation, its first two axes, divided over the mesh.

    Has no effect but under `jax.set_mesh` of a mesh with the axes of `ACTIVATIONS`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(AXES) <= set(mesh.axis_names):
        return x
    return jax.lax.with_sharding_constraint(x, ACTIVATIONS)


def path_name(path: jax.tree_util.KeyPath) -> str:
    """The path of a leaf, its parts joined by '/'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def covers(pattern: str, path: str) -> bool:
    """Whether a regular expression fits one or more whole '/'-separated parts of a path."""
    return re.search(f"(?:^|/)(?:{pattern})(?:/|$)", path) is not None


def shardings(tree: Any, *, mesh: Mesh, rules: Rules) -> Any:
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
            if covers(pattern, name):
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
        parts = ways(mesh, names)
        if size % parts:
            raise ValueError(
                f"mesh axis {' x '.join(names)} = {parts} must divide every axis it shards, but "
                f"{name} has shape {shape}; choose a divisor of {size}."
            )
    return P(*axes)
