"""Rendezvous of the processes of a run, and detection of one that fails or dies.

Process 0 listens; every other process connects, sends its index, and keeps the connection open
while it lives. The operating system closes the connection when a process dies, however it dies, so
the others notice at once, even while their main threads wait in a collective.

`jax.distributed` alone does less (jax 0.10.2, measured on CPUs with gloo):

- A process that never joins: `initialize` ends all others with SIGABRT and a C++ stack trace after
  twice its timeout, without naming the missing process.
- A process that dies: the others end the same way once `heartbeat_timeout_seconds` have passed.
  `jax_enable_recoverability` avoids that only while process 0 lives.
- A process that fails: the others never learn why. At exit it waits for them until
  `shutdown_timeout_seconds` have passed, and all end the same way.
"""

import contextlib
import json
import socket
import threading
import time

from t5jax.fileio import JsonObject

# A machine that vanishes closes no connection: probe after 15 s of silence, give up 15 s later.
_KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
_RETRY_SECONDS = 0.2
# Time for the others to end before process 0 does.
_LINGER_SECONDS = 1.0


class RunAborted(RuntimeError):
    """Error that ends a run because one of its processes failed or died.

    `abort_together` raises it in the main thread, with the error of this process as its cause, if
    any. The thread that watches the other processes raises it too, because the main thread may be
    waiting in a collective that never completes. A command line that catches both (the latter by
    `threading.excepthook`) must end the process without its exit handlers: JAX waits there for
    processes that are gone, and then aborts.
    """


class Link:
    """A connection that carries one JSON object per line."""

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._connection = connection
        self._lines = connection.makefile("rb")

    def send(self, message: JsonObject) -> None:
        """Send a message; does nothing if the peer is gone."""
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout: float | None) -> JsonObject | None:
        """Return the next message; None if the peer is gone, silent or not a t5jax process."""
        try:
            self._connection.settimeout(timeout)
            line = self._lines.readline(1 << 16)
            message = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._lines.close()
        self._connection.close()


class Group:
    """Processes of a run; process 0 has a link to each of the others, they have one to it."""

    def __init__(self, index: int, count: int, links: dict[int, Link]):
        self.index = index
        self.count = count
        self._links = links
        self._watchers: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._over = False
        self._reason: str | None = None
        self._failed = threading.Event()

    def watch(self) -> None:
        """Start threads that watch the other processes; one raises RunAborted if any fails."""
        for index, link in self._links.items():
            thread = threading.Thread(target=self._follow, args=(index, link), daemon=True)
            self._watchers.append(thread)
            thread.start()

    def failure(self, timeout: float) -> str | None:
        """Return why another process ended the run; None without news within `timeout` seconds."""
        self._failed.wait(timeout)
        return self._reason

    def fail(self, error: BaseException) -> str:
        """Notify the others that this process failed, and return the reason."""
        self._over = True
        cause = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
        reason = f"process {self.index} of {self.count} failed: {cause}"
        self._tell({"ended": reason})
        self._linger()
        return reason

    def leave(self) -> None:
        """Notify the others that this process ends normally."""
        self._over = True
        self._tell({"leaves": True})

    def close(self) -> None:
        """Close the connections, as the end of the process would."""
        self._over = True
        for link in self._links.values():
            link.close()

    def _follow(self, index: int, link: Link) -> None:
        reason = f"process {index} of {self.count} is gone"
        while (message := link.receive(None)) is not None:
            if "leaves" in message:
                return
            if "ended" in message:
                reason = str(message["ended"])
                break
        with self._lock:
            if self._over:
                return
            self._over = True
        self._tell({"ended": reason}, but=index)
        self._linger()
        self._reason = (
            f"{reason.rstrip('.')}, so process {self.index} ends too; checkpoints are intact: "
            "rerun the same command in all processes to resume."
        )
        self._failed.set()
        raise RunAborted(self._reason)

    def _tell(self, message: JsonObject, but: int | None = None) -> None:
        for index, link in self._links.items():
            if index != but:
                link.send(message)

    def _linger(self) -> None:
        """Let the others end first: JAX aborts them once its coordinator, process 0, is gone."""
        deadline = time.monotonic() + _LINGER_SECONDS
        for thread in self._watchers if self.index == 0 else ():
            if thread is not threading.current_thread():
                thread.join(max(deadline - time.monotonic(), 0))


