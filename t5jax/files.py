"""Files that are replaced whole or not at all."""

import os
from pathlib import Path

_SUFFIX = ".writing"


def is_temporary(path: Path) -> bool:
    """Whether a file is what a crash left of `write`."""
    return path.name.endswith(_SUFFIX)


def write(path: str | os.PathLike[str], content: bytes | str) -> None:
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
