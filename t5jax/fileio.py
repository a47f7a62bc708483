"""Files that are replaced whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

_SUFFIX = ".writing"


def is_temporary(path: Path) -> bool:
    """Whether a file is what a crash left of `write_atomically`."""
    return path.name.endswith(_SUFFIX)


def write_atomically(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Writes a file under a temporary name, then gives it its own; text is UTF-8.

    A crash or a full disk leaves the file that was there before.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}{_SUFFIX}")
    data = content.encode() if isinstance(content, str) else content
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# Indices of the largest models have some MB.
MAX_JSON_BYTES = 64 << 20


def read_json(path: Path) -> Any:
    """The value in a file.

    Raises:
      ValueError: no such file, a larger one than any of its kind, or not JSON.
    """
    try:
        # Never waits for a pipe.
        if not path.is_file():
            raise FileNotFoundError(2, "there is no such file")
        with path.open("rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path} must be a readable file ({error.strerror}).") from error
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(
            f"{path} must have at most {MAX_JSON_BYTES} bytes; it is another kind of file."
        )
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON: {error}.") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a file, as `read_json` reads it.

    Raises:
      ValueError: something else is in it.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be a JSON object, got {type(value).__name__}.")
    return value


def write_json(path: Path, value: Any) -> None:
    """Writes a file for people to read."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
