"""Peak performance of accelerators, from the vendors' published figures.

Sources: TPUs, cloud.google.com/tpu/docs (v4, v5e, v5p, v6e and tpu7x, "system architecture" and
"key chip specifications", which give the interconnect for both directions, or in Gbps for one);
NVIDIA's data sheets of A100, H100 SXM and H200 (dense bfloat16, without sparsity).
"""

import dataclasses

from t5jax.errors import suggest

GB, TFLOP = 1e9, 1e12
GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Peak performance of one JAX device: a whole chip, or half a chip of tpu7x.

    Attributes:
      name: name of the chip, for TPUs as in a topology.
      kinds: values of JAX's `device_kind`.
      flops: bfloat16 FLOP/s; a multiply-add counts as two.
      hbm_bytes: memory, in bytes.
      hbm_bandwidth: memory bandwidth, in bytes/s.
      link_bandwidth: bandwidth of all links to neighbors together, in bytes/s, one direction.
      torus: number of axes of a TPU's network; 0 for GPUs.
      largest: axes of the largest slice with a single network; empty for GPUs.

    Examples:
      >>> chip = t5jax.profiling.chip_of_topology("v5e:4x8")
      >>> chip.name, chip.flops / 1e12, chip.hbm_bytes // 2**30
      ('v5e', 197.0, 16)
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    torus: int = 0
    largest: tuple[int, ...] = ()


def _tpu(name, kinds, tflops, hbm, hbm_bandwidth, link_bandwidth, largest) -> Chip:
    return Chip(
        name=name,
        kinds=kinds,
        flops=tflops * TFLOP,
        hbm_bytes=hbm * GIB,
        hbm_bandwidth=hbm_bandwidth * GB,
        link_bandwidth=link_bandwidth * GB,
        torus=len(largest),
        largest=largest,
    )


def _gpu(name, kinds, tflops, hbm, hbm_bandwidth, link_bandwidth) -> Chip:
    return Chip(
        name=name,
        kinds=kinds,
        flops=tflops * TFLOP,
        hbm_bytes=int(hbm * GB),
        hbm_bandwidth=hbm_bandwidth * GB,
        link_bandwidth=link_bandwidth * GB,
    )


CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v4", ("TPU v4",), 275, 32, 1228, 300, (16, 16, 16)),
        _tpu("v5e", ("TPU v5 lite", "TPU v5e"), 197, 16, 819, 200, (16, 16)),
        _tpu("v5p", ("TPU v5", "TPU v5p"), 459, 95, 2765, 600, (16, 16, 24)),
        _tpu("v6e", ("TPU v6 lite", "TPU v6e"), 918, 32, 1640, 400, (16, 16)),
        # Half a chip: JAX has two devices per chip.
        _tpu("tpu7x", ("TPU7x",), 2307 / 2, 96, 7380 / 2, 600 / 2, (16, 16, 36)),
        _gpu("A100-40GB", ("NVIDIA A100-SXM4-40GB",), 312, 40, 1555, 300),
        _gpu("A100-80GB", ("NVIDIA A100-SXM4-80GB",), 312, 80, 2039, 300),
        _gpu("H100", ("NVIDIA H100 80GB HBM3",), 989.4, 80, 3350, 450),
        _gpu("H200", ("NVIDIA H200",), 989.4, 141, 4800, 450),
    )
}


def chip_of_kind(device_kind: str) -> Chip | None:
    """Look up a chip by the `device_kind` of a JAX device.

    Args:
      device_kind: value of `jax.Device.device_kind`.
    Returns:
      The chip, or None if unknown.

    Examples:
      >>> t5jax.profiling.chip_of_kind("NVIDIA H200").hbm_bandwidth / 1e9
      4800.0
    """
    return next((chip for chip in CHIPS.values() if device_kind in chip.kinds), None)


def chip_of_topology(name: str) -> Chip:
    """Look up the chip of a TPU slice.

    Args:
      name: chip and axes of the torus, such as `v5e:16x16`.
    Returns:
      The chip.
    Raises:
      ValueError: the chip or the slice does not exist.

    Examples:
      >>> t5jax.profiling.chip_of_topology("v5p:4x4x8").torus
      3
    """
    known = topologies()
    if name in known:
        return CHIPS[name.partition(":")[0]]
    kind, _, shape = name.partition(":")
    chip = CHIPS.get(kind)
    if chip is None or not chip.torus:
        tpus = [chip.name for chip in CHIPS.values() if chip.torus]
        hint = suggest(name, known, "choose one of these.", cutoff=0.6)
        raise ValueError(
            f"topology must be a TPU slice such as 'v5e:16x16', got {name!r}; chips are "
            f"{', '.join(tpus)}; {hint}"
        )
    axes = [int(part) for part in shape.split("x") if part.isdecimal()]
    fours = [
        axis % 4 == 0 and 0 < axis <= max_axis
        for axis, max_axis in zip(axes, chip.largest, strict=False)
    ]
    whole = "x".join(map(str, axes)) == shape and len(axes) == chip.torus
    if not whole or chip.torus != 3 or not all(fours):
        sizes = ", ".join(x.partition(":")[2] for x in known if x.startswith(f"{kind}:"))
        more = ", or any axes divisible by 4" if chip.torus == 3 else ""
        raise ValueError(
            f"topology must be a slice of {kind}, got {name!r}; choose from {sizes}{more}."
        )
    return chip


def topologies() -> tuple[str, ...]:
    """List common TPU slices, smallest first for each chip."""
    flat = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
    solid = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x4 8x8x8 8x8x16 8x16x16 16x16x16"
    return tuple(
        f"{chip.name}:{shape}"
        for chip in CHIPS.values()
        if chip.torus
        for shape in (flat if chip.torus == 2 else solid).split()
    )
