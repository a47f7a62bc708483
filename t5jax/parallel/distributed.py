"""Run several processes as one program: start, synchronize, agree and end together.

JAX, Orbax and `multihost_utils` do the work; this module adds what they lack (jax 0.10.2):

- `initialize` and `abort_together` need `rendezvous`, whose docstring explains why.
- `barrier` is Orbax's, with an error that names the missing processes.
- `StopVote` replaces JAX's preemption service (`reached_preemption_sync_point`), which handles only
  SIGTERM: not Ctrl-C, nothing once Python has its own handler, and a second SIGTERM does not end
  the process.
- `gather_arrays` keeps arrays on devices; `process_allgather` copies them to the host.
"""

import atexit
import collections
import contextlib
import dataclasses
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, SupportsInt

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import PyTree

from t5jax.parallel import rendezvous
from t5jax.parallel.rendezvous import RunAborted

_log = logging.getLogger("t5jax")
# If a collective fails because another process died, wait this long for the news.
_HEAR_SECONDS = 2.0
# Process 0 may take hours to build a corpus; a dead process is noticed without a timeout.
_DAY = 24 * 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostsConfig:
    """Processes of a multi-process run; the default is a single process.

    Attributes:
      coordinator: address host:port of process 0, the same in all processes; the port must be free.
      count: number of processes.
      index: index of this process, from 0.
      auto: detect the processes from Slurm, a TPU pod, Kubernetes or MPI.
      timeout: seconds to wait for all processes to join.

    Examples:
      >>> hosts = t5jax.parallel.HostsConfig(coordinator="10.0.0.1:8476", count=2, index=1)
      >>> hosts.index, hosts.timeout
      (1, 300)
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
            raise ValueError(
                f"hosts.auto and hosts.{names[0]} must not both be set; remove one of them."
            )
        if names and len(names) < 3:
            raise ValueError(
                "hosts.coordinator, hosts.count and hosts.index must be set together, got only "
                f"hosts.{' and hosts.'.join(names)}; set the others too."
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
    """Join the other processes of a run, before any JAX computation.

    If another process later fails or dies, a thread of this one raises `RunAborted`.

    Args:
      config: processes of the run; the default joins nothing.
    Raises:
      TimeoutError: some processes did not join; the message names them, except with `config.auto`.
      ValueError: no cluster was detected, the processes disagree on their number, or this process
        has already joined with another config.
      RuntimeError: JAX has already computed something.

    Examples:
      >>> t5jax.parallel.initialize(t5jax.parallel.HostsConfig())
      >>> t5jax.parallel.process_count()
      1
    """
    global _started, _group
    if config.coordinator is None and not config.auto:
        return
    if _started is not None:
        if _started != config:
            raise ValueError(
                f"initialize must not be called again with another config, got {config} after "
                f"{_started}."
            )
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
    """Return True in process 0, which writes shared files.

    Returns:
      True in process 0, False in the others.

    Examples:
      >>> t5jax.parallel.is_main_process()
      True
    """
    return process_index() == 0


def log_once(message: str) -> None:
    """Log a message of level INFO in process 0 only."""
    if is_main_process():
        _log.info(message)


@contextlib.contextmanager
def abort_together() -> Iterator[None]:
    """Abort the run in all processes if the body fails in one.

    Otherwise the others would keep waiting for the failed one. No effect with a single process.

    Yields:
      None.
    Raises:
      RunAborted: the body failed here (the error is the cause) or in another process.

    Examples:
      >>> with t5jax.parallel.abort_together():
      ...     print("training")
      training
    """
    try:
        yield
    except BaseException as error:
        if _group is None or _group.count == 1:
            raise
        # A collective may have failed because another process died: wait for the news first.
        by_user = isinstance(error, KeyboardInterrupt)
        reason = None if by_user else _group.failure(timeout=_HEAR_SECONDS)
        if reason is not None:
            raise RunAborted(reason) from None
        raise RunAborted(_group.fail(error)) from error


def barrier(name: str, *, timeout: float = 600.0) -> None:
    """Wait until all processes reach this point.

    Args:
      name: name of this point in the program, the same in all processes.
      timeout: seconds to wait for the others.
    Raises:
      TimeoutError: some processes did not arrive; the message names them.

    Examples:
      >>> t5jax.parallel.barrier("corpus written", timeout=60.0)
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
            f"all {process_count()} processes must reach {name} within {timeout:g} s, but process "
            f"{', '.join(names) or 'of unknown index'} did not; check its output."
        ) from error


