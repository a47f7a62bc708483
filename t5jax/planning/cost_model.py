"""Cost model of a compiled step: memory, FLOPs, traffic, and time by a roofline.

`jax.experimental.roofline` and `Compiled.cost_analysis` (jax 0.10.2) are not enough: both count a
loop body once, hence one layer of a scanned stack; the latter reports no collectives, the former
none that the compiler inserts. `hlo` therefore reads the optimized program.
"""

import dataclasses
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from t5jax.fileio import JsonObject
from t5jax.planning import hlo
from t5jax.planning.workload import Lowered, Workload
from t5jax.profiling import GIB, Chip

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_AMOUNT = r"([0-9.]+)\s*([KMGT]?)i?B?"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimated cost of one step on one device; memory in bytes, time in seconds.

    Attributes:
      memory: bytes by purpose. Parameters, optimizer or cache, and batch persist; temporaries are
        activations, gradients and gathered parameters at their peak.
      hbm_bytes: memory of the chip according to its data sheet; compilers reserve a little of it.
      compiled_flops: FLOPs of matmuls in the compiled program.
      model_flops: FLOPs that the model itself needs, per device.
      bytes_accessed: bytes read from and written to memory.
      collectives: communication of each kind.
      compute_time: `compiled_flops` at the chip's peak rate.
      memory_time: `bytes_accessed` at the memory bandwidth.
      link_time: bytes sent at the bandwidth of all links together.
      compile_time: compilation time on this machine.
      largest: shape, bytes and producing operation of the largest arrays.
      unknown_loops: loops of unknown trip count, counted as one trip.

    Examples:
      >>> estimate = t5jax.planning.Estimate(
      ...     memory={"parameters": 60, "temporaries": 40}, hbm_bytes=1000,
      ...     compiled_flops=9.0, model_flops=6.0, bytes_accessed=30.0, collectives=[],
      ...     compute_time=1.0, memory_time=3.0, link_time=0.0, compile_time=5.0,
      ...     largest=[], unknown_loops=[],
      ... )
      >>> estimate.total_bytes, estimate.bound, estimate.step_time
      (100, 'memory', 3.0)
    """

    memory: dict[str, int]
    hbm_bytes: int
    compiled_flops: float
    model_flops: float
    bytes_accessed: float
    collectives: list[hlo.Collective]
    compute_time: float
    memory_time: float
    link_time: float
    compile_time: float
    largest: list[tuple[str, int, str]]
    unknown_loops: list[str]

    @property
    def total_bytes(self) -> int:
        """Memory of the step per device."""
        return sum(self.memory.values())

    @property
    def times(self) -> dict[str, float]:
        """Time of each resource, by name."""
        return {
            "compute": self.compute_time,
            "memory": self.memory_time,
            "links": self.link_time,
        }

    @property
    def bound(self) -> str:
        """Name of the resource that takes longest: compute, memory or links."""
        return max(self.times, key=self.times.__getitem__)

    @property
    def step_time(self) -> float:
        """Lower bound of the step time: everything overlaps with the longest."""
        return max(self.times.values())

    @property
    def serial_time(self) -> float:
        """Step time if nothing overlaps."""
        return sum(self.times.values())


class OutOfMemory(Exception):
    """Compiler error: a step does not fit into the memory of a device.

    Attributes:
      needed: bytes that the step needs.
      available: bytes that the device has.
      state: bytes that persist between steps, by purpose.
    """

    def __init__(self, needed: float, available: float, state: dict[str, int]):
        super().__init__(needed, available, state)
        self.needed, self.available, self.state = needed, available, state


def compile_step(lowered: Lowered, workload: Workload, *, chip: Chip, count: int) -> Estimate:
    """Compile a step and estimate its cost.

    Args:
      lowered: from `lower_step`.
      workload: the step that was lowered.
      chip: hardware to compile for.
      count: number of devices that share the work.
    Returns:
      The estimate for one device.
    Raises:
      OutOfMemory: the step does not fit, according to the compiler.
      ValueError: the compiler did not dump its program.
    """
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        try:
            # Read from a dump, because jaxlib cannot return the text of every TPU program.
            compiled = lowered.program.compile(
                compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
            )
        except jax.errors.JaxRuntimeError as error:
            sizes = out_of_memory_sizes(str(error))
            if sizes is None:
                raise
            needed, available, is_temporary = sizes
            state = sum(lowered.num_bytes.values()) if is_temporary else 0
            raise OutOfMemory(needed + state, available, lowered.num_bytes) from error
        compile_time = time.perf_counter() - start
        texts = [f.read_text("utf-8") for f in Path(folder).glob("*after_optimizations.txt")]
        if not texts:
            raise ValueError(
                f"the compiler must dump its program, got XLA_FLAGS="
                f"{os.environ.get('XLA_FLAGS', '')!r}; remove all xla_dump flags."
            )
        program = hlo.parse_hlo(max(texts, key=len))
    return _estimate(
        compiled.memory_analysis(),
        program,
        lowered.num_bytes,
        workload,
        chip=chip,
        count=count,
        compile_time=compile_time,
    )


def out_of_memory_sizes(message: str) -> tuple[float, float, bool] | None:
    """Parse the sizes in an out-of-memory error of the compiler.

    Args:
      message: text of an XLA error.
    Returns:
      Needed bytes, available bytes, and True if the program's arguments are not included; None for
      other errors.
    """
    if "CompileTimeHbmOom" not in message and "Ran out of memory" not in message:
        return None
    temporary = re.search(
        rf"temporaries \({_AMOUNT}\) exceeds available HBM \({_AMOUNT}\)", message
    )
    whole = re.search(rf"Used {_AMOUNT} of {_AMOUNT} hbm", message)
    sizes = temporary or whole
    if sizes is None:
        return None
    needed, available = (float(sizes[i]) * _UNITS[sizes[i + 1]] for i in (1, 3))
    return needed, available, temporary is not None


def _estimate(
    usage: Any,
    program: hlo.Program,
    num_bytes: dict[str, int],
    workload: Workload,
    *,
    chip: Chip,
    count: int,
    compile_time: float,
) -> Estimate:
    # Results that alias arguments count once.
    persistent = (
        usage.argument_size_in_bytes + usage.output_size_in_bytes - usage.alias_size_in_bytes
    )
    # The rest includes the padding of arrays to full tiles.
    rest = max(persistent - sum(num_bytes.values()), 0)
    collectives = program.collectives()
    num_flops, traffic = program.flops(), program.bytes_accessed()
    return Estimate(
        memory={
            **num_bytes,
            "batch and results": rest,
            "temporaries": usage.temp_size_in_bytes,
            "program": usage.generated_code_size_in_bytes,
        },
        hbm_bytes=chip.hbm_bytes,
        compiled_flops=num_flops,
        model_flops=workload.flops() / count,
        bytes_accessed=traffic,
        collectives=collectives,
        compute_time=num_flops / chip.flops,
        memory_time=traffic / chip.hbm_bandwidth,
        link_time=sum(collective.num_bytes for collective in collectives) / chip.link_bandwidth,
        compile_time=compile_time,
        largest=[
            (f"{shape.dtype}{list(shape.dims)}", int(shape.num_bytes), producer)
            for shape, producer in program.largest(5)
        ],
        unknown_loops=program.unknown_loops,
    )


def estimate_to_json(estimate: Estimate) -> JsonObject:
    """Convert an estimate to a JSON object, including derived amounts."""
    return {
        **dataclasses.asdict(estimate),
        "total_bytes": estimate.total_bytes,
        "step_time": estimate.step_time,
        "serial_time": estimate.serial_time,
        "bound": estimate.bound,
    }


def estimate_lines(estimate: Estimate, *, num_tokens: int) -> list[tuple[str, str]]:
    """Format an estimate as rows of names and amounts.

    Args:
      estimate: estimate for one device.
      num_tokens: number of tokens per step over all devices.
    Returns:
      Pairs of a name and a formatted amount.
    """
    rows = [(f"memory: {name}", format_gib(size)) for name, size in estimate.memory.items()]
    free = estimate.hbm_bytes - estimate.total_bytes
    rows.append(
        (
            "memory: total",
            (
                f"{format_gib(estimate.total_bytes)} of {format_gib(estimate.hbm_bytes)}, "
                f"{format_gib(free)} free"
            ),
        )
    )
    for name, size, producer in estimate.largest[:3]:
        rows.append(("largest array", f"{format_gib(size)}  {name}, {producer:.80}"))
    ratio = estimate.compiled_flops / estimate.model_flops
    rows += [
        ("model FLOPs", f"{estimate.model_flops / 1e12:.4g} T"),
        ("compiled FLOPs", f"{estimate.compiled_flops / 1e12:.4g} T, {ratio:.2f}x model FLOPs"),
        ("bytes accessed", format_gib(estimate.bytes_accessed)),
    ]
    for collective in estimate.collectives:
        sent = format_gib(collective.num_bytes)
        rows.append((collective.kind, f"{collective.count:g} calls, {sent} sent"))
    for name, seconds in estimate.times.items():
        rows.append((f"time: {name}", _seconds(seconds)))
    useful = estimate.compute_time / ratio / estimate.step_time
    rows += [
        (
            "step time",
            (
                f"{_seconds(estimate.step_time)} to {_seconds(estimate.serial_time)}, "
                f"bound by {estimate.bound}"
            ),
        ),
        ("MFU at most", f"{useful:.0%}"),
        ("tokens/s", f"at most {num_tokens / estimate.step_time:,.0f}"),
        ("compile time", f"{estimate.compile_time:.1f} s"),
    ]
    for name in estimate.unknown_loops:
        rows.append(("warning", f"unknown trip count of loop {name}, counted as one"))
    return rows


def format_gib(size: int | float) -> str:
    """Format bytes as GiB or MiB."""
    return f"{size / GIB:.3g} GiB" if size >= GIB / 10 else f"{size / 2**20:.3g} MiB"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
