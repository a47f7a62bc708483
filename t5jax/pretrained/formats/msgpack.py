"""Flax's msgpack files, opened without reading their arrays.

Hugging Face's `flax_model.msgpack` and T5X's `checkpoint` are nested maps, with arrays as msgpack
extension types (https://github.com/msgpack/msgpack/blob/master/spec.md).
"""

import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from t5jax.pretrained.formats import lazy_array

# Far above any real checkpoint; they bound memory and time for damaged files.
_MAX_DEPTH = 64
_MAX_VALUES = 1 << 20
_MAX_STRING = 1 << 20
_MAX_NAME = 512
_MAX_AXES = 32
_MAX_CHUNKS = 1 << 12

# Elements of an empty array, counting axes of size 0 as 1; otherwise its sizes are unbounded.
_MAX_EMPTY = 1 << 31

# One page, since most reads only skip to the next array.
_BUFFER_BYTES = 4096

# Flax's extension types.
_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_SPEC_KEYS = {"driver", "kvstore"}

_DTYPES = {
    **{name: np.dtype(name) for name in ("bool", "int8", "int16", "int32", "int64", "float64")},
    **{name: np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64")},
    **lazy_array.DTYPES,
    # NumPy's names of bfloat16 if no library has registered that type.
    **dict.fromkeys(("V2", "void16"), lazy_array.DTYPES["bfloat16"]),
}

# First byte of a value -> its kind, and its length or, if "plain", the value itself.
_COMPLETE: dict[int, tuple[str, Any]] = {
    **{byte: ("plain", byte) for byte in range(0x80)},
    **{0x80 + size: ("map", size) for size in range(0x10)},
    **{0x90 + size: ("list", size) for size in range(0x10)},
    **{0xA0 + size: ("text", size) for size in range(0x20)},
    **{0xC0: ("plain", None), 0xC2: ("plain", False), 0xC3: ("plain", True)},
    **{0xD4 + power: ("extension", 1 << power) for power in range(5)},
    **{byte: ("plain", byte - 0x100) for byte in range(0xE0, 0x100)},
}

# First bytes followed by a number, the length or the value, in increasing widths.
_NUMBERED = {
    first + i: (kind, struct.Struct(f">{code}"))
    for first, kind, codes in (
        (0xC4, "binary", "BHI"),
        (0xC7, "extension", "BHI"),
        (0xCA, "plain", "fd"),
        (0xCC, "plain", "BHIQ"),
        (0xD0, "plain", "bhiq"),
        (0xD9, "text", "BHI"),
        (0xDC, "list", "HI"),
        (0xDE, "map", "HI"),
    )
    for i, code in enumerate(codes)
}


def open_msgpack_tree(path: Path) -> dict[str, Any]:
    """Open a Flax tree.

    Empty maps are omitted.  A map with the keys "driver" and "kvstore" is a TensorStore spec and
    treated as a leaf.

    Args:
      path: path of the file.
    Returns:
      The leaves by '/'-joined keys, in file order: arrays and NumPy scalars as `FileRegion`, specs
      as dicts, and str, int, float, bool, None, bytes and lists.
    Raises:
      ValueError: the file is missing, damaged, incomplete or not a Flax tree; the message names
        the file and the key.
    """
    try:
        # Opening anything else, such as a pipe, might block.
        if not path.is_file():
            raise ValueError(
                f"{path} must be a file; it is missing or not a file. Download it again."
            )
        with path.open("rb", buffering=_BUFFER_BYTES) as file:
            return _Reader(path, file).tree()
    except OSError as error:
        raise ValueError(f"{path} must be a readable file ({error.strerror}).") from error


class _Reader:
    """Reader that walks a file from start to end, skipping the content of arrays."""

    def __init__(self, path: Path, file: BinaryIO):
        self._path = path
        self._file = file
        self._at = 0
        self._end = os.fstat(file.fileno()).st_size  # of the file, or of the extension within it
        self._num_values = 0
        self._keys: list[str] = []

    def tree(self) -> dict[str, Any]:
        root = self._value()
        if not isinstance(root, dict):
            raise self._error("must map names to arrays; this is a different kind of file")
        if self._at != self._end:
            raise self._damage(f"is followed by {self._end - self._at} unexpected bytes")
        leaves = {}
        for name, leaf in self._leaves(root, ""):
            if name in leaves:
                raise self._damage("is duplicated", name)
            leaves[name] = leaf
        return leaves

    def _leaves(self, node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            name = prefix + key
            # A long prefix, repeated for each leaf, would take more memory than the file.
            if len(name) > _MAX_NAME:
                raise self._damage(f"has a name of more than {_MAX_NAME} characters", name)
            if isinstance(value, dict) and not value.keys() >= _SPEC_KEYS:
                yield from self._leaves(value, f"{name}/")
            else:
                yield name, value

    def _value(self) -> Any:
        self._num_values += 1
        if self._num_values > _MAX_VALUES:
            raise self._damage(f"is preceded by more than {_MAX_VALUES} values in the file")
        kind, value = self._header()
        if kind == "plain":
            return value
        if kind == "text":
            return self._text(value)
        if kind == "binary":
            return self._string(value)
        if kind == "extension":
            return self._extension(value)
        if len(self._keys) >= _MAX_DEPTH:
            raise self._damage(f"is nested deeper than {_MAX_DEPTH} levels")
        return self._map(value) if kind == "map" else self._list(value)

    def _map(self, count: int) -> Any:
        self._check_left(2 * count)
        node: dict[str, Any] = {}
        for _ in range(count):
            key = self._key()
            if key in node:
                raise self._damage(f"has the key {key!r:.60} twice")
            self._keys.append(key)
            node[key] = self._value()
            self._keys.pop()
        return self._joined(node) if _CHUNKED in node else node

    def _list(self, count: int) -> list[Any]:
        self._check_left(count)
        values = []
        for i in range(count):
            self._keys.append(str(i))
            values.append(self._value())
            self._keys.pop()
        return values

    def _key(self) -> str:
        kind, value = self._header()
        if kind in ("text", "binary"):
            return self._text(value)
        if kind != "plain" or type(value) is not int:
            raise self._damage("has a key that is not a name")
        return str(value)

    def _extension(self, size: int) -> lazy_array.FileRegion:
        """Read the shape and dtype of an array, and skip its content."""
        self._check_left(1 + size)
        code = int.from_bytes(self._take(1), "big", signed=True)
        if code == _COMPLEX:
            raise self._error("must be real, got a complex number")
        if code not in (_NDARRAY, _SCALAR):
            raise self._error(f"must be an array, got msgpack extension type {code}")
        outer, self._end = self._end, self._at + size
        if self._header() != ("list", 3):
            raise self._damage("must have a shape, a type and content")
        shape = self._shape()
        if code == _SCALAR and shape:
            raise self._damage(f"must be a scalar, got shape {shape!s:.100}")
        dtype = self._dtype()
        kind, length = self._header()
        if kind != "binary":
            raise self._damage("must have its content as bytes")
        self._check_left(length)
        region = self._region([(self._at, length)], shape, dtype)
        self._at += length
        if self._at != self._end:
            raise self._damage(f"is followed by {self._end - self._at} unexpected bytes")
        self._file.seek(self._at)
        self._end = outer
        return region

    def _shape(self) -> tuple[int, ...]:
        kind, num_axes = self._header()
        if kind != "list" or num_axes > _MAX_AXES:
            raise self._damage(f"must have a shape of at most {_MAX_AXES} axes")
        shape = []
        for _ in range(num_axes):
            kind, size = self._header()
            if kind != "plain" or not _is_size(size):
                raise self._damage("must have a shape of non-negative integers")
            shape.append(size)
        return tuple(shape)

    def _dtype(self) -> np.dtype:
        kind, length = self._header()
        if kind not in ("text", "binary"):
            raise self._damage("must name the type of its elements")
        name = self._text(length)
        if name not in _DTYPES:
            raise self._error(f"has elements of type {name!r:.40}, which is not supported")
        return _DTYPES[name]

    def _joined(self, node: dict[str, Any]) -> lazy_array.FileRegion:
        """Join the flat chunks of an array that was too large for msgpack."""
        shape, chunks = (self._numbered(node.get(key)) for key in ("shape", "chunks"))
        if len(shape) > _MAX_AXES or not all(_is_size(size) for size in shape):
            raise self._damage("must have a shape of non-negative integers")
        flat = [x for x in chunks if isinstance(x, lazy_array.FileRegion) and len(x.shape) == 1]
        dtypes = {chunk.dtype for chunk in flat}
        if len(flat) < len(chunks) or len(dtypes) != 1:
            raise self._damage("must consist of flat arrays of one type")
        segments = [segment for chunk in flat for segment in chunk.segments]
        if len(segments) > _MAX_CHUNKS:
            raise self._damage(f"must have at most {_MAX_CHUNKS} chunks, got {len(segments)}")
        return self._region(segments, tuple(shape), dtypes.pop())

    def _numbered(self, node: Any) -> list[Any]:
        """List the values of a map with the keys "0", "1", ..."""
        if not isinstance(node, dict) or node.keys() != {str(i) for i in range(len(node))}:
            raise self._damage("must have numbered sizes and chunks")
        return [node[str(i)] for i in range(len(node))]

    def _region(
        self, segments: list[tuple[int, int]], shape: tuple[int, ...], dtype: np.dtype
    ) -> lazy_array.FileRegion:
        num_bytes = sum(size for _, size in segments)
        if num_bytes != math.prod(shape) * dtype.itemsize:
            raise self._damage(
                f"must have the size of {dtype.name}{list(shape)!s:.100}, got {num_bytes} bytes"
            )
        if math.prod(size or 1 for size in shape) > _MAX_EMPTY and 0 in shape:
            raise self._damage(f"must have elements, got shape {shape!s:.100}")
        return lazy_array.FileRegion(
            file=self._path, segments=tuple(segments), shape=shape, dtype=dtype
        )

    def _header(self) -> tuple[str, Any]:
        """Read the kind of the next value, and its length or, if "plain", the value itself."""
        first = self._take(1)[0]
        if first in _COMPLETE:
            return _COMPLETE[first]
        if first not in _NUMBERED:
            raise self._damage(f"starts with byte {first:#x}, which is not valid msgpack")
        kind, number = _NUMBERED[first]
        return kind, number.unpack(self._take(number.size))[0]

    def _text(self, length: int) -> str:
        try:
            return self._string(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._damage("has text that is not UTF-8") from error

    def _string(self, length: int) -> bytes:
        self._check_left(length)
        if length > _MAX_STRING:
            raise self._error(f"must have at most {_MAX_STRING} bytes of text, got {length}")
        return self._take(length)

    def _take(self, size: int) -> bytes:
        self._check_left(size)
        content = self._file.read(size)
        if len(content) < size:
            raise self._damage("ended while it was being read")
        self._at += size
        return content

    def _check_left(self, size: int) -> None:
        if size > self._end - self._at:
            raise self._damage(f"needs {size} more bytes, but {self._end - self._at} are left")

    def _damage(self, problem: str, name: str | None = None) -> ValueError:
        return self._error(f"{problem}; the file is damaged or incomplete. Download it again", name)

    def _error(self, problem: str, name: str | None = None) -> ValueError:
        name = "/".join(self._keys) if name is None else name
        return ValueError(f"{self._path}: {f'{name!r:.200}' if name else 'its tree'} {problem}.")


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0
