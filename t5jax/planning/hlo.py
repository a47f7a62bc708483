"""FLOPs, memory traffic and communication of a compiled program, read from its optimized HLO.

XLA's own `cost_analysis` counts a loop body once; here everything counts as often as it runs. All
amounts are per device.
"""

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterator

_BYTES = {"pred": 1, "c64": 8, "c128": 16, "token": 0, "bf16": 2, "tf32": 4}
_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Opcodes that neither read nor write memory themselves.
_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call"),
    *("conditional", "after-all", "partition-id", "replica-id", "opt-barrier", "domain"),
    "add-dependency",
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Dtype and dimensions of an array, and whether it is in HBM."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool

    @property
    def num_bytes(self) -> int | float:
        """Size of the array in bytes, fractional for 4-bit dtypes."""
        if self.dtype in _BYTES:
            return _BYTES[self.dtype] * math.prod(self.dims)
        bits = re.match(r"[a-z]+([0-9]+)", self.dtype)
        return int(bits[1]) / 8 * math.prod(self.dims) if bits else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program: `name = shapes opcode(arguments), attributes`.

    Attributes:
      arguments: text between the parentheses: the operands, or the value of a constant.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    is_root: bool

    @property
    def called(self) -> list[str]:
        """Names of the computations that it runs once each, such as the body of a loop."""
        names = _CALLED.findall(self.attributes)
        branches = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        return names + (re.findall(r"[\w.\-]+", branches[1]) if branches else [])


@dataclasses.dataclass(frozen=True)
class Collective:
    """All communication of one kind in a program.

    Attributes:
      kind: HLO opcode, such as "all-gather".
      count: number of executions.
      num_bytes: bytes that one device sends in total, with ring algorithms.
    """

    kind: str
    count: float
    num_bytes: float


