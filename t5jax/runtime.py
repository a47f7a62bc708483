"""The memory of a process that trains on CPUs."""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path

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


# The least recently used programs are dropped beyond it.
_MAX_BYTES = 2 << 30


def enable_compilation_cache(folder: str | os.PathLike | None = None) -> Path | None:
    """Keeps compiled programs in a folder, so that the next process does not compile them again.

    The command line calls this; a library leaves the choice to its user.  If JAX has been given a
    place, by `JAX_COMPILATION_CACHE_DIR` or in its config, that is left as it is;
    `JAX_ENABLE_COMPILATION_CACHE=0` turns the cache off.

    Args:
      folder: made if it is not there; `t5jax/programs` in the user's cache folder if None.
    Returns:
      The folder; None if JAX has one already, or if it cannot be written to.
    """
    import jax

    if jax.config.values.get("jax_compilation_cache_dir"):
        return None
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(folder or caches / "t5jax" / "programs").expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(path, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    # By default, JAX keeps only what took a second to compile, and all of it for ever.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    return path
