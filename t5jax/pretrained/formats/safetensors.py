"""safetensors files, opened lazily and written array by array."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from t5jax.pretrained.formats.lazy_array import DTYPES, FileRegion

_TYPES = {
    "F32": DTYPES["float32"],
    "BF16": DTYPES["bfloat16"],
    "F16": DTYPES["float16"],
    "F64": np.dtype(np.float64),
    "BOOL": np.dtype(np.bool_),
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}

_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def open_safetensors(path: Path) -> dict[str, FileRegion]:
    """Open the arrays of a file.

    Args:
      path: path of the file.
    Returns:
      Arrays by name; types that NumPy lacks are returned as raw bytes.
    Raises:
      ValueError: the file is missing, damaged or not safetensors.
    """
    from safetensors import safe_open

    try:
        # Opening a pipe would block.
        if not path.is_file():
            raise FileNotFoundError("no such file")
        # The library checks that every byte of the file belongs to exactly one array.
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except Exception as error:  # safetensors' error class derives from Exception alone
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(
            f"{path} must be a safetensors file; it is damaged, incomplete or missing "
            f"({reason}). Download it again."
        ) from error
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        segment = (8 + length + start, stop - start)
        # `checked_source` rejects an unknown type if the array is a parameter.
        dtype = _TYPES.get(entry["dtype"])
        shape = tuple(entry["shape"])
        if dtype is None:
            dtype, shape = np.dtype(np.uint8), (stop - start,)
        arrays[name] = FileRegion(file=path, segments=(segment,), shape=shape, dtype=dtype)
    return arrays


class SafetensorsWriter:
    """Writer of a safetensors file, array by array in any order.

    Args:
      path: path of the file, which is created in full size.
      entries: shape and dtype of every array, by name.
    """

    def __init__(self, path: Path, entries: Mapping[str, tuple[tuple[int, ...], np.dtype]]):
        header, offset = {}, 0
        self._offsets: dict[str, int] = {}
        for name, (shape, dtype) in entries.items():
            stop = offset + math.prod(shape) * dtype.itemsize
            header[name] = {
                "dtype": _NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [offset, stop],
            }
            self._offsets[name] = offset
            offset = stop
        # transformers requires the format key.
        text = json.dumps({"__metadata__": {"format": "pt"}, **header}, separators=(",", ":"))
        encoded = text.encode("utf-8")
        encoded += b" " * (-len(encoded) % 8)
        self._start = 8 + len(encoded)
        self._file = path.open("wb")
        self._file.write(len(encoded).to_bytes(8, "little") + encoded)
        self._file.truncate(self._start + offset)

    def write(self, name: str, values: np.ndarray) -> None:
        """Write one array.

        Args:
          name: name of the entry.
          values: array with the shape and dtype of the entry.
        """
        self._file.seek(self._start + self._offsets[name])
        self._file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)

    def close(self) -> None:
        """Close the file after all arrays have been written."""
        self._file.close()
