"""TensorFlow checkpoints, opened without TensorFlow.

A bundle consists of `<prefix>.index` and `<prefix>.data-00000-of-0000N`.  The index is a sorted
table in LevelDB's format, from names to protocol buffers; the data are little-endian numbers.
"""

import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from t5jax.pretrained.formats import lazy_array
from t5jax.pretrained.formats.snappy import decompress_snappy, snappy_length

# Limit for the index, its uncompressed blocks and all names; T5 11B needs 0.1 MB.
_MAX_BYTES = 8 << 20
_MAX_SIZE = 1 << 31  # of an axis
_MAX_RANK = 32
_FOOTER_BYTES = 48
_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_TRAILER_BYTES = 5
_PLAIN, _SNAPPY = 0, 1

# Wire types of protocol buffers.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# TensorFlow's numbers of the supported dtypes.
_DTYPES = {
    1: np.dtype(np.float32),
    2: np.dtype(np.float64),
    3: np.dtype(np.int32),
    4: np.dtype(np.uint8),
    6: np.dtype(np.int8),
    9: np.dtype(np.int64),
    10: np.dtype(np.bool_),
    14: np.dtype(ml_dtypes.bfloat16),
    19: np.dtype(np.float16),
}


class _Damaged(Exception):
    """Damage of the index; the message lacks its subject, which callers prepend."""


def open_tf_bundle(prefix: Path) -> dict[str, lazy_array.LazyArray]:
    """Open the tensors of a checkpoint.

    Args:
      prefix: prefix of the files, such as `folder/model.ckpt-1000`.  Data files may be missing as
        long as no tensor in them is read.
    Returns:
      All numeric tensors, by name; strings and other types are omitted.
    Raises:
      ValueError: the index is missing, damaged or unsupported, or a data file is too short; the
        message names the file and, if known, the tensor.
    """
    index = prefix.with_name(f"{prefix.name}.index")
    if not index.is_file():
        raise ValueError(f"{index} is missing; it lists the tensors of the checkpoint.")
    with index.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    try:
        entries = _Table(content).entries()
        key, value = next(entries, (None, b""))
        if key != b"":
            raise _Damaged("has no header, so it is not a TensorFlow checkpoint")
        shards = _Shards(prefix, _num_shards(value))
        tensors: dict[str, lazy_array.LazyArray] = {}
        for key, value in entries:
            # Slices of a partitioned variable, which also has a regular entry.
            if key.startswith(b"\0"):
                continue
            quoted = repr(key)[1:100]
            try:
                name = key.decode("utf-8")
                tensor = _tensor(value, shards)
            except UnicodeDecodeError as error:
                raise _Damaged(f"has a tensor {quoted} whose name is not UTF-8") from error
            except _Damaged as error:
                raise _Damaged(f"has a tensor {quoted} that {error}") from error
            if tensor is not None:
                tensors[name] = tensor
    except _Damaged as error:
        raise ValueError(f"{index} {error}.") from error
    return tensors


def newest_prefix(folder: Path) -> Path | None:
    """Find the checkpoint that TensorFlow would resume from.

    Args:
      folder: folder of checkpoints of one model at different steps.
    Returns:
      The prefix in the text file `checkpoint` if it exists, otherwise the prefix with the highest
      step; None if there is no checkpoint.
    """
    indexes = [path for path in folder.glob("[!.]*.index") if path.is_file()]
    names = [path.name.removesuffix(".index") for path in indexes]
    state = folder / "checkpoint"
    if state.is_file():
        with state.open("rb") as file:
            text = file.read(1 << 20).decode("utf-8", errors="replace")
        match = re.search(r'^\s*model_checkpoint_path\s*:\s*"([^"\n]*)"', text, re.MULTILINE)
        name = match[1] if match else ""
        # An absolute path names the folder it was written to, which has usually moved.
        if name.startswith("/") or "://" in name:
            name = name.rpartition("/")[2]
        if name in names:
            return folder / name
    if not names:
        return None
    return folder / max(names, key=lambda name: (_step(name), name))


def _step(name: str) -> int:
    match = re.search(r"-([0-9]+)$", name)
    return int(match[1]) if match else -1


