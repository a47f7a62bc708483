"""Ctrl-C and SIGTERM: requests to stop that are never lost."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

# Seconds for the main thread to clean up and end the process before another thread does.
_GRACE_SECONDS = 4.0
# A second signal within this time repeats the first: a terminal and a launcher may both send one.
_REPEAT_SECONDS = 0.5


class StopRequest:
    """Request to stop by a signal.

    Python runs a signal handler in the main thread, between two of its instructions.  An exception
    that it raises is lost inside a callback of the garbage collector, such as JAX's, crashes some
    libraries while they are imported, and comes late during a compilation.  So a thread reads the
    signals and ends the process, unless the main thread is in the body of `deferred` or `cleaned`.

    Examples:
      >>> from t5jax.interruption import StopRequest
      >>> request = StopRequest()
      >>> with request.deferred() as stopping:
      ...     stopping()
      False
    """

    def __init__(self):
        """Start without a request."""
        self.number: int | None = None
        self._deadline = 0.0
        self._raised = False
        self._deferred = False
        self._cleaned = 0
        self._accepted = False
        self._waiting_for = "this step"

    @contextlib.contextmanager
    def handle(self) -> Iterator[None]:
        """Handle signals in a whole process, for a command.

        The first signal ends the process, or is left to the body of `deferred` or `cleaned`; a
        second one ends the process at once.  No effect outside the main thread.

        Yields:
          None.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        previous_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        watcher = threading.Thread(target=self._watch, args=(reader,), daemon=True)
        watcher.start()

        def interrupt(number: int, frame: object) -> None:
            self.number = self.number or number
            self._raise_once()

        try:
            with _handlers(interrupt):
                yield
        finally:
            signal.set_wakeup_fd(previous_fd)
            writer.close()  # ends the watcher
            watcher.join()
            reader.close()

    @contextlib.contextmanager
    def deferred(self) -> Iterator[Callable[[], bool]]:
        """Leave signals to the body, which must ask for them.

        Outside of `handle`, this handles signals itself, in the main thread: the first is left to
        the body, a second raises KeyboardInterrupt.

        Yields:
          Function that returns True after a signal.
        """
        if _current is self:
            self._deferred = True
            try:
                yield self._accept
            finally:
                self._deferred = False
            return

        def interrupt(number: int, frame: object) -> None:
            if self.number is not None:
                raise KeyboardInterrupt
            self.number = number
            _say("stopping after this step; press Ctrl-C again to abort")

        with _handlers(interrupt):
            yield lambda: self.number is not None

    def _accept(self) -> bool:
        self._accepted = self.number is not None
        return self._accepted

    @contextlib.contextmanager
    def cleaned(self) -> Iterator[None]:
        """Let a signal raise KeyboardInterrupt in the body, which cleans up.

        Yields:
          None.
        """
        self._cleaned += 1
        try:
            if self.number is not None:
                self._raise_once()
            yield
        finally:
            self._cleaned -= 1

    def _raise_once(self) -> None:
        if self._cleaned and not (self._raised or self._deferred or self._accepted):
            self._raised = True
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Name what a stop has to wait for while the body runs, for a message.

        Args:
          what: noun phrase, such as "the evaluation of step 200".
        Yields:
          None.
        """
        before, self._waiting_for = self._waiting_for, what
        try:
            yield
        finally:
            self._waiting_for = before

    def _watch(self, reader: socket.socket) -> None:
        """Read signals until the other end is closed; runs in a thread."""
        received, said = 0.0, ""
        while True:
            reader.settimeout(0.1 if received else None)
            try:
                content = reader.recv(64)
                if not content:
                    return
            except TimeoutError:
                content = b""
            now = time.monotonic()
            for number in (number for number in content if number in _SIGNALS):
                self.number = self.number or number
                if received and now - received > _REPEAT_SECONDS:
                    self._exit("aborted")
                if not received:
                    received, self._deadline = now, now + _GRACE_SECONDS
                    if self._deferred:
                        _say("stopping after this step; press Ctrl-C again to abort")
            if not received:
                continue
            if self._deferred or self._accepted:
                if now > self._deadline and said != self._waiting_for:
                    said = self._waiting_for
                    _say(f"waiting for {said}; press Ctrl-C again to abort")
            elif now > self._deadline or not (self._cleaned or self._raised):
                self._exit("interrupted")

    def _exit(self, message: str) -> NoReturn:
        _say(message)
        os._exit(128 + int(self.number or 0))


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_current: StopRequest | None = None


def _hold() -> None:
    """Block signals during a fork: one to the child would also reach the parent's thread."""
    if _current is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _release() -> None:
    if _current is not None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _release_child() -> None:
    """Handle signals as usual in a forked process, which has no thread to read them."""
    global _current
    if _current is not None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _release()
        _current = None


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_release_child)


@contextlib.contextmanager
def handle_signals() -> Iterator[StopRequest]:
    """Handle Ctrl-C and SIGTERM in a command, see `StopRequest.handle`; may be nested.

    Yields:
      The request.
    """
    global _current
    if _current is not None:
        yield _current
        return
    _current = StopRequest()
    try:
        with _current.handle():
            yield _current
    finally:
        _current = None


def stop_request() -> StopRequest:
    """Return the request of the running command, or a new one outside of a command."""
    return _current or StopRequest()


@contextlib.contextmanager
def _handlers(function: Callable[[int, object], None]) -> Iterator[None]:
    """Set a handler of all signals; no effect outside the main thread, which alone may."""
    main = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, function) for number in (_SIGNALS if main else ())}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _say(message: str) -> None:
    # `print` is not reentrant; the pipe may be closed.
    with contextlib.suppress(OSError):
        os.write(2, f"\n{message}\n".encode())
