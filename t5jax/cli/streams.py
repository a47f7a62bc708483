"""Standard streams that may be closed, full, or read by a program that ends early."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any


class _Stream:
    """Text stream that discards what cannot be written.

    Everything else is delegated to the wrapped stream.
    """

    def __init__(self, stream: Any, *, lenient: bool):
        """Wrap a stream.

        Args:
          stream: stream to write to.
          lenient: discard text after any error, not only after the reader is gone.
        """
        self._stream = stream
        self._discarded = OSError if lenient else BrokenPipeError

    def write(self, text: str) -> int:
        """Write a text; return its length."""
        try:
            self._stream.write(text)
        except self._discarded:
            self._discard()
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            self._stream.flush()
        except self._discarded:
            self._discard()

    def _discard(self) -> None:
        """Send this and all later text to the null device, as at the exit of Python."""
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def safe_streams(*, lenient: bool) -> Iterator[None]:
    """Replace stdout and stderr by streams that end no command; may be nested.

    Missing streams become the null device, and characters that the encoding lacks are escaped.

    Args:
      lenient: ignore a full disk too; for commands whose result is not what they print.
    Yields:
      None.
    """
    if isinstance(sys.stdout, _Stream):
        yield
        return
    _open_missing()
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout = _Stream(before[0], lenient=lenient)
    sys.stderr = _Stream(before[1], lenient=True)
    try:
        yield
        sys.stdout.flush()  # an error at the exit of Python would be a traceback
    finally:
        sys.stdout, sys.stderr = before


def _open_missing() -> None:
    # The next file to be opened would take the place of a closed stream.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
