"""Which file holds which tensor of a model in several files, by the index beside them."""

import json
from pathlib import Path, PureWindowsPath

from t5jax.pretrained.names import shown

# Indices of the largest models have some MB.
_MAX_BYTES = 64 << 20


def shard_files(index: Path) -> dict[str, Path]:
    """The file of every tensor, by an index such as `model.safetensors.index.json`.

    Whether the files exist, and hold the tensors, is for their readers to find out.

    Args:
      index: JSON with a `weight_map` from tensors to names of files in its folder.
    Returns:
      Tensors in the order of the index.
    Raises:
      ValueError: the index is missing, too large or damaged, or names a file of another folder.
    """
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index} must have a 'weight_map' from tensors to files.")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not is_plain(name):
            raise ValueError(
                f"{index}: {shown(tensor)} must lie in a file of the same folder, "
                f"got {name!r:.160}."
            )
    return {tensor: index.parent / name for tensor, name in weight_map.items()}


def is_plain(name: str) -> bool:
    """Whether a name is that of a file or folder, and not a path to somewhere else."""
    # By Windows' rules, which know all that POSIX's do, and backslashes and drives.
    return name not in ("", "..") and name.isprintable() and PureWindowsPath(name).name == name


def _read_json(path: Path) -> dict:
    try:
        # Anything but a file, a pipe for one, might keep us waiting.
        if not path.is_file():
            raise ValueError(f"{path} must be a file; it is missing or no file. Download it again.")
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path} must be a readable file ({error.strerror}).") from error
    if len(content) > _MAX_BYTES:
        raise ValueError(
            f"{path} must be an index of at most {_MAX_BYTES} bytes; it is another kind of file."
        )
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be a JSON object, got {type(value).__name__}.")
    return value
