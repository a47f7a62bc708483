"""Several processes as one program: start, wait for each other, agree, and end together.

JAX, Orbax and `multihost_utils` do the work; this module adds what they lack (jax 0.10.2):

- `initialize` and `abort_together` need `rendezvous`, whose docstring says why.
- `barrier` is Orbax's, with an error that names the processes that are missing.
- `StopVote` is not JAX's preemption service (`reached_preemption_sync_point`), which hears SIGTERM
  alone: not Ctrl-C, nothing once Python has a handler of its own, and a second SIGTERM does not end
  the process.
- `gather_arrays` is not `process_allgather`, which copies to the host.
"""

import atexit
import collections
import contextlib
import dataclasses
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from t5jax.parallel import rendezvous
from t5jax.parallel.rendezvous import RunAborted

# How long a process whose own operation failed waits to hear that another one is the cause.
_HEAR_SECONDS = 2.0
# Building a corpus may take the first process hours; a death is noticed without a timeout.
_DAY = 24 * 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostsConfig:
    """The processes that train together; nothing to say where there is one.

    Attributes:
      coordinator: Address host:port of process 0, the same for all processes; the port must be
        free there.
      count: How many processes there are.
      index: Which one this is, from 0.
      auto: Find all this out from Slurm, a TPU pod, Kubernetes or MPI.
      timeout: Seconds to wait for processes that have not started yet.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    auto: bool = False
    timeout: int = 300

    def __post_init__(self):
        names = [
            name for name in ("coordinator", "count", "index") if getattr(self, name) is not None
        ]
        if names and self.auto:
            raise ValueError(f"hosts.auto must stand alone, got hosts.{names[0]} too; drop one.")
        if names and len(names) < 3:
            raise ValueError(
                "hosts.coordinator, hosts.count and hosts.index must be given together, got only "
                f"hosts.{' and hosts.'.join(names)}; add the rest."
            )
        if self.timeout < 1:
            raise ValueError(f"hosts.timeout must be at least 1 second, got {self.timeout}.")
        if self.coordinator is not None:
            rendezvous.split_address(self.coordinator)
            assert self.count is not None
            assert self.index is not None
            if not 0 <= self.index < self.count:
                raise ValueError(
                    f"hosts.index must be in [0, hosts.count = {self.count}), got {self.index}."
                )


_started: HostsConfig | None = None
_group: rendezvous.Group | None = None


def initialize(config: HostsConfig) -> None:
    """Join the other processes, once; must come before anything is computed.

    If another process fails or dies later, a thread of this one raises `RunAborted`.

    Raises:
      TimeoutError: not all joined; the message names those that are missing, unless `config.auto`.
      ValueError: no cluster was detected, or the processes disagree about their number.
      RuntimeError: JAX has computed something already.
    """
    global _started, _group
    if config.coordinator is None and not config.auto:
        return
    if _started is not None:
        if _started != config:
            raise ValueError(f"this process is one of {_started} already, got {config}.")
        return
    # Training handles SIGTERM itself, see `StopVote`.
    jax.config.update("jax_enable_preemption_service", False)
    if config.auto:
        group = _join_cluster(config.timeout)
    else:
        assert config.coordinator is not None
        assert config.count is not None
        assert config.index is not None
        group = rendezvous.join_group(
            config.coordinator, count=config.count, index=config.index, timeout=config.timeout
        )
        jax.distributed.initialize(
            config.coordinator,
            config.count,
            config.index,
            cluster_detection_method="deactivate",
            initialization_timeout=config.timeout,
        )
    _started, _group = config, group
    group.watch()
    atexit.register(group.leave)


process_index, process_count = jax.process_index, jax.process_count


def is_main_process() -> bool:
    """Return True in process 0, which writes what is to be written once."""
    return process_index() == 0


def print_once(message: str) -> None:
    """Print a line in process 0."""
    if is_main_process():
        print(message, flush=True)


@contextlib.contextmanager
def abort_together() -> Iterator[None]:
    """Abort the run in all processes if the body fails in one.

    Without it the others would wait for the one that failed. No effect in a run of one process.

    Raises:
      RunAborted: the body failed, here (then the error is the cause) or in another process.
    """
    try:
        yield
    except BaseException as error:
        if _group is None or _group.count == 1:
            raise
        # A collective fails here when another process dies: wait to hear of that.
        by_user = isinstance(error, KeyboardInterrupt)
        reason = None if by_user else _group.failure(timeout=_HEAR_SECONDS)
        if reason is not None:
            raise RunAborted(reason) from None
        raise RunAborted(_group.fail(error)) from error


def barrier(name: str, *, timeout: float = 600.0) -> None:
    """Wait until all processes are here.

    Args:
      name: of the place in the program, the same in all processes.
      timeout: seconds to wait for the others.
    Raises:
      TimeoutError: not all came; the message names those that are missing.
    """
    if process_count() == 1:
        return
    from orbax.checkpoint import multihost

    _meetings[name] += 1
    wait = multihost.get_barrier_sync_fn()
    try:
        wait(key=f"t5jax/{name}/{_meetings[name]}", timeout_ms=int(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        lines = str(error).splitlines()
        names = [line.strip() for line in lines if line.strip().isdecimal()]
        raise TimeoutError(
            f"all {process_count()} processes must come to {name} within {timeout:g} s, and "
            f"process {', '.join(names) or 'of unknown index'} did not; look why in its own output."
        ) from error


# Orbax wants a key of its own for every barrier.
_meetings: collections.Counter[str] = collections.Counter()


@contextlib.contextmanager
def main_process_first(name: str) -> Iterator[None]:
    """Run the body in process 0 first, then in the others, one at a time on each machine.

    The others find what process 0 wrote, on a shared disk or not, and no two write one file.
    """
    if process_count() == 1:
        yield
        return
    if is_main_process():
        yield
        barrier(name, timeout=_DAY)
        return
    import filelock

    barrier(name, timeout=_DAY)
    with filelock.FileLock(os.path.join(tempfile.gettempdir(), f"t5jax-{os.getuid()}.lock")):
        yield


def agree_on(value: int, *, reduce: Callable[[np.ndarray], Any] = np.min) -> int:
    """Reduce one number per process to one that all get; all must call.

    Args:
      value: of this process, an int32.
      reduce: makes one number of [P], those of all processes; the smallest by default.
    """
    if process_count() == 1:
        return int(reduce(np.array([value], np.int32)))
    from jax.experimental import multihost_utils

    return int(reduce(np.asarray(multihost_utils.process_allgather(np.int32(value))).reshape(-1)))


def broadcast_from_main(values: Sequence[float]) -> list[float]:
    """Return the numbers of process 0, as float32; all must call, with as many of their own."""
    if process_count() == 1:
        return list(values)
    from jax.experimental import multihost_utils

    received = multihost_utils.broadcast_one_to_all(np.array(values, np.float32))
    return np.asarray(received).tolist()


def gather_arrays(tree: Any) -> Any:
    """Return arrays that this process can compute with alone; all processes must call.

    Unchanged in a run of one process; else each array is put together on one device.
    """
    if process_count() == 1:
        return tree

    def gather(x: Any) -> jax.Array:
        whole = jax.jit(lambda y: y, out_shardings=NamedSharding(x.sharding.mesh, P()))(x)
        return whole.addressable_data(0)

    return jax.tree.map(gather, tree)


class StopVote:
    """A vote on stopping, held at every step by all processes, which get the same answer.

    With several processes, an answer is that of the vote `lag` steps before: by then the devices
    have computed it, and nobody waits.
    """

    def __init__(self, mesh: Mesh, *, lag: int = 2):
        """Prepare votes on the mesh of the training step; all processes must do so together."""
        self._lag = lag
        self._alone = process_count() == 1
        if self._alone:
            return
        spread = NamedSharding(mesh, P(mesh.axis_names))
        shape = (mesh.size,)
        self._ballots = [
            jax.make_array_from_callback(
                shape, spread, lambda i, no=no: np.full(shape, no, np.int32)[i]
            )
            for no in (0, 1)
        ]
        self._count = jax.jit(lambda x: x.max(), out_shardings=NamedSharding(mesh, P()))
        self._votes: collections.deque[jax.Array] = collections.deque()

    def __call__(self, wanted: bool) -> bool:
        """Return True if all stop now; `wanted` says that this process was asked to."""
        if self._alone:
            return wanted
        self._votes.append(self._count(self._ballots[wanted]))
        return len(self._votes) > self._lag and bool(int(self._votes.popleft()))


def _join_cluster(timeout: int) -> rendezvous.Group:
    """Join the processes that JAX detects; only then is it known which one this is."""
    late = threading.Timer(timeout, _raise_late, (timeout,))
    late.daemon = True
    late.start()
    try:
        # JAX's own timeout aborts the process: ours must come first.
        jax.distributed.initialize(initialization_timeout=timeout + 60)
    except ValueError as error:
        raise ValueError(
            "hosts.auto must detect Slurm, a TPU pod, Kubernetes or MPI here, and detected none of "
            "them; set hosts.coordinator, hosts.count and hosts.index instead."
        ) from error
    finally:
        late.cancel()
    count, index = jax.process_count(), jax.process_index()
    if count == 1:
        return rendezvous.Group(0, 1, {})
    from jax.experimental import multihost_utils

    address = np.zeros(256, np.uint8)
    if index == 0:
        encoded = np.frombuffer(_own_address().encode(), np.uint8)
        address[: len(encoded)] = encoded
    address = np.asarray(multihost_utils.broadcast_one_to_all(address))
    coordinator = address.tobytes().rstrip(b"\0").decode()
    return rendezvous.join_group(coordinator, count=count, index=index, timeout=timeout)


def _raise_late(timeout: int) -> NoReturn:
    raise RunAborted(
        f"all processes must join within {timeout} s, and some did not; look why in their own "
        "output, or set hosts.coordinator, hosts.count and hosts.index to learn which."
    )


def _own_address() -> str:
    """Return an address of this machine that others can reach, with a free port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Chooses the interface that leads elsewhere, and sends nothing (RFC 5737, TEST-NET-1).
            probe.connect(("192.0.2.1", 9))
            host = probe.getsockname()[0]
        except OSError:
            host = socket.gethostname()
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"{host}:{probe.getsockname()[1]}"