def join_group(coordinator: str, *, count: int, index: int, timeout: float) -> Group:
    """Wait until all processes have joined.

    Args:
      coordinator: `host:port` of process 0, which listens there until all have connected.
      count: number of processes.
      index: index of this process, from 0.
      timeout: seconds to wait.
    Returns:
      The connected processes.
    Raises:
      TimeoutError: some processes did not join; the message names them.
      ValueError: the processes disagree on their number, or two have the same index.
      OSError: process 0 cannot listen on the port.
    """
    if index == 0:
        return _listen(coordinator, count, timeout)
    return _call(coordinator, count, index, timeout)


def split_address(address: str) -> tuple[str, int]:
    """Split an address into host and port.

    Raises:
      ValueError: the address is not of the form `host:port`.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(
            f"hosts.coordinator must be host:port of process 0, got {address!r}; use a free "
            "port, such as 8476."
        )
    return host.strip("[]"), int(port)


def _listen(coordinator: str, count: int, timeout: float) -> Group:
    links: dict[int, Link] = {}
    callers: list[Link] = []
    deadline = time.monotonic() + timeout
    try:
        with _server(split_address(coordinator)[1]) as server:
            while len(links) < count - 1:
                server.settimeout(max(deadline - time.monotonic(), 0.01))
                try:
                    link = Link(server.accept()[0])
                except TimeoutError:
                    raise TimeoutError(_missing(links, count, timeout)) from None
                hello = link.receive(5.0)
                if hello is None or "t5jax" not in hello:
                    link.close()  # a port scanner, for example
                    continue
                callers.append(link)
                index, number = hello["t5jax"], hello.get("count")
                if number != count or index in links or not 0 < index < count:
                    raise ValueError(
                        "every process must have the same hosts.count and a unique hosts.index "
                        f"below it, got index {index} of {number} in a run of {count}"
                        + (", where that index is taken." if index in links else ".")
                    )
                links[index] = link
    except (TimeoutError, ValueError) as error:
        for link in callers:
            link.send({"missing" if isinstance(error, TimeoutError) else "refused": str(error)})
            link.close()
        raise
    for link in callers:
        link.send({"go": True})
    return Group(0, count, links)


def _server(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096
            )
        return socket.create_server(("", port), backlog=4096)
    except OSError as error:
        raise OSError(
            f"process 0 must be able to listen on port {port}, got: {error.strerror}; choose "
            "another port in hosts.coordinator for all processes."
        ) from error


def _call(coordinator: str, count: int, index: int, timeout: float) -> Group:
    address = split_address(coordinator)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            link = Link(socket.create_connection(address, timeout=5.0))
        except OSError:  # not listening yet, or its host name does not resolve yet
            time.sleep(_RETRY_SECONDS)
            continue
        link.send({"t5jax": index, "count": count})
        # Process 0 may have started later; its timeout then ends later too.
        answer = link.receive(2 * timeout) or {}
        if "go" in answer:
            return Group(index, count, {0: link})
        link.close()
        if "missing" in answer:
            raise TimeoutError(str(answer["missing"]))
        if "refused" in answer:
            raise ValueError(str(answer["refused"]))
        time.sleep(_RETRY_SECONDS)
    raise TimeoutError(
        f"process {index} of {count} waited {timeout:g} s for process 0 at {coordinator}, but got "
        "no answer; start process 0 there, and allow connections to that port."
    )


def _missing(joined: dict[int, Link], count: int, timeout: float) -> str:
    missing = [str(index) for index in range(1, count) if index not in joined]
    return (
        f"all {count} processes must join within {timeout:g} s, but "
        f"process{'es' if len(missing) > 1 else ''} {', '.join(missing)} did not; check their "
        "output, or start them with the same hosts.coordinator and hosts.count."
    )
