"""Several processes as one program: how they start, wait for each other, agree, and end."""

import atexit
import collections
import contextlib
import dataclasses
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from t5jax.parallel import rendezvous

# How long a process whose own operation failed waits to hear that another one is the cause.
_HEAR_SECONDS = 2.0


# Building a corpus may take the first process hours; a death is noticed without a timeout.
_DAY = 24 * 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostsConfig:
    """The processes that train together; nothing to say where there is one."""

    coordinator: str | None = None
    """Address host:port of process 0, the same for all processes; the port must be free there."""
    count: int | None = None
    """How many processes there are."""
    index: int | None = None
    """Which one this is, from 0."""
    auto: bool = False
    """Find all this out from Slurm, a TPU pod, Kubernetes or MPI."""
    timeout: int = 300
    """Seconds to wait for processes that have not started yet."""

    def __post_init__(self):
        given = [
            name for name in ("coordinator", "count", "index") if getattr(self, name) is not None
        ]
        if given and self.auto:
            raise ValueError(f"hosts.auto must stand alone, got hosts.{given[0]} too; drop one.")
        if given and len(given) < 3:
            raise ValueError(
                "hosts.coordinator, hosts.count and hosts.index must be given together, got only "
                f"hosts.{' and hosts.'.join(given)}; add the rest."
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
    """Joins the other processes, once; must come before anything is computed.

    Raises:
      TimeoutError: some did not come; the message says which.
      ValueError: no cluster was found, or the processes do not fit together.
      RuntimeError: JAX has computed something already.
    """
    global _started, _group
    if config.coordinator is None and not config.auto:
        return
    if _started is not None:
        if _started != config:
            raise ValueError(f"this process is one of {_started} already, got {config}.")
        return
    address, number, own, local = config.coordinator, config.count, config.index, None
    if config.auto:
        address, number, own, local = _detect(config.timeout)
    if address is None or number is None or own is None:
        raise ValueError(
            "hosts.auto must find Slurm, a TPU pod, Kubernetes or MPI here, and found none of "
            "them; give hosts.coordinator, hosts.count and hosts.index instead."
        )
    group = rendezvous.join_group(address, count=number, index=own, timeout=config.timeout)
    # A run handles SIGTERM itself, see `StopVote`.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        address,
        number,
        own,
        local_device_ids=local,
        cluster_detection_method="deactivate",
        initialization_timeout=config.timeout,
    )
    _started, _group = config, group
    group.watch(_end)
    atexit.register(group.leave)


def process_index() -> int:
    """Which process this is."""
    return jax.process_index() if _group is None else _group.index


def process_count() -> int:
    """How many processes there are."""
    return jax.process_count() if _group is None else _group.count


def is_main_process() -> bool:
    """Whether this process writes what is to be written once."""
    return process_index() == 0


def print_once(message: str) -> None:
    """Prints a line in process 0."""
    if is_main_process():
        print(message, flush=True)


@contextlib.contextmanager
def abort_together() -> Iterator[None]:
    """Ends this process, with exit status 1, and tells the others why, if what is inside fails.

    An error in one of several processes leaves the others waiting for it, so they must end too.
    Has no effect where there is one process.
    """
    try:
        yield
    except BaseException as error:
        if process_count() == 1:
            raise
        if not isinstance(error, KeyboardInterrupt):
            time.sleep(_HEAR_SECONDS)  # `_end` ends this process if another one is the cause
        if isinstance(error, ValueError | OSError) and not os.environ.get("T5JAX_TRACEBACK"):
            print(f"\nerror: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        if _group is not None:
            _group.fail(f"{type(error).__name__}: {error}".partition("\n")[0][:300])
        _exit(1)


def barrier(name: str, *, timeout: float = 600.0) -> None:
    """Returns when all processes are here.

    Args:
      name: of the place in the program, the same in all processes.
      timeout: seconds to wait for the others.
    Raises:
      TimeoutError: some did not come; the message says which, as far as is known.
    """
    if process_count() == 1:
        return
    client = _client()
    if client is None:
        from jax.experimental import multihost_utils

        return multihost_utils.sync_global_devices(name)
    _meetings[name] += 1
    try:
        client.wait_at_barrier(f"t5jax/{name}/{_meetings[name]}", int(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        lines = str(error).splitlines()
        names = [line.strip() for line in lines if line.strip().isdecimal()]
        raise TimeoutError(
            f"all {process_count()} processes must come to {name} within {timeout:g} s, and "
            f"process {', '.join(names) or 'of unknown index'} did not; look why in its own output."
        ) from error


_meetings: collections.Counter[str] = collections.Counter()


@contextlib.contextmanager
def main_process_first(name: str) -> Iterator[None]:
    """What is inside runs in process 0 first, then in the others, one at a time on each machine.

    So that they find what process 0 wrote, on a shared disk or not, and no two write one file.
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
    """One number from one of each process; all must call, and all get the same.

    Args:
      value: of this process, an int32.
      reduce: makes one number of [P], those of all processes.
    """
    if process_count() == 1:
        return int(reduce(np.array([value], np.int32)))
    from jax.experimental import multihost_utils

    return int(reduce(np.asarray(multihost_utils.process_allgather(np.int32(value))).reshape(-1)))


def broadcast_from_main(values: Sequence[float]) -> list[float]:
    """The numbers of process 0, as float32; all must call, with as many of their own."""
    if process_count() == 1:
        return list(values)
    from jax.experimental import multihost_utils

    found = multihost_utils.broadcast_one_to_all(np.array(values, np.float32))
    return np.asarray(found).tolist()


def gather_arrays(tree: Any) -> Any:
    """Arrays that this process can compute with alone; all processes must call.

    Unchanged where there is one process; else each array is put together on one device.
    """
    if process_count() == 1:
        return tree

    def gather(x: Any) -> jax.Array:
        whole = jax.jit(lambda y: y, out_shardings=NamedSharding(x.sharding.mesh, P()))(x)
        return whole.addressable_data(0)

    return jax.tree.map(gather, tree)


class StopVote:
    """Whether to stop, asked at every step by all processes, which get the same answer.

    With several processes, an answer is that of a vote held `lag` steps before: by then the devices
    have computed it, and nobody waits.
    """

    def __init__(self, mesh: Mesh, *, lag: int = 2):
        """`mesh` is that of the training step; all processes must make their vote together."""
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
        """Whether all stop now; `wanted` is whether this process was asked to."""
        if self._alone:
            return wanted
        self._votes.append(self._count(self._ballots[wanted]))
        return len(self._votes) > self._lag and bool(int(self._votes.popleft()))


def _detect(timeout: int) -> tuple[str | None, int | None, int | None, Any]:
    """What JAX knows of clusters, of which its public interface shows nothing."""
    from jax._src.clusters import ClusterEnv

    return ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, timeout)


def _client() -> Any:
    """JAX's connection to the coordinator, which alone names processes that do not come."""
    try:
        from jax._src import distributed

        return distributed.global_state.client
    except (ImportError, AttributeError):
        return None


def _end(reason: str) -> None:
    """Ends this process although it may be waiting for devices that never answer."""
    own = process_index()
    print(
        f"\nerror: {reason.rstrip('.')}, so process {own} ends too; checkpoints "
        "saved before are intact: start all processes again with the same command to continue.",
        file=sys.stderr,
    )
    _exit(1)


def _exit(status: int) -> None:
    # Not `sys.exit`: JAX would wait for the others at the exit, and kill the process with a
    # message of its own when they do not come.
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
