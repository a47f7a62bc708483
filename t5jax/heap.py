"""The memory of a process that trains on CPUs."""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform

# Names of mallopt's settings in malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = -1


def keep_memory() -> bool:
    """Keeps what a program frees for its next step, in place of giving it back to the system.

    XLA takes a step's temporaries from malloc.  glibc returns gigabytes of them to the system after
    every step, and the next one pays a page fault for each 4 KiB: for a T5 small, a seventh of a
    step's time in float32 and a fifth in bfloat16.
    The process holds its peak until it ends, and up to twice the temporaries where small arrays
    that live longer divide them.

    Must come before JAX computes anything, since the threads that it starts then take memory from
    pools of their own.  Does nothing where accelerators are installed or the C library is another,
    and with T5JAX_KEEP_MEMORY=0 in the environment.

    Returns:
      Whether memory is kept.
    """
    if os.environ.get("T5JAX_KEEP_MEMORY") == "0" or _may_find_accelerators():
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_ARENA_MAX, 1))
    accepted = [mallopt(name, value) == 1 for name, value in settings]
    return all(accepted)


def _may_find_accelerators() -> bool:
    """Whether JAX would look for devices other than CPUs, as far as can be told before it does."""
    if os.environ.get("JAX_PLATFORMS", "").lower() == "cpu":
        return False
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    names = ("libtpu", "jax_plugins")
    return bool(plugins) or any(importlib.util.find_spec(name) is not None for name in names)