@dataclasses.dataclass(frozen=True)
class Program:
    """Parsed program.

    Attributes:
      computations: computations by name, each a mapping from names to instructions.
      entry: name of the computation that runs first.
      unknown_loops: loops of unknown trip count, counted as one trip.
    """

    computations: dict[str, dict[str, Instruction]]
    entry: str
    unknown_loops: list[str]

    @functools.cached_property
    def executions(self) -> dict[str, float]:
        """Number of executions of each computation, by name."""
        counts: dict[str, float] = defaultdict(float)
        self._count(self.entry, 1.0, counts)
        return counts

    def _count(self, computation: str, times: float, counts: dict[str, float]) -> None:
        counts[computation] += times
        for line in self.computations[computation].values():
            if line.opcode == "while":
                trips = self._trip_count(line, computation)
                self._count(line.called[0], times * trips, counts)
            elif line.opcode in ("fusion", "call", "conditional", "async-start"):
                for called in line.called:
                    self._count(called, times, counts)

    def flops(self) -> float:
        """Return the FLOPs of matmuls and convolutions, and those that custom kernels declare."""
        total = 0.0
        for line, scope, times in self._lines():
            if line.opcode == "dot":
                total += times * _dot_flops(line, scope)
            elif line.opcode == "convolution":
                total += times * _convolution_flops(line, scope)
            elif line.opcode == "custom-call":
                cost = re.search(
                    r'cost_estimate\\?":\s*\{[^}]*?flops\\?":\s*\\?"?(\d+)', line.attributes
                )
                total += times * (float(cost[1]) if cost else 0.0)
        return total

    def bytes_accessed(self) -> int | float:
        """Return the number of bytes read from and written to main memory."""
        fused = {
            name
            for scope in self.computations.values()
            for line in scope.values()
            if line.opcode == "fusion"
            for name in line.called
        }
        total = 0.0
        for name, times in self.executions.items():
            scope = self.computations[name]
            if name not in fused:
                total += times * sum(self._traffic(line, scope) for line in scope.values())
        return total

    def collectives(self) -> list[Collective]:
        """Return all communication by kind, largest first."""
        counts: dict[str, float] = defaultdict(float)
        sent: dict[str, float] = defaultdict(float)
        for name, times in self.executions.items():
            scope = self.computations[name]
            for line in scope.values():
                kind = line.opcode.removesuffix("-start")
                if kind not in _COLLECTIVES or not _starts(line, scope):
                    continue
                if name.startswith("all-reduce-scatter"):
                    kind = "reduce-scatter"  # its form on TPU
                num_bytes = _sent(kind, line, scope)
                if num_bytes:
                    counts[kind] += times
                    sent[kind] += times * num_bytes
        return [
            Collective(kind, counts[kind], amount)
            for kind, amount in sorted(sent.items(), key=lambda item: -item[1])
        ]

    def largest(self, count: int) -> list[tuple[Shape, str]]:
        """Return the largest arrays in main memory, each with the operation that produces it."""
        producers: dict[Shape, str] = {}
        for line, _, _ in self._lines():
            if line.opcode in _FREE or line.opcode.endswith("-done"):
                continue
            for shape in line.shapes:
                op_name = re.search(r'op_name="([^"]*)"', line.attributes)
                if shape.in_hbm:
                    producers.setdefault(shape, op_name[1] if op_name else line.opcode)
        return sorted(producers.items(), key=lambda item: -item[0].num_bytes)[:count]

    def _lines(self) -> Iterator[tuple[Instruction, dict[str, Instruction], float]]:
        for name, times in self.executions.items():
            scope = self.computations[name]
            for line in scope.values():
                yield line, scope, times

    def _trip_count(self, loop: Instruction, computation: str) -> int:
        """Return the trip count of a loop, from XLA's annotation or from its condition."""
        known = re.search(r'known_trip_count\\?":\{\\?"n\\?":\\?"(\d+)', loop.attributes)
        if known:
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        limits = list(self._limits(condition[1])) if condition else []
        if condition is None or len(limits) != 1:
            self.unknown_loops.append(f"{computation}/{loop.name}")
            return 1
        return -(-limits[0] // self._stride(condition[1], loop.called[0]))

    def _stride(self, condition: str, body: str) -> int:
        """Return the increment of a loop's counter, 2 if the compiler unrolled the loop by two.

        The TPU compiler does so to overlap matmuls with the communication of their factors, and
        does not annotate the trip count.
        """
        indices = [
            index[1]
            for line in self.computations[condition].values()
            if line.opcode == "get-tuple-element" and line.shapes[0].dims == ()
            if (index := re.search(r"index=(\d+)", line.attributes))
        ]
        scope = self.computations[body]
        root = next(line for line in scope.values() if line.is_root)
        if len(indices) != 1 or root.opcode != "tuple":
            return 1
        counter = scope[root.operands[int(indices[0])]]
        steps = [scope[name] for name in counter.operands if scope[name].opcode == "constant"]
        if counter.opcode != "add" or len(steps) != 1 or not steps[0].arguments.isdecimal():
            return 1
        return max(int(steps[0].arguments), 1)

    def _limits(self, condition: str) -> Iterator[int]:
        """Yield the integers that a loop's counter is compared to; JAX's loops count from 0."""
        for line in self.computations[condition].values():
            if line.opcode == "constant" and line.shapes[0].dtype in ("s32", "u32", "s64"):
                yield int(line.arguments)
            for called in line.called if line.opcode == "fusion" else ():
                yield from self._limits(called)

    def _traffic(self, line: Instruction, scope: dict[str, Instruction]) -> int | float:
        """Return the bytes that an instruction reads from and writes to main memory."""
        if line.opcode in _FREE or line.opcode.endswith(("-done", "-update")):
            return 0.0
        if line.opcode in ("dynamic-slice", "slice-start", "slice", "gather"):
            # Reads only what it returns.
            return 2 * min((s.num_bytes for s in line.shapes), default=0.0)
        inner = self.computations[line.called[0]] if line.opcode == "fusion" else None
        total = 0.0
        for position, name in enumerate(line.operands):
            operand = scope.get(name)
            if operand is None or len(operand.shapes) != 1 or not operand.shapes[0].in_hbm:
                continue
            whole = operand.shapes[0].num_bytes
            total += whole if inner is None else min(whole, _bytes_read(inner, position, whole))
        written = [shape.num_bytes for shape in line.shapes if shape.in_hbm]
        if line.opcode == "copy-start":
            written = written[:1] if line.shapes[0].in_hbm else []
        root = next((x for x in inner.values() if x.is_root), None) if inner else line
        if inner is not None and root is not None and root.opcode == "dynamic-update-slice":
            return total + _bytes_updated(root, inner)
        if line.opcode == "dynamic-update-slice":
            return 2 * _bytes_updated(line, scope)
        return total + sum(written)


def parse_hlo(text: str) -> Program:
    """Parse the text of an optimized program.

    Args:
      text: output of `jax.stages.Compiled.as_text`, or a file that `xla_dump_to` wrote.
    Returns:
      The program.
    Raises:
      ValueError: the text has no ENTRY computation.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, lines = "", {}
    for row in text.splitlines():
        opening = _COMPUTATION.match(row)
        if opening:
            lines = computations.setdefault(opening[2], {})
            entry = opening[2] if opening[1] else entry
        elif row.startswith("  "):
            line = _instruction(row.strip())
            if line is not None:
                lines[line.name] = line
    if not entry:
        raise ValueError(
            f"text must have an ENTRY computation, got {text[:60]!r}; pass the optimized HLO."
        )
    return Program(computations, entry, [])


def _instruction(row: str) -> Instruction | None:
    name, equals, rest = row.removeprefix("ROOT ").partition(" = ")
    if not equals:
        return None
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shapes, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    end = _closing(rest, opening)
    arguments = rest[opening + 1 : end]
    return Instruction(
        name.lstrip("%"),
        rest[:opening],
        tuple(_shape(*groups) for groups in _SHAPE.findall(shapes)),
        tuple(re.findall(r"%([\w.\-]+)", arguments)),
        arguments,
        rest[end + 1 :],
        row.startswith("ROOT "),
    )


def _closing(text: str, opening: int) -> int:
    depth = 0
    for i in range(opening, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(
        f"HLO must have balanced parentheses, got {text[:60]!r}; pass the whole optimized HLO."
    )


def _shape(dtype: str, dims: str, layout: str) -> Shape:
    # TPU layouts mark a memory space other than HBM, such as S(1).
    return Shape(dtype, tuple(map(int, dims.split(","))) if dims else (), "S(" not in layout)


def _dot_flops(line: Instruction, scope: dict[str, Instruction]) -> int | float:
    left = scope[line.operands[0]].shapes[0].dims
    axes = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", line.attributes)
    summed = [left[int(axis)] for axis in axes[1].split(",") if axis] if axes else []
    return 2.0 * math.prod(line.shapes[0].dims) * math.prod(summed)


def _convolution_flops(line: Instruction, scope: dict[str, Instruction]) -> int | float:
    """Return the FLOPs as XLA counts them: without those on padding or dilation holes."""
    left, right = (scope[name].shapes[0].dims for name in line.operands[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.attributes)
    window = re.search(r"window=\{([^}]*)\}", line.attributes)
    options = dict(x.split("=") for x in window[1].split()) if window else {}
    assert labels is not None
    lhs, rhs, out = labels.groups()
    pairs = 1
    for axis in sorted(c for c in lhs if c.isdigit()):
        size, kernel = left[lhs.index(axis)], right[rhs.index(axis)]
        outputs = line.shapes[0].dims[out.index(axis)]
        numbers = {key: value.split("x")[int(axis)] for key, value in options.items()}
        low = int(numbers.get("pad", "0_0").split("_")[0])
        stride = int(numbers.get("stride", 1))
        lhs_dilate, rhs_dilate = (int(numbers.get(f"{x}_dilate", 1)) for x in ("lhs", "rhs"))
        valid = 0
        for k in range(kernel):
            first = k * rhs_dilate - low
            for position in range(first, first + outputs * stride, stride):
                valid += position % lhs_dilate == 0 and 0 <= position // lhs_dilate < size
        pairs *= valid
    groups = re.search(r"batch_group_count=(\d+)", line.attributes)
    batch = left[lhs.index("b")] // (int(groups[1]) if groups else 1)
    return 2.0 * pairs * batch * right[rhs.index("i")] * right[rhs.index("o")]


def _starts(line: Instruction, scope: dict[str, Instruction]) -> bool:
    """Return True if a collective starts here: TPUs fuse one with a chain of matmuls."""
    if "chain_id=" not in line.attributes:
        return True
    return any(
        line.name in user.operands and "AsyncCollectiveStart" in user.attributes
        for user in scope.values()
    )


def _sent(kind: str, line: Instruction, scope: dict[str, Instruction]) -> int | float:
    """Return the bytes that each device of a group sends in one collective, with a ring."""
    sizes = [sum(s.num_bytes for s in scope[name].shapes) for name in line.operands]
    group_size = _group_size(line.attributes)
    if kind == "all-gather":
        return sum(sizes) * (group_size - 1)
    if kind in ("collective-permute", "collective-broadcast"):
        return sizes[0]
    return (2 if kind == "all-reduce" else 1) * sum(sizes) * (group_size - 1) / group_size


def _group_size(attributes: str) -> int:
    """Return the number of devices in each group of a collective."""
    listed = re.search(r"replica_groups=\{\{([0-9, ]*)\}", attributes)
    if listed:
        return len(listed[1].split(","))
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", attributes)
    if iota:
        return int(iota[1])
    mesh = re.search(r"replica_groups=@?mesh\w*\[([^\]]*)\][^{]*\{([^}]*)\}", attributes)
    if mesh:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    partitions = re.search(r"num_partitions=(\d+)", attributes)
    return int(partitions[1]) if partitions else 2


def _bytes_read(inner: dict[str, Instruction], position: int, whole: int | float) -> int | float:
    """Return the bytes that a fusion reads of an operand, such as one layer of a stack."""
    parameter = next(
        (
            x.name
            for x in inner.values()
            if x.opcode == "parameter" and x.arguments == str(position)
        ),
        None,
    )
    users = [x for x in inner.values() if parameter in x.operands]
    total = 0.0
    for user in users:
        if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == parameter:
            total += user.shapes[0].num_bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == parameter:
            pass  # written in place
        else:
            return whole
    return total


def _bytes_updated(line: Instruction, scope: dict[str, Instruction]) -> int | float:
    return scope[line.operands[1]].shapes[0].num_bytes