class _Shards:
    """Data files of a bundle."""

    def __init__(self, prefix: Path, count: int):
        self._prefix = prefix
        self._count = count
        self._sizes: dict[Path, int | None] = {}

    def region(
        self, shard: int, segment: tuple[int, int], shape: tuple[int, ...], dtype: np.dtype
    ) -> lazy_array.FileRegion:
        if shard >= self._count:
            raise _Damaged(f"must be in one of {self._count} data files, got number {shard}")
        name = f"{self._prefix.name}.data-{shard:05d}-of-{self._count:05d}"
        file = self._prefix.with_name(name)
        if file not in self._sizes:
            self._sizes[file] = _file_size(file)
        size = self._sizes[file]
        if sum(segment) > (2**63 - 1 if size is None else size):
            raise _Damaged(
                f"ends at byte {sum(segment)} of {name}, which has {size}; that file is incomplete "
                "or from another checkpoint; download both again"
            )
        return lazy_array.FileRegion(file=file, segments=(segment,), shape=shape, dtype=dtype)


def _file_size(file: Path) -> int | None:
    if file.is_file():
        return file.stat().st_size
    if file.exists():
        raise _Damaged(f"is in {file.name}, which must be a file")
    return None


def _num_shards(header: bytes) -> int:
    """Check the header and return the number of data files."""
    fields = _message(header, {1: _VARINT, 2: _VARINT, 3: _BYTES})
    num_shards, endianness = _last(fields, 1, 0), _last(fields, 2, 0)
    if not 1 <= num_shards < 2**31:
        raise _Damaged(f"must have at least 1 data file, got {num_shards}")
    if endianness != 0:
        raise _Damaged("is for big-endian data; save it again on a little-endian machine")
    version = _message(_last(fields, 3, b""), {2: _VARINT})
    if _last(version, 2, 0) > 1:
        raise _Damaged(
            f"must be readable by format version 1, got minimum version {_last(version, 2, 0)}"
        )
    return num_shards


def _tensor(value: bytes, shards: _Shards) -> lazy_array.FileRegion | None:
    """Parse one entry; return None for unsupported dtypes, such as strings."""
    wires = {1: _VARINT, 2: _BYTES, 3: _VARINT, 4: _VARINT, 5: _VARINT, 6: _FIXED32, 7: _BYTES}
    fields = _message(value, wires)
    if 7 in fields:
        raise _Damaged("is a partitioned variable, which is not supported; save it as one tensor")
    dtype = _DTYPES.get(_last(fields, 1, 0))
    if dtype is None:
        return None
    shape = _shape(_last(fields, 2, b""))
    size = _last(fields, 5, 0)
    if size != math.prod(shape) * dtype.itemsize:
        raise _Damaged(
            f"must have {math.prod(shape) * dtype.itemsize} bytes for {dtype.name} of shape "
            f"{shape}, got {size}; download it again"
        )
    return shards.region(_last(fields, 3, 0), (_last(fields, 4, 0), size), shape, dtype)


def _shape(value: bytes) -> tuple[int, ...]:
    fields = _message(value, {2: _BYTES, 3: _VARINT})
    dims = fields.get(2, [])
    if _last(fields, 3, 0) or len(dims) > _MAX_RANK:
        raise _Damaged(f"must have a shape of at most {_MAX_RANK} axes; download it again")
    shape = tuple(_last(_message(dim, {1: _VARINT}), 1, 0) for dim in dims)
    if any(size >= _MAX_SIZE for size in shape):
        raise _Damaged(f"must have axes shorter than {_MAX_SIZE}, got {max(shape)}")
    return shape


def _message(data: bytes, wires: Mapping[int, int]) -> dict[int, list]:
    """Parse a protocol buffer message; integers are unsigned.

    Args:
      data: encoded message.
      wires: wire type of each field to return.
    Returns:
      The values of each field.
    """
    fields: dict[int, list] = {}
    cursor = _Cursor(data)
    while not cursor.at_end():
        tag = cursor.varint()
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value = cursor.varint()
        elif wire == _BYTES:
            value = cursor.take(cursor.varint())
        elif wire in (_FIXED32, _FIXED64):
            value = cursor.take(4 if wire == _FIXED32 else 8)
        else:
            raise _Damaged(f"has a field of unknown type {wire}; download it again")
        if number in wires:
            if wire != wires[number]:
                raise _Damaged(f"has a field {number} of wrong type {wire}; download it again")
            fields.setdefault(number, []).append(value)
    return fields


