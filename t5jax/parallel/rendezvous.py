"""Processes find each other, and notice when one of them is gone.

Process 0 listens; the others call it, say their index, and keep the connection open for as long as
they live.  The operating system closes it when a process dies, however it dies, so that the others
learn of it at once, and not when some collective operation has waited long enough.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

# A machine that vanishes closes nothing: probed after 15 s of silence, given up after 15 more.
_KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


_RETRY_SECONDS = 0.2


class Link:
    """A connection that carries one JSON object a line."""

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._connection = connection
        self._lines = connection.makefile("rb")

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message, if anybody is there."""
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout: float | None) -> dict[str, Any] | None:
        """The next message; None if the other side is gone, is somebody else, or is silent."""
        try:
            self._connection.settimeout(timeout)
            line = self._lines.readline(1 << 16)
            found = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._lines.close()
        self._connection.close()


class Group:
    """This process's connections to the others: process 0 has all, the others that to process 0."""

    def __init__(self, index: int, count: int, links: dict[int, Link]):
        self.index = index
        self.count = count
        self._links = links
        self._left = threading.Event()

    def watch(self, on_end: Callable[[str], None]) -> None:
        """Calls `on_end`, once and from another thread, when another process failed or died."""
        reports: list[str] = []
        lock = threading.Lock()

        def report(reason: str, source: int) -> None:
            with lock:
                if reports or self._left.is_set():
                    return
                reports.append(reason)
            self._tell({"ended": reason}, but=source)
            on_end(reason)

        def follow(index: int, link: Link) -> None:
            while True:
                message = link.receive(None)
                if message is None:
                    return report(f"process {index} of {self.count} is gone", index)
                if "leaves" in message:
                    return None
                if "ended" in message:
                    return report(str(message["ended"]), index)

        for index, link in self._links.items():
            threading.Thread(target=follow, args=(index, link), daemon=True).start()

    def fail(self, reason: str) -> None:
        """Tells the others that this process ends, and why."""
        self._left.set()
        self._tell({"ended": f"process {self.index} of {self.count} failed: {reason}"})

    def leave(self) -> None:
        """Tells the others that this process ends as it should."""
        self._left.set()
        self._tell({"leaves": True})

    def close(self) -> None:
        """Closes the connections, as the end of the process would."""
        self._left.set()
        for link in self._links.values():
            link.close()

    def _tell(self, message: dict[str, Any], but: int | None = None) -> None:
        for index, link in self._links.items():
            if index != but:
                link.send(message)


def join_group(coordinator: str, *, count: int, index: int, timeout: float) -> Group:
    """Waits until all processes are there.

    Args:
      coordinator: `host:port` of process 0, which listens there until all have called.
      count: of processes.
      index: of this one.
      timeout: seconds to wait.
    Raises:
      TimeoutError: not all came; the message says which are missing.
      ValueError: the processes do not fit together.
      OSError: process 0 cannot listen at the port.
    """
    if index == 0:
        return _listen(coordinator, count, timeout)
    return _call(coordinator, count, index, timeout)


def split_address(address: str) -> tuple[str, int]:
    """Host and port.

    Raises:
      ValueError: the address is not of the form `host:port`.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(
            f"hosts.coordinator must be host:port of process 0, got {address!r}; any port that is "
            "free there will do, such as 8476."
        )
    return host.strip("[]"), int(port)


def _listen(coordinator: str, count: int, timeout: float) -> Group:
    port = split_address(coordinator)[1]
    links: dict[int, Link] = {}
    deadline = time.monotonic() + timeout
    problem: Exception | None = None
    with _server(port) as server:
        while len(links) < count - 1 and problem is None:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                missing = [i for i in range(1, count) if i not in links]
                problem = TimeoutError(_missing(missing, count, timeout))
                break
            link = Link(connection)
            hello = link.receive(5.0)
            if hello is None or "t5jax" not in hello:
                link.close()  # a port scanner, or whoever it was
                continue
            known = hello["t5jax"] in links
            if hello["count"] != count or known or not 0 < hello["t5jax"] < count:
                problem = ValueError(
                    f"every process must have the same hosts.count and a hosts.index of its own "
                    f"below it, got index {hello['t5jax']} of {hello['count']} where process 0 "
                    f"counts {count}" + (" and has that one already." if known else ".")
                )
                link.send({"refused": str(problem)})
            links[hello["t5jax"]] = link
    group = Group(0, count, links)
    if problem is not None:
        for link in links.values():
            link.send({"missing" if isinstance(problem, TimeoutError) else "refused": str(problem)})
        group.close()
        raise problem
    for link in links.values():
        link.send({"go": True})
    return group


def _server(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096
            )
        return socket.create_server(("", port), backlog=4096)
    except OSError as error:
        raise OSError(
            f"process 0 must be able to listen at port {port}, got: {error.strerror}; choose "
            "another port in hosts.coordinator, for all processes."
        ) from error


def _call(coordinator: str, count: int, index: int, timeout: float) -> Group:
    address = split_address(coordinator)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            link = Link(socket.create_connection(address, timeout=5.0))
        except OSError:  # not there yet, or its name is not known yet
            time.sleep(_RETRY_SECONDS)
            continue
        link.send({"t5jax": index, "count": count})
        # Process 0 may have begun later, and then it waits for longer.
        answer = link.receive(2 * timeout)
        if answer is not None and "go" in answer:
            return Group(index, count, {0: link})
        link.close()
        if answer is not None and "missing" in answer:
            raise TimeoutError(str(answer["missing"]))
        if answer is not None and "refused" in answer:
            raise ValueError(str(answer["refused"]))
        time.sleep(_RETRY_SECONDS)
    raise TimeoutError(
        f"process {index} of {count} waited {timeout:g} s for process 0 at {coordinator}, which "
        "did not answer; start it there, and let connections to that port through."
    )


def _missing(missing: list[int], count: int, timeout: float) -> str:
    names = ", ".join(map(str, missing))
    which = f"process {names}" if len(missing) == 1 else f"processes {names}"
    return (
        f"all {count} processes must join within {timeout:g} s, and {which} did not; look why in "
        "their own output, or start them with the same hosts.coordinator and hosts.count."
    )
