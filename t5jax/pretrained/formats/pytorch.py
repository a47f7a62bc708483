"""State dicts written by `torch.save`, opened lazily.

There are two containers: a zip file since torch 1.6, and before that a sequence of pickles followed
by the data.  Neither torch nor pickle is used, so nothing in a file is executed.
"""

import io
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from t5jax.errors import shorten
from t5jax.pretrained.formats.lazy_array import FileRegion
from t5jax.pretrained.formats.torch_pickle import Opaque, PickleReader, Tensor

# Far above any real checkpoint; they bound memory and time for damaged files.
_MAX_PICKLE_BYTES = 64 << 20
_MAX_AXES = 8
# Keys of the model in the files of Lightning, DeepSpeed, fairseq and hand-written loops.
_STATE_KEYS = ("state_dict", "model_state_dict", "module", "model", "net")
_MAX_SIZE = 1 << 63

# Elements of an empty array, counting axes of size 0 as 1; otherwise its sizes are unbounded.
_MAX_EMPTY = 1 << 31
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_ZIP_HEADER = b"PK\x03\x04"
_ZIP_HEADER_BYTES = 30
_ZIP_ENCRYPTED = 1 | 1 << 6 | 1 << 13
_ZIP_UTF8 = 1 << 11


def open_pytorch(path: Path) -> dict[str, FileRegion]:
    """Open the tensors of a `pytorch_model.bin`.

    Args:
      path: path of the file.
    Returns:
      Tensors by name.
    Raises:
      ValueError: the file is missing, damaged or not a state dict, contains anything except
        tensors, or contains a view; the message names the file and the tensor.
    """
    # Opening anything else, such as a pipe, might block.
    if not path.is_file():
        raise ValueError(f"{path} must be a file; it is missing. Download it again.")
    try:
        with path.open("rb") as file:
            start = file.read(512)
            file.seek(0)
            if start.startswith(_ZIP_HEADER):
                state, offsets = _open_zip(path, file)
            elif start.startswith(b"\x80"):  # first byte of a pickle
                state, offsets = _open_legacy(path, file)
            else:
                raise ValueError(f"{path} must be written by torch.save, got {_described(start)}")
    except OSError as error:
        raise ValueError(f"{path} must be a readable file ({error.strerror}).") from error
    if not isinstance(state, dict):
        kind = state.name if isinstance(state, Opaque) else type(state).__name__
        raise ValueError(
            f"{path} must contain a dict of tensors, got a {kind}; save model.state_dict() instead."
        )
    state = _model_state(state)
    for name, value in state.items():
        if not isinstance(value, Tensor) or not isinstance(name, str):
            kind = value.name if isinstance(value, Opaque) else type(value).__name__
            raise ValueError(
                f"{path} must contain only tensors, got a {kind} as {shorten(str(name))}; save "
                "model.state_dict() instead."
            )
    return {name: _region(path, name, tensor, offsets) for name, tensor in state.items()}


def _model_state(state: dict[object, object]) -> dict[Any, Any]:
    """Return the tensors of a model that a trainer saved with its optimizer and options."""
    for key in _STATE_KEYS:
        inner = state.get(key)
        if isinstance(inner, dict) and inner and not isinstance(next(iter(inner)), int):
            return _model_state(inner)
    return state


def _described(start: bytes) -> str:
    if start.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer; fetch the file with `git lfs pull`."
    if start[257:262] == b"ustar":
        return "a tar file of torch 0.1; load it with torch 0.1 and save it again."
    if not start:
        return "an empty file. Download it again."
    return f"a file that starts with {start[:8]!r}. Download it again."


def _open_zip(path: Path, file: BinaryIO) -> tuple[Any, dict[str, int]]:
    """Read the pickle, and return its value and the file offset of each storage."""
    try:
        with zipfile.ZipFile(file) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} must end with a zip directory; it is damaged or incomplete. Download it again."
        ) from error
    entries = {entry.filename: entry for entry in listed}
    if len(entries) != len(listed):
        raise ValueError(f"{path} must not have duplicate zip entries; do not load it.")
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    roots = [root for root in roots if root.count("/") == 1]
    if len(roots) != 1:
        raise ValueError(
            f"{path} must contain one data.pkl, as torch.save writes, got {len(roots)}; it is "
            "another format."
        )
    (root,) = roots
    order = entries.get(f"{root}byteorder")
    if order is not None and _entry(path, file, order) != b"little":
        raise ValueError(f"{path} must be little-endian; save it again on a little-endian machine.")

    pickle = _entry(path, file, entries[f"{root}data.pkl"])
    reader = PickleReader(path, io.BytesIO(pickle))
    state = reader.value()
    offsets = {}
    for key, storage in reader.storages.items():
        entry = entries.get(f"{root}data/{key}")
        num_bytes = storage.size * storage.dtype.itemsize
        if entry is None or entry.file_size != num_bytes:
            actual = "none" if entry is None else f"one of {entry.file_size}"
            raise ValueError(
                f"{path} must have an entry {shorten(f'{root}data/{key}')} of "
                f"{num_bytes} bytes, got {actual}; it is damaged. Download it again."
            )
        offsets[key] = _entry_offset(path, file, entry)
    return state, offsets


