"""Sharded weights, with an index such as `model.safetensors.index.json`."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from t5jax.errors import shorten
from t5jax.fileio import is_plain_name, read_json_object, write_json

WEIGHTS_FILE = "model.safetensors"
INDEX_SUFFIX = ".index.json"

Entry = tuple[tuple[int, ...], np.dtype]
"""Shape and dtype of a tensor."""


def read_shard_index(index: Path) -> dict[str, Path]:
    """Read the index of sharded weights.

    The files may be missing, or lack the tensors.

    Args:
      index: JSON file with a `weight_map` from tensors to names of files in the same folder.
    Returns:
      The file of every tensor, in the order of the index.
    Raises:
      ValueError: the index is missing, too large or damaged, or names a file in another folder.
    """
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index} must have a 'weight_map' from tensors to files.")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not is_plain_name(name):
            raise ValueError(
                f"{index}: {shorten(tensor)} must be in a file in the same folder, "
                f"got {name!r:.160}."
            )
    return {tensor: index.parent / name for tensor, name in weight_map.items()}


def write_shard_index(folder: Path, shards: Mapping[str, Mapping[str, Entry]]) -> None:
    """Write the index of the safetensors files returned by `split_into_shards`."""
    entries = [entry for tensors in shards.values() for entry in tensors.values()]
    index = {
        "metadata": {"total_size": sum(map(_num_bytes, entries))},
        "weight_map": {name: file for file, tensors in shards.items() for name in tensors},
    }
    write_json(folder / f"{WEIGHTS_FILE}{INDEX_SUFFIX}", index)


def split_into_shards(
    entries: Mapping[str, Entry], *, max_bytes: int
) -> dict[str, dict[str, Entry]]:
    """Distribute tensors over safetensors files in the order of their blocks.

    Args:
      entries: all tensors, by name.
      max_bytes: maximum size of a file; a larger tensor gets a separate file.
    Returns:
      The tensors of every file; a single file `model.safetensors` if all fit.
    """
    shards, size = [{}], 0
    for name in _natural_order(entries):
        num_bytes = _num_bytes(entries[name])
        if shards[-1] and size + num_bytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = entries[name]
        size += num_bytes
    if len(shards) == 1:
        return {WEIGHTS_FILE: shards[0]}
    stem, suffix = Path(WEIGHTS_FILE).stem, Path(WEIGHTS_FILE).suffix
    return {f"{stem}-{i + 1:05}-of-{len(shards):05}{suffix}": part for i, part in enumerate(shards)}


def _num_bytes(entry: Entry) -> int:
    shape, dtype = entry
    return int(np.prod(shape)) * dtype.itemsize


def _natural_order(names: Iterable[str]) -> list[str]:
    """Sort names with block 2 before block 10 and the embedding first."""

    def key(name: str) -> list[tuple[bool, int, str]]:
        parts = name.split(".")
        return [(part != "shared", int(part) if part.isdigit() else 0, part) for part in parts]

    return sorted(names, key=key)
