"""One mesh, and rules that say by its path how an array lies on it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

# From the slowest network to the fastest.
AXES = ("data", "fsdp", "sequence", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many ways to divide work; -1 once means all devices that the other axes leave.

    Where devices form slices that only a slower network joins, `dcn_data` and `dcn_fsdp` say how
    many of the ways of `data` and `fsdp` go across them; their product is the number of slices.

    Attributes:
      data: Ways to divide the batch, every device holding all parameters.
      fsdp: Ways to divide both the batch and the parameters, which are gathered layer by layer.
      sequence: Ways to divide the length of inputs and targets, for long ones.
      tensor: Ways to divide heads, hidden features and vocabulary of every layer.
      dcn_data: How many ways of `data` go across slices.
      dcn_fsdp: How many ways of `fsdp` go across slices.
    """

    data: int = -1
    fsdp: int = 1
    sequence: int = 1
    tensor: int = 1
    dcn_data: int = 1
    dcn_fsdp: int = 1

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
