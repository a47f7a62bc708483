"""Device mesh and its axes."""

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
    """Sizes of the mesh axes; one of them may be -1, for all remaining devices.

    If devices form slices joined by a slower network, `dcn_data` and `dcn_fsdp` are the factors of
    `data` and `fsdp` across slices; their product is the number of slices.

    Attributes:
      data: number of batch shards, with replicated parameters.
      fsdp: number of shards of both batch and parameters, which are gathered layer by layer.
      sequence: number of shards of the input and target length, for long sequences.
      tensor: number of shards of heads, hidden features and vocabulary in every layer.
      dcn_data: factor of the data axis across slices.
      dcn_fsdp: factor of the fsdp axis across slices.

    Examples:
      >>> t5jax.parallel.MeshConfig(fsdp=2).sizes(8)
      {'data': 4, 'fsdp': 2, 'sequence': 1, 'tensor': 1}
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
        """Return the size of every axis.

        Args:
          num_devices: number of devices in the mesh.
        Returns:
          Sizes by axis name; their product is `num_devices`.
        Raises:
          ValueError: the axes do not multiply to the number of devices, or an axis is not a
            multiple of its factor across slices.
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
    """Build a device mesh.

    Args:
      config: sizes of the axes.
      devices: devices of the mesh; defaults to all devices.
    Returns:
      Mesh with axes data, fsdp, sequence and tensor, whatever their sizes.
    Raises:
      ValueError: the axes do not fit the devices or their slices.

    Examples:
      >>> t5jax.parallel.make_mesh(t5jax.parallel.MeshConfig(fsdp=-1, data=1)).axis_names
      ('data', 'fsdp', 'sequence', 'tensor')
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes(len(devices))
    axis_types = (AxisType.Auto,) * len(AXES)
    if config.dcn_data * config.dcn_fsdp == 1:
        return jax.make_mesh(tuple(sizes.values()), AXES, axis_types, devices=devices)
    return Mesh(_across_slices(config, sizes, devices), AXES, axis_types=axis_types)


def _across_slices(config: MeshConfig, sizes: dict[str, int], devices: Sequence[Any]) -> Any:
    """Arrange devices in the shape of the mesh, with the factors across slices outermost."""
    # TPU devices know their slice; elsewhere a process is a host, joined by a slower network.
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
