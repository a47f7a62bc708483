"""JSON files of strangers: configs, indices and lists of modules."""

import json
from pathlib import Path
from typing import Any

# Indices of the largest models have some MB.
MAX_BYTES = 64 << 20


def read(path: Path) -> Any:
    """The value in a file.

    Raises:
      ValueError: no such file, a larger one than any of its kind, or not JSON.
    """
    try:
        # Never waits for a pipe.
        if not path.is_file():
            raise FileNotFoundError(2, "there is no such file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path} must be a readable file ({error.strerror}).") from error
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} must have at most {MAX_BYTES} bytes; it is another kind of file.")
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON: {error}.") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a file, as `read` reads it.

    Raises:
      ValueError: something else is in it.
    """
    value = read(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be a JSON object, got {type(value).__name__}.")
    return value


def write(path: Path, value: Any) -> None:
    """Writes a file for people to read."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
