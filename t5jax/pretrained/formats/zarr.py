"""Folders of Zarr arrays, read with TensorStore: T5X's, and both generations of Orbax's.

Array paths are constructed here, never taken from a file, so that nothing outside the folder is
read.
"""

import collections
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from t5jax.fileio import JsonObject, is_plain_name, parse_json_object
from t5jax.pretrained.formats.lazy_array import BLOCK_BYTES, DTYPES, Index

_MANIFEST = "manifest.ocdbt"

# Metadata file of each Zarr version, and its TensorStore driver.
_DRIVERS = {".zarray": "zarr", "zarr.json": "zarr3"}

# Blocks consist of whole chunks, which are usually much larger than a CPU cache.
_READ_BYTES = 32 * BLOCK_BYTES

# T5X's default chunk is 64 MiB; Orbax writes an array as one chunk.
_MAX_CHUNK_BYTES = 16 << 30
_MAX_METADATA_BYTES = 1 << 20

# TensorStore decodes these up to the chunk size.  Blosc is excluded: there it allocates the size
# that the chunk's header states.
_CODECS = {"gzip", "zlib", "zstd", "bytes", "crc32c", "transpose", "sharding_indexed"}

# gzip reaches this for zeros; real weights are far below.  Zstandard can exceed it for constants.
_MAX_COMPRESSION = 1 << 11


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZarrArray:
    """Zarr array in a folder.

    Attributes:
      file: the array's folder, for messages.
      shape: shape of the array.
      dtype: dtype of the array.
      chunks: shape of a stored chunk.
      spec: TensorStore spec, as JSON.
      bits: whether bfloat16 is stored as uint16 with the same bits.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...]
    spec: str = dataclasses.field(repr=False)
    bits: bool = False

    def blocks(self, index: Index) -> Iterator[tuple[Index, np.ndarray]]:
        """Yield the elements at an index; see `LazyArray`."""
        import tensorstore

        try:
            store = tensorstore.open(json.loads(self.spec), read=True).result()
            stored = np.dtype(np.uint16) if self.bits else self.dtype
            if store.shape != self.shape or store.dtype.numpy_dtype != stored:
                raise ValueError("its metadata differs from the checkpoint's")
            if not self.shape:
                yield (), self._values(store.read().result())
                return
            first, *rest = index
            row_bytes = math.prod(s.stop - s.start for s in rest) * self.dtype.itemsize
            chunk = max(self.chunks[0], 1)
            step = chunk * max(1, _READ_BYTES // max(row_bytes * chunk, 1))
            start = first.start
            while start < first.stop:
                stop = min((start // step + 1) * step, first.stop)
                where = (slice(start, stop), *rest)
                yield where, self._values(store[where].read().result())
                start = stop
        # TensorStore reports damage as any of these.
        except (ValueError, OSError, RuntimeError, NotImplementedError, MemoryError) as error:
            raise _damage(self.file, error) from error

    def _values(self, values: np.ndarray) -> np.ndarray:
        if self.bits:
            values = values.view(self.dtype)
        return values.astype(self.dtype, copy=False)


def open_zarr_folder(
    path: Path, *, skip: Callable[[str], bool] = lambda name: False
) -> dict[str, ZarrArray]:
    """Open the arrays of an Orbax checkpoint.

    Args:
      path: folder of the checkpoint.
      skip: predicate for the names of arrays to skip, even if they are damaged.
    Returns:
      Arrays by '/'-joined path.
    Raises:
      ValueError: metadata is missing or damaged.
    """
    arrays = {}
    for key, metadata, held in _metadata(path):
        folder, _, file = key.rpartition("/")
        name = folder.replace(".", "/")
        if skip(name):
            continue
        driver, parsed = _DRIVERS[file], parse_json_object(metadata, source=path / key)
        arrays[name] = open_zarr_array(path, folder, parsed, driver=driver, stored=True, held=held)
    return arrays


def open_zarr_array(
    path: Path,
    name: str,
    metadata: JsonObject,
    *,
    driver: str = "zarr",
    stored: bool,
    bits: bool = False,
    held: tuple[int, int] | None = None,
) -> ZarrArray:
    """Open one array of a checkpoint.

    Args:
      path: folder of the checkpoint.
      name: name of the array's subfolder.
      metadata: content of `.zarray` or `zarr.json`.
      driver: TensorStore driver, "zarr" or "zarr3".
      stored: whether the subfolder has a metadata file; otherwise `metadata` is used.
      bits: whether bfloat16 is stored as uint16.
      held: number of stored chunks, and a bound on their total bytes; None counts the files in the
        subfolder.
    Returns:
      The array.
    Raises:
      ValueError: the metadata is invalid or describes too large an array, or a chunk is missing.
    """
    if not is_plain_name(name):
        raise ValueError(f"{path}: an array must be in a direct subfolder, got {name!r}.")
    where = path / name
    try:
        shape = tuple(int(n) for n in metadata["shape"])
        if driver == "zarr":
            chunks = tuple(int(n) for n in metadata["chunks"])
            kind = str(metadata["dtype"])
        else:
            grid = metadata["chunk_grid"]["configuration"]["chunk_shape"]
            chunks = tuple(int(n) for n in grid)
            kind = str(metadata["data_type"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{where} must have Zarr array metadata, got {str(metadata)[:100]!r}."
        ) from error
    dtype = DTYPES["bfloat16"] if kind == "bfloat16" or bits else _numpy_dtype(kind, where)
    sizes = (*shape, *chunks)
    if len(chunks) != len(shape) or not all(0 <= size < 1 << 63 for size in sizes):
        raise ValueError(
            f"{where} has shape {list(shape)!s:.80} and chunks of {list(chunks)!s:.80}, which do "
            "not match; copy it again."
        )
    if math.prod(chunks) * dtype.itemsize > _MAX_CHUNK_BYTES:
        raise ValueError(
            f"{where} must have chunks of at most {_MAX_CHUNK_BYTES} bytes, got "
            f"{list(chunks)!s:.80} elements; copy it again."
        )
    _check_codecs(metadata, where)
    _check_held(where, shape, chunks, dtype, _files(where) if held is None else held)
    base = {"driver": "file", "path": f"{path.resolve()}/"}
    if (path / _MANIFEST).is_file():
        kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    else:
        kvstore = {**base, "path": f"{path.resolve() / name}/"}
    # Otherwise TensorStore returns zeros for missing chunks.
    spec: JsonObject = {"driver": driver, "kvstore": kvstore, "fill_missing_data_reads": False}
    if not stored:
        spec |= {"metadata": dict(metadata), "assume_metadata": True}
    try:
        text = json.dumps(spec)
    except TypeError as error:
        raise ValueError(f"{where} must have metadata in JSON; copy it again.") from error
    return ZarrArray(file=where, shape=shape, dtype=dtype, chunks=chunks, spec=text, bits=bits)


def _metadata(path: Path) -> Iterator[tuple[str, bytes, tuple[int, int]]]:
    """Yield the path and content of each metadata file, and `held` of its array."""
    if not (path / _MANIFEST).is_file():
        for folder in sorted(path.iterdir()):
            for name in _DRIVERS:
                if (folder / name).is_file():
                    with (folder / name).open("rb") as file:
                        content = file.read(_MAX_METADATA_BYTES)
                    yield f"{folder.name}/{name}", content, _files(folder)
        return
    import tensorstore

    _, size = _files(path)
    try:
        store = tensorstore.KvStore.open(
            {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path.resolve()}/"}}
        ).result()
        keys = [key.decode("utf-8", "replace").rpartition("/") for key in store.list().result()]
        chunks = collections.Counter(
            folder.partition("/")[0] for folder, _, name in keys if name not in _DRIVERS
        )
        for folder, _, name in keys:
            if folder and name in _DRIVERS:
                content = store.read(f"{folder}/{name}").result().value[:_MAX_METADATA_BYTES]
                yield f"{folder}/{name}", content, (chunks[folder], size)
    except (ValueError, OSError, RuntimeError, NotImplementedError) as error:
        raise _damage(path, error) from error


def _files(folder: Path) -> tuple[int, int]:
    """Return the number of files in a folder, except metadata, and their total bytes."""
    files = (file for file in folder.rglob("*") if file.name not in _DRIVERS)
    sizes = [file.stat().st_size for file in files if file.is_file()]
    return len(sizes), sum(sizes)


def _check_codecs(metadata: JsonObject, where: Path) -> None:
    left = [metadata.get("compressor"), metadata.get("codecs")]
    while left:
        codec = left.pop()
        if isinstance(codec, list):
            left += codec
        elif codec is not None:
            codec = codec if isinstance(codec, Mapping) else {"name": codec}
            name = codec.get("id", codec.get("name"))
            if not isinstance(name, str) or name not in _CODECS:
                raise ValueError(
                    f"{where} must be uncompressed or use gzip or zstd, as T5X and Orbax do, got "
                    f"{name!r:.40}; write it again."
                )
            inner = codec.get("configuration")
            if isinstance(inner, Mapping):
                left += [inner.get("codecs"), inner.get("index_codecs")]


def _check_held(
    where: Path,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: np.dtype,
    held: tuple[int, int],
) -> None:
    expected = math.prod(-(-n // max(c, 1)) for n, c in zip(shape, chunks, strict=True))
    count, size = held
    if count < expected:
        raise ValueError(
            f"{where} must have all chunks of an array of {list(shape)!s:.80}, got {count}; it is "
            "incomplete. Copy it again."
        )
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes > max(size * _MAX_COMPRESSION, _READ_BYTES):
        raise ValueError(
            f"{where} cannot store an array of {list(shape)!s:.80} in {size} bytes; it is damaged. "
            "Copy it again."
        )


def tensorstore_reason(error: Exception) -> str:
    """Return the first line of a TensorStore error, without its source location."""
    return str(error).partition("\n")[0].partition(" [")[0][:200]


def _damage(where: Path, error: Exception) -> ValueError:
    return ValueError(f"{where} is damaged ({tensorstore_reason(error)}); copy it again.")


def _numpy_dtype(kind: str, where: Path) -> np.dtype:
    try:
        dtype = np.dtype(kind)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "fiub":
        raise ValueError(f"{where} must contain numbers, got type {kind[:40]!r}.")
    return dtype.newbyteorder("=")
