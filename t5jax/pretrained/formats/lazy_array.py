"""Lazy arrays, with known shape and dtype, whose values are read block by block.

The `open_` function of a format returns its arrays by name; values are read only while iterating
over `blocks`, one block in memory at a time.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import ml_dtypes
import numpy as np

Index = tuple[slice, ...]
"""One slice per axis, with start and stop and without step."""

# Types that convert to float32 exactly.
DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}

# Block size; fits a CPU cache, so that a block is still cached when it is converted.
BLOCK_BYTES = 1 << 20


@runtime_checkable
class LazyArray(Protocol):
    """Array in a file.

    Attributes:
      file: file name for messages.
      shape: shape of the array.
      dtype: dtype of the array.
    """

    @property
    def file(self) -> Path: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...

    def blocks(self, index: Index) -> Iterator[tuple[Index, np.ndarray]]:
        """Yield the elements at an index in blocks, as (index of the block, values).

        The next block may overwrite the values.

        Raises:
          ValueError: the file is damaged; the message names it.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileRegion:
    """Array stored uncompressed in a file, in row-major order.

    Attributes:
      file: file that stores the array.
      segments: offset and number of bytes of each part, usually one.
      shape: shape of the array.
      dtype: dtype of the array, little-endian.
      transposed: whether the array is stored in column-major order instead.
    """

    file: Path
    segments: tuple[tuple[int, int], ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    transposed: bool = False

    def __post_init__(self):
        num_bytes = sum(size for _, size in self.segments)
        if num_bytes != math.prod(self.shape) * self.dtype.itemsize:
            raise ValueError(
                f"{self.file}: an array of {self.dtype.name}{list(self.shape)} must have "
                f"{math.prod(self.shape) * self.dtype.itemsize} bytes, got {num_bytes}."
            )

    def blocks(self, index: Index) -> Iterator[tuple[Index, np.ndarray]]:
        """Yield the elements at an index; see `LazyArray`."""
        if self.transposed:
            straight = dataclasses.replace(self, shape=self.shape[::-1], transposed=False)
            for where, values in straight.blocks(index[::-1]):
                yield where[::-1], values.T
            return
        if not self.shape:
            yield (), self._rows(0, 1, bytearray(self.dtype.itemsize)).reshape(())
            return
        if 0 in self.shape:
            return
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        step = max(1, BLOCK_BYTES // max(row_bytes, 1))
        first, *rest = index
        buffer = bytearray(min(step, max(first.stop - first.start, 0)) * row_bytes)
        for start in range(first.start, first.stop, step):
            stop = min(start + step, first.stop)
            values = self._rows(start, stop, buffer)[(slice(None), *rest)]
            yield (slice(start, stop), *rest), values

    def _rows(self, start: int, stop: int, buffer: bytearray) -> np.ndarray:
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        wanted = memoryview(buffer)[: (stop - start) * row_bytes]
        position, filled = start * row_bytes, 0
        try:
            file = self.file.open("rb", buffering=0)
        except FileNotFoundError as error:
            raise ValueError(
                f"{self.file} is missing and contains some of the arrays; download it too."
            ) from error
        with file:
            for offset, size in self.segments:
                inside = min(size - position, len(wanted) - filled)
                if inside > 0:
                    _read_into(file, offset + position, wanted[filled : filled + inside])
                    filled += inside
                position = max(position - size, 0)
        values = np.frombuffer(wanted, self.dtype)
        return values.reshape(stop - start, *self.shape[1:]) if self.shape else values


@dataclasses.dataclass(frozen=True, eq=False)
class InMemoryArray:
    """Array in memory."""

    file: Path
    values: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    def blocks(self, index: Index) -> Iterator[tuple[Index, np.ndarray]]:
        """Yield the elements at an index as one block."""
        yield index, self.values[index]


@dataclasses.dataclass(frozen=True)
class MergedAxesArray:
    """Array with two of its axes merged.

    Attributes:
      array: array with separate axes.
      outer: axis that the merged one replaces.
      inner: the other, faster-varying axis.
    """

    array: LazyArray
    outer: int
    inner: int

    @property
    def file(self) -> Path:
        return self.array.file

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.array.shape)
        inner = shape.pop(self.inner)
        shape[self.outer] *= inner
        return tuple(shape)

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def blocks(self, index: Index) -> Iterator[tuple[Index, np.ndarray]]:
        """Yield the elements at an index; see `LazyArray`."""
        if 0 in self.array.shape:
            return
        size = self.array.shape[self.inner]
        wanted = index[self.outer]
        inside = list(index)
        inside[self.outer] = slice(wanted.start // size, -(-wanted.stop // size))
        inside.insert(self.inner, slice(0, size))
        for where, values in self.array.blocks(tuple(inside)):
            values = np.moveaxis(values, self.inner, self.outer + 1)
            heads, features = where[self.outer], where[self.inner]
            # Heads are adjacent on the merged axis only if a block has all features.
            together = len(range(size)[features]) == size
            step = max(1, heads.stop - heads.start) if together else 1
            for head in range(heads.start, heads.stop, step):
                part = [slice(None)] * values.ndim
                part[self.outer] = slice(head - heads.start, head - heads.start + step)
                start = head * size + features.start
                stop = (head + step - 1) * size + features.stop
                overlap = slice(max(start, wanted.start), min(stop, wanted.stop))
                if overlap.start >= overlap.stop:
                    continue
                shape = list(values.shape)
                shape[self.outer : self.outer + 2] = [stop - start]
                merged = values[tuple(part)].reshape(shape)
                part.pop()
                part[self.outer] = slice(overlap.start - start, overlap.stop - start)
                position = [*where]
                position.pop(self.inner)
                position[self.outer] = overlap
                yield tuple(position), merged[tuple(part)]


def _read_into(file, offset: int, buffer: memoryview) -> None:
    file.seek(offset)
    while len(buffer):
        count = file.readinto(buffer)
        if not count:
            raise ValueError(
                f"{file.name} ends within its data at byte {file.seek(0, 2)}; it is incomplete. "
                "Download or copy it again."
            )
        buffer = buffer[count:]


def full_index(shape: Sequence[int]) -> Index:
    """Return the index of all elements."""
    return tuple(slice(0, size) for size in shape)


def relative_index(index: Index, outer: Index) -> Index:
    """Return `index` relative to the elements that `outer` selects."""
    pairs = zip(index, outer, strict=True)
    return tuple(slice(i.start - o.start, i.stop - o.start) for i, o in pairs)


def read_array(array: LazyArray) -> np.ndarray:
    """Read an array into memory."""
    values = np.empty(array.shape, array.dtype)
    for where, block in array.blocks(full_index(array.shape)):
        values[where] = block
    return values


def arrays_equal(one: LazyArray, other: LazyArray) -> bool:
    """Return whether two arrays are equal bit for bit."""
    if one == other:
        return True
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    for where, values in one.blocks(full_index(one.shape)):
        for inner, others in other.blocks(where):
            if values[relative_index(inner, where)].tobytes() != others.tobytes():
                return False
    return True
