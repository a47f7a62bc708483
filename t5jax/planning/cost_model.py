"""What a compiled step asks of every chip: memory, operations, traffic, and time by a roofline."""

import dataclasses
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from t5jax.planning import hlo
from t5jax.planning.workload import Lowered, Workload
from t5jax.profiling import GIB, Chip

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


_AMOUNT = r"([0-9.]+)\s*([KMGT]?)i?B?"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Amounts of one device in one step; memory in bytes, time in seconds.

    Attributes:
      memory: what holds how much: parameters, optimizer or cache, and batch live on; temporaries
        are activations, gradients and gathered parameters at their worst moment.
      hbm_bytes: what there is, by the chip's data sheet; compilers keep a little for themselves.
      compiled_flops: operations of matrix products in the compiled program.
      model_flops: this device's share of those that the model itself needs.
      bytes_accessed: read from and written to memory.
      collectives: communication of each kind.
      compute_time: operations by the chip's highest rate.
      memory_time: traffic by the memory's.
      link_time: what is sent by all links together.
      compile_time: of the compiler, on this machine.
      largest: the largest arrays that the program makes, and which operation makes each.
      unknown_loops: loops that were counted as one turn, since their number is not written down.
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
        """All that the step needs of a device's memory."""
        return sum(self.memory.values())

    @property
    def times(self) -> dict[str, float]:
        return {
            "compute": self.compute_time,
            "memory": self.memory_time,
            "links": self.link_time,
        }

    @property
    def bound(self) -> str:
        """What takes longest: compute, memory or links."""
        return max(self.times, key=self.times.__getitem__)

    @property
    def step_time(self) -> float:
        """If everything else happens meanwhile: no step is faster."""
        return max(self.times.values())

    @property
    def serial_time(self) -> float:
        """If nothing happens at the same time as anything else."""
        return sum(self.times.values())


class OutOfMemory(Exception):
    """The compiler found no way to fit a step into a device's memory; sizes in bytes."""

    def __init__(self, needed: float, available: float, state: dict[str, int]):
        super().__init__(needed, available, state)
        self.needed, self.available, self.state = needed, available, state


def compile_step(lowered: Lowered, workload: Workload, *, chip: Chip, count: int) -> Estimate:
    """Compiles a step and reads what it does.

    Args:
      lowered: from `lower_step`.
      workload: of which it was made.
      chip: what it is compiled for.
      count: devices that share the work.
    Raises:
      OutOfMemory: the compiler says so.
    """
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        try:
            # As the compiler writes it down: jaxlib cannot hand over every program for a TPU.
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
                f"the compiler must write down its program, got XLA_FLAGS="
                f"{os.environ.get('XLA_FLAGS', '')!r}; leave out all xla_dump flags."
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
    """Needed and available bytes by the compiler's message, and whether arguments come on top.

    None if it is about something else.
    """
    if "CompileTimeHbmOom" not in message and "Ran out of memory" not in message:
        return None
    temporary = re.search(
        rf"temporaries \({_AMOUNT}\) exceeds available HBM \({_AMOUNT}\)", message
    )
    whole = re.search(rf"Used {_AMOUNT} of {_AMOUNT} hbm", message)
    found = temporary or whole
    if found is None:
        return None
    needed, available = (float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3))
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
    # Results that take the place of arguments count once.
    held = usage.argument_size_in_bytes + usage.output_size_in_bytes - usage.alias_size_in_bytes
    # Padding of arrays to whole tiles is among the rest.
    rest = max(held - sum(num_bytes.values()), 0)
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
        link_time=sum(one.num_bytes for one in collectives) / chip.link_bandwidth,
        compile_time=compile_time,
        largest=[
            (f"{shape.dtype}{list(shape.dims)}", int(shape.num_bytes), made)
            for shape, made in program.largest(5)
        ],
        unknown_loops=program.unknown_loops,
    )


def estimate_to_json(estimate: Estimate) -> dict[str, Any]:
    """All of it, derived amounts included."""
    return {
        **dataclasses.asdict(estimate),
        "total_bytes": estimate.total_bytes,
        "step_time": estimate.step_time,
        "serial_time": estimate.serial_time,
        "bound": estimate.bound,
    }


def estimate_lines(estimate: Estimate, *, num_tokens: int) -> list[tuple[str, str]]:
    """Names and amounts, for people; `num_tokens` are those that all devices read in a step."""
    rows = [(f"memory: {name}", format_gib(size)) for name, size in estimate.memory.items()]
    free = estimate.hbm_bytes - estimate.total_bytes
    rows.append(
        (
            "memory: total",
            f"{format_gib(estimate.total_bytes)} of {format_gib(estimate.hbm_bytes)}, "
            f"{format_gib(free)} free",
        )
    )
    for name, size, made in estimate.largest[:3]:
        rows.append(("largest array", f"{format_gib(size)}  {name}, {made:.80}"))
    ratio = estimate.compiled_flops / estimate.model_flops
    rows += [
        ("model FLOPs", f"{estimate.model_flops / 1e12:.4g} T"),
        ("compiled FLOPs", f"{estimate.compiled_flops / 1e12:.4g} T, {ratio:.2f} x the model's"),
        ("bytes accessed", format_gib(estimate.bytes_accessed)),
    ]
    for one in estimate.collectives:
        rows.append((one.kind, f"{one.count:g} times, {format_gib(one.num_bytes)} sent"))
    for name, seconds in estimate.times.items():
        rows.append((f"time: {name}", _seconds(seconds)))
    useful = estimate.compute_time / ratio / estimate.step_time
    rows += [
        (
            "time of a step",
            (
                f"{_seconds(estimate.step_time)} to {_seconds(estimate.serial_time)}, "
                f"bound by {estimate.bound}"
            ),
        ),
        ("MFU at most", f"{useful:.0%}"),
        ("tokens a second", f"at most {num_tokens / estimate.step_time:,.0f}"),
        ("compiled in", f"{estimate.compile_time:.1f} s"),
    ]
    for name in estimate.unknown_loops:
        rows.append(("warning", f"turns of loop {name} are unknown and counted as one"))
    return rows


def format_gib(size: int | float) -> str:
    """Bytes, for people."""
    return f"{size / GIB:.3g} GiB" if size >= GIB / 10 else f"{size / 2**20:.3g} MiB"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
