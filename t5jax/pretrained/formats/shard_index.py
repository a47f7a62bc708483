"""Which file holds which tensor of a model in several files, by the index beside them."""

from pathlib import Path, PureWindowsPath

from t5jax.fileio import read_json_object
from t5jax.pretrained.name_map import shorten


def read_shard_index(index: Path) -> dict[str, Path]:
    """The file of every tensor, by an index such as `model.safetensors.index.json`.

    Whether the files exist, and hold the tensors, is for their readers to find out.

    Args:
      index: JSON with a `weight_map` from tensors to names of files in its folder.
    Returns:
      Tensors in the order of the index.
    Raises:
      ValueError: the index is missing, too large or damaged, or names a file of another folder.
    """
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index} must have a 'weight_map' from tensors to files.")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not is_plain_name(name):
            raise ValueError(
                f"{index}: {shorten(tensor)} must lie in a file of the same folder, "
                f"got {name!r:.160}."
            )
    return {tensor: index.parent / name for tensor, name in weight_map.items()}


def is_plain_name(name: str) -> bool:
    """Whether a name is that of a file or folder, and not a path to somewhere else."""
    # By Windows' rules, which know all that POSIX's do, and backslashes and drives.
    return name not in ("", "..") and name.isprintable() and PureWindowsPath(name).name == name