def _last(fields: Mapping[int, list], number: int, default):
    return fields.get(number, [default])[-1]


class _Table:
    """LevelDB table of sorted keys and values.

    It consists of blocks of entries, an index block with their handles, and a footer with the
    handle of the index block.
    """

    def __init__(self, content: bytes):
        if len(content) > _MAX_BYTES:
            raise _Damaged(f"must be smaller than {_MAX_BYTES >> 20} MiB, which no T5 needs")
        if not content.endswith(_MAGIC) or len(content) < _FOOTER_BYTES:
            raise _Damaged(
                "must end with the footer of a TensorFlow index; it is incomplete or another "
                "format, download it again"
            )
        self._content = content
        self._room = _MAX_BYTES

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and values, ascending."""
        footer = _Cursor(self._content[-_FOOTER_BYTES:])
        _handle(footer)
        position, previous = 0, None
        for _, value in self._block_entries(*_handle(footer)):
            offset, size = _handle(_Cursor(value))
            # Otherwise a small malicious file could list one block a million times.
            if offset < position:
                raise _Damaged("has blocks that overlap; download it again")
            position = offset + size + _TRAILER_BYTES
            for key, entry in self._block_entries(offset, size):
                if previous is not None and key <= previous:
                    raise _Damaged("must have sorted names; download it again")
                previous = key
                yield key, entry

    def _block_entries(self, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
        block = self._block(offset, size)
        # A block ends with restart offsets, for binary search, and their number.
        num_restarts = struct.unpack("<I", block[-4:])[0] if len(block) >= 4 else len(block)
        end = len(block) - 4 - 4 * num_restarts
        if end < 0:
            raise _Damaged("has a block that is too short; download it again")
        cursor, key = _Cursor(block[:end]), b""
        while not cursor.at_end():
            shared, unshared, length = cursor.varint(), cursor.varint(), cursor.varint()
            if shared > len(key):
                raise _Damaged("has a name with an invalid shared prefix; download it again")
            self._spend(shared + unshared)
            key = key[:shared] + cursor.take(unshared)
            yield key, cursor.take(length)

    def _block(self, offset: int, size: int) -> bytes:
        end = offset + size + _TRAILER_BYTES
        if end > len(self._content) - _FOOTER_BYTES:
            raise _Damaged("has a block beyond its end; download it again")
        block, trailer = self._content[offset : offset + size], self._content[end - 5 : end]
        kind, checksum = struct.unpack("<BI", trailer)
        if checksum != _masked_crc32c(block + trailer[:1]):
            raise _Damaged("is damaged (its checksum differs); download it again")
        if kind == _SNAPPY:
            try:
                self._spend(snappy_length(block))
                return decompress_snappy(block)
            except ValueError as error:
                raise _Damaged("has a damaged compressed block; download it again") from error
        if kind != _PLAIN:
            raise _Damaged(f"must have blocks with compression 0 or 1, got {kind}")
        self._spend(size)
        return block

    def _spend(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise _Damaged(f"must have less than {_MAX_BYTES >> 20} MiB of names and metadata")


def _handle(cursor: "_Cursor") -> tuple[int, int]:
    return cursor.varint(), cursor.varint()


class _Cursor:
    """Read position in a bytes object."""

    def __init__(self, data: bytes):
        self._data = data
        self._position = 0

    def at_end(self) -> bool:
        return self._position == len(self._data)

    def take(self, count: int) -> bytes:
        start, end = self._position, self._position + count
        if end > len(self._data):
            raise _Damaged("ends within an entry; download it again")
        self._position = end
        return self._data[start:end]

    def varint(self) -> int:
        """Take an unsigned varint of up to 64 bits."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                break
        else:
            raise _Damaged("has a number of more than 64 bits; download it again")
        return value & (2**64 - 1)


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC_TABLE = _crc_table()


def _masked_crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    # LevelDB masks checksums, since the CRC of data that contains CRCs is weak.
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
