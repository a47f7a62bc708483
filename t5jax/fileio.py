"""Atomic writes of files and folders, and JSON files."""

import contextlib
import errno
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

from t5jax.interruption import stop_request

StrPath = str | os.PathLike[str]
JsonObject = dict[str, Any]

_log = logging.getLogger("t5jax")

_SUFFIX = ".writing"

# Attempts to remove a folder, ten per second.
_REMOVE_ATTEMPTS = 100


def is_temporary(path: Path) -> bool:
    """Return whether a file was left by an interrupted `write_atomically`."""
    return path.name.endswith(_SUFFIX)


def is_plain_name(name: str) -> bool:
    """Return whether a name is a single file or folder name, not a path."""
    # Windows paths cover POSIX paths, backslashes and drives.
    return name not in ("", "..") and name.isprintable() and PureWindowsPath(name).name == name


def write_atomically(path: StrPath, content: bytes | str) -> None:
    """Write a file under a temporary name, then rename it; text is encoded as UTF-8.

    After a crash or on a full disk, the previous file is intact.  The target of a link is replaced,
    not the link; a device or pipe is written to.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    if path.parts[:2] == ("/", "dev") or (path.exists() and not path.is_file()):
        with path.open("wb") as file:
            file.write(data)
        return
    path = path.resolve()
    temporary = path.with_name(f".{path.name}{_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_full(error: BaseException) -> bool:
    """Return whether an error comes from a full disk or an exhausted quota."""
    full = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
    return isinstance(error, OSError) and error.errno in full


@contextlib.contextmanager
def exclusive(path: StrPath, message: str) -> Iterator[None]:
    """Hold a lock file that no other process may hold.

    The lock ends with the process, however it ends.  Where the file system has no locks, a warning
    is logged and nothing is locked.

    Args:
      path: lock file, created if missing.
      message: message of the error.
    Yields:
      None.
    Raises:
      FileExistsError: another process holds the lock.
    """
    import filelock

    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise FileExistsError(message) from None
    except NotImplementedError:
        _log.warning(f"{path} cannot be locked on this disk; let only one process write there")
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def atomic_folder(
    path: StrPath, *, check_replaceable: Callable[[Path], object] | None = None
) -> Iterator[Path]:
    """Fill a temporary folder that replaces `path` if the block succeeds.

    If the block fails or is interrupted, the previous folder is kept.

    Args:
      path: folder to write; its parents are created.
      check_replaceable: called with `path` if it is a file or a non-empty folder; raises
        FileExistsError to keep it. None never replaces anything.
    Yields:
      The temporary folder, next to `path`.
    Raises:
      FileExistsError: `path` must not be replaced.
    """
    path = Path(path).expanduser().resolve()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        (check_replaceable or _refuse_to_replace)(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unique, so that the leftovers of a killed process are not in the way.
    unique = uuid.uuid4().hex[:8]
    temporary = path.with_name(f".{path.name}.{unique}.tmp")
    replaced = path.with_name(f".{path.name}.{unique}.old")
    with stop_request().cleaned():
        try:
            temporary.mkdir()
            yield temporary
            if path.exists():
                path.rename(replaced)
            temporary.rename(path)
        finally:
            if replaced.exists() and not path.exists():
                replaced.rename(path)
            _remove(temporary)
            _remove(replaced)


def _refuse_to_replace(path: Path) -> None:
    raise FileExistsError(
        f"{path} must be a new or an empty folder, but it contains files; choose another folder."
    )


def _remove(path: Path) -> None:
    """Remove a folder, retrying while library threads still write to it."""
    for _ in range(_REMOVE_ATTEMPTS):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.1)


# Shard indices of the largest models take a few MB.
MAX_JSON_BYTES = 64 << 20


def read_bounded(path: StrPath, *, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Read a file that must not be larger than a limit.

    Raises:
      ValueError: the file is larger.
      OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(
            f"{path} must have at most {max_bytes} bytes; it is a different kind of file."
        )
    return content


def read_text(path: StrPath) -> str:
    """Read a UTF-8 file of at most `MAX_JSON_BYTES`.

    Raises:
      ValueError: the file is larger or not UTF-8.
      OSError: the file cannot be read.
    """
    try:
        return read_bounded(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text, got {error.reason}.") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
      ValueError: the file is missing, larger than `MAX_JSON_BYTES` or not JSON.
    """
    try:
        # Opening a pipe would block.
        if not path.is_file():
            raise FileNotFoundError(2, "no such file")
        with path.open("rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path} must be a readable file ({error.strerror}).") from error
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(
            f"{path} must have at most {MAX_JSON_BYTES} bytes; it is a different kind of file."
        )
    return parse_json(content, source=path)


def read_json_object(path: Path) -> JsonObject:
    """Read a JSON file that holds an object.

    Raises:
      ValueError: the file is missing, larger than `MAX_JSON_BYTES` or not a JSON object.
    """
    return _check_object(read_json(path), path)


def parse_json(content: bytes | str, *, source: object) -> Any:
    """Parse JSON.

    Args:
      content: text, or UTF-8 bytes.
      source: file name for error messages.
    Raises:
      ValueError: the content is not JSON.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        if text.startswith("version https://git-lfs"):
            raise ValueError("it is a git-lfs pointer; run `git lfs pull`")
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} must be JSON: {error}.") from error


def parse_json_object(content: bytes | str, *, source: object) -> JsonObject:
    """Parse a JSON object.

    Args:
      content: text, or UTF-8 bytes.
      source: file name for error messages.
    Raises:
      ValueError: the content is not a JSON object.
    """
    return _check_object(parse_json(content, source=source), source)


def _check_object(value: object, source: object) -> JsonObject:
    if not isinstance(value, dict):
        raise ValueError(f"{source} must be a JSON object, got {type(value).__name__}.")
    return value


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON with sorted keys."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