# Orbax needs a unique key for every barrier.
_meetings: collections.Counter[str] = collections.Counter()


@contextlib.contextmanager
def main_process_first(name: str) -> Iterator[None]:
    """Run the body in process 0 first, then in the others, one at a time on each machine.

    Works with or without a shared disk: the others find what process 0 wrote if they share one,
    and no two processes write a file at once.
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


def agree_on(value: int, *, reduce: Callable[[np.ndarray], SupportsInt] = np.min) -> int:
    """Reduce one number per process to one number for all; all processes must call it.

    Args:
      value: number of this process, an int32.
      reduce: reduction of the [P] numbers of all processes to one; defaults to the minimum.
    """
    if process_count() == 1:
        return int(reduce(np.array([value], np.int32)))
    from jax.experimental import multihost_utils

    return int(reduce(np.asarray(multihost_utils.process_allgather(np.int32(value))).reshape(-1)))


def broadcast_from_main(values: Sequence[float]) -> list[float]:
    """Return the numbers of process 0 as float32; all processes must pass the same number."""
    if process_count() == 1:
        return list(values)
    from jax.experimental import multihost_utils

    received = multihost_utils.broadcast_one_to_all(np.array(values, np.float32))
    return np.asarray(received).tolist()


def gather_arrays(tree: PyTree) -> PyTree:
    """Gather arrays so that this process can use them alone; all processes must call it.

    Args:
      tree: tree of arrays sharded over all processes.
    Returns:
      The tree with each array whole on one local device; unchanged with a single process.

    Examples:
      >>> params = {"scale": jnp.ones(3)}
      >>> t5jax.parallel.gather_arrays(params) is params
      True
    """
    if process_count() == 1:
        return tree

    def gather(x: Any) -> jax.Array:
        whole = jax.jit(lambda y: y, out_shardings=NamedSharding(x.sharding.mesh, P()))(x)
        return whole.addressable_data(0)

    return jax.tree.map(gather, tree)


class StopVote:
    """Vote on stopping, held by all processes at every step with the same result in each.

    With several processes, a call returns the result of the vote `lag` steps earlier: the devices
    have computed it by then, so no process waits.
    """

    def __init__(self, mesh: Mesh, *, lag: int = 2):
        """Prepare votes; all processes must do so together.

        Args:
          mesh: mesh of the training step.
          lag: number of steps between a vote and its result.
        """
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
        """Return True if all processes stop now.

        Args:
          wanted: True if this process was asked to stop.
        """
        if self._alone:
            return wanted
        self._votes.append(self._count(self._ballots[wanted]))
        return len(self._votes) > self._lag and bool(int(self._votes.popleft()))


def _join_cluster(timeout: int) -> rendezvous.Group:
    """Join the processes that JAX detects; the index of this one is known only afterwards."""
    late = threading.Timer(timeout, _raise_late, (timeout,))
    late.daemon = True
    late.start()
    try:
        # JAX's own timeout aborts the process, so ours must expire first.
        jax.distributed.initialize(initialization_timeout=timeout + 60)
    except ValueError as error:
        raise ValueError(
            "hosts.auto must detect Slurm, a TPU pod, Kubernetes or MPI, but detected none; "
            "set hosts.coordinator, hosts.count and hosts.index instead."
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
        f"all processes must join within {timeout} s, but some did not; check their output, or set "
        "hosts.coordinator, hosts.count and hosts.index to learn which."
    )


def _own_address() -> str:
    """Return an address of this machine that others can reach, with a free port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Selects the outgoing network interface without sending (RFC 5737, TEST-NET-1).
            probe.connect(("192.0.2.1", 9))
            host = probe.getsockname()[0]
        except OSError:
            host = socket.gethostname()
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"{host}:{probe.getsockname()[1]}"