def _entry(path: Path, file: BinaryIO, entry: zipfile.ZipInfo) -> bytes:
    if entry.file_size > _MAX_PICKLE_BYTES:
        raise ValueError(
            f"{path}: {shorten(entry.filename)} must have at most "
            f"{_MAX_PICKLE_BYTES} bytes, got {entry.file_size}; it is not a T5 checkpoint."
        )
    file.seek(_entry_offset(path, file, entry))
    content = file.read(entry.file_size)
    # torch writes 0 if checksums are disabled.
    if entry.CRC not in (0, zlib.crc32(content)):
        raise ValueError(
            f"{path}: {shorten(entry.filename)} is damaged (its checksum differs). "
            "Download it again."
        )
    return content


def _entry_offset(path: Path, file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Return the offset of an entry's content, checking that the file has all of it."""
    if (
        entry.compress_type != zipfile.ZIP_STORED
        or entry.compress_size != entry.file_size
        or entry.flag_bits & _ZIP_ENCRYPTED
        or entry.volume
    ):
        raise ValueError(
            f"{path}: {shorten(entry.filename)} must be stored uncompressed; it is "
            "compressed, encrypted or split. Write the file with torch.save."
        )
    end = os.fstat(file.fileno()).st_size
    name = entry.orig_filename.encode("utf-8" if entry.flag_bits & _ZIP_UTF8 else "cp437")
    if 0 <= entry.header_offset <= end - _ZIP_HEADER_BYTES:
        file.seek(entry.header_offset)
        header = file.read(_ZIP_HEADER_BYTES)
        name_length, extra_length = struct.unpack_from("<HH", header, 26)
        offset = entry.header_offset + _ZIP_HEADER_BYTES + name_length + extra_length
        same = header.startswith(_ZIP_HEADER) and file.read(name_length) == name
        if same and offset + entry.file_size <= end:
            return offset
    raise ValueError(
        f"{path}: {shorten(entry.filename)} is not at the offset in the zip directory; it is "
        "damaged or incomplete. Download it again."
    )


def _open_legacy(path: Path, file: BinaryIO) -> tuple[Any, dict[str, int]]:
    """Read the pickles of the older container, with the same result as `_open_zip`."""
    stream = io.BytesIO(file.read(_MAX_PICKLE_BYTES))
    reader = PickleReader(path, stream)
    if reader.value() != _MAGIC or reader.value() != _PROTOCOL:
        raise ValueError(f"{path} must be written by torch.save, got another pickle.")
    system = reader.value()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError(f"{path} must be little-endian; save it again on a little-endian machine.")
    state, keys = reader.value(), reader.value()
    damaged = ValueError(
        f"{path} must list its storages and contain each in full; it is damaged or incomplete. "
        "Download it again."
    )
    # Only strings: a malicious key could take forever to hash.
    if not isinstance(keys, list) or not all(type(key) is str for key in keys):
        raise damaged
    if len(set(keys)) != len(keys) or set(keys) != set(reader.storages):
        raise damaged
    offsets, position = {}, stream.tell()
    end = os.fstat(file.fileno()).st_size
    for key in keys:
        storage = reader.storages[key]
        offsets[key] = position + 8
        file.seek(position)
        size = int.from_bytes(file.read(8), "little")
        position += 8 + storage.size * storage.dtype.itemsize
        if size != storage.size or position > end:
            raise damaged
    return state, offsets


def _region(path: Path, name: str, tensor: Tensor, offsets: dict[str, int]) -> FileRegion:
    storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
    if (
        not (type(shape) is tuple and type(strides) is tuple)
        or not len(shape) == len(strides) <= _MAX_AXES
        or not all(type(x) is int and 0 <= x < _MAX_SIZE for x in (tensor.offset, *shape, *strides))
    ):
        raise ValueError(
            f"{path}: {shorten(name)} must have an integer shape, strides and offset, and at most "
            f"{_MAX_AXES} axes; it is damaged. Download it again."
        )
    straight = _is_contiguous(shape, strides)
    if not straight and not _is_contiguous(shape[::-1], strides[::-1]):
        raise ValueError(
            f"{path}: {shorten(name)} is a view with strides {strides}, which is not supported; "
            "save it with .contiguous()."
        )
    count = math.prod(shape)
    if tensor.offset + count > storage.size or math.prod(filter(None, shape)) > max(
        count, _MAX_EMPTY
    ):
        raise ValueError(
            f"{path}: {shorten(name)} of shape {list(shape)} must fit into the {storage.size} "
            "elements of its storage; it is damaged. Download it again."
        )
    itemsize = storage.dtype.itemsize
    return FileRegion(
        file=path,
        segments=((offsets[storage.key] + tensor.offset * itemsize, count * itemsize),),
        shape=shape,
        dtype=storage.dtype,
        transposed=not straight,
    )


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Return whether the elements are contiguous in row-major order."""
    if 0 in shape:
        return True
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
