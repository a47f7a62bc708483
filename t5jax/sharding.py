"""One mesh, and rules that say by its path how an array lies on it."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Rules = Sequence[tuple[str, P]]

# Examples of a batch are divided over all devices that do not split a model between them.
BATCH = P(("data", "fsdp"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many ways to divide work; -1 once means all devices that the other axes leave."""

    data: int = -1
    """Ways to divide the batch, every device holding all parameters."""
    fsdp: int = 1
    """Ways to divide both the batch and the parameters, which are gathered layer by layer."""
    tensor: int = 1
    """Ways to divide heads, hidden features and vocabulary of every layer."""

    def __post_init__(self):
        sizes = dataclasses.asdict(self)
        for axis, size in sizes.items():
            if size == 0 or size < -1:
                raise ValueError(f"mesh axis {axis} must be positive or -1, got {size}.")
        if list(sizes.values()).count(-1) > 1:
            raise ValueError(f"at most one mesh axis may be -1, got {sizes}.")


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of all devices, axes `data`, `fsdp` and `tensor`; one device is a mesh of ones.

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dataclasses.asdict(config)
    known = 1
    for size in sizes.values():
        known *= max(size, 1)
    for axis, size in sizes.items():
        if size == -1:
            sizes[axis] = max(len(devices) // known, 1)
            known *= sizes[axis]
    if known != len(devices):
        product = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise ValueError(
            f"mesh axes must multiply to the number of devices, {len(devices)}, "
            f"got {product} = {known}; choose divisors of {len(devices)}, or -1 for one axis."
        )
    axis_types = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types, devices=devices)


def divide_batch(x: jax.Array) -> jax.Array:
    """Keeps the examples of an activation, its first axis, divided over the mesh.

    Has no effect but under `jax.set_mesh` of a mesh with the axes of `BATCH`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not {"data", "fsdp"} <= set(mesh.axis_names):
        return x
    return jax.lax.with_sharding_constraint(x, BATCH)


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
    compiled = [(re.compile(f"(?:^|/)(?:{pattern})(?:/|$)"), spec) for pattern, spec in rules]

    def sharding(path, leaf):
        if leaf.ndim == 0:
            return NamedSharding(mesh, P())
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, spec in compiled:
            if pattern.search(name):
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
        ways = math.prod(mesh.shape[name] for name in names)
        if size % ways:
            raise ValueError(
                f"mesh axis {' x '.join(names)} = {ways} must divide every axis it shards, but "
                f"{name} has shape {shape}; choose a divisor of {size}."
            )
    return P(*axes)
