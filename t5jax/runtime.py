"""Process settings: glibc malloc, and JAX's persistent compilation cache."""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Callable
from pathlib import Path

# Parameters of mallopt, from malloc.h, and their values: no block is mapped on its own, the heap is
# never trimmed, and all threads share one arena.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_MALLOC_SETTINGS = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_ARENA_MAX: 1}


def keep_memory() -> bool:
    """Set glibc malloc to keep freed memory for the next step instead of returning it.

    XLA takes a step's temporaries from malloc.  glibc returns gigabytes of them to the system after
    every step, and the next one pays a page fault for each 4 KiB: for a T5 small, a seventh of a
    step's time in float32 and a fifth in bfloat16.  In exchange, the process holds its peak until
    it ends, up to twice the temporaries where small arrays that live longer divide them.

    Call it before JAX computes anything, since the threads that JAX starts then take memory from
    arenas of their own.  It does nothing if accelerators are installed, if the C library is not
    glibc, or with T5JAX_KEEP_MEMORY=0 in the environment.

    Returns:
      True if glibc accepted the settings.
    """
    if os.environ.get("T5JAX_KEEP_MEMORY") == "0" or _may_find_accelerators():
        return False
    mallopt = _mallopt()
    if mallopt is None:
        return False
    # No `all` of a generator: every setting is tried.
    accepted = [mallopt(name, value) == 1 for name, value in _MALLOC_SETTINGS.items()]
    return all(accepted)


def _mallopt() -> Callable[[int, int], int] | None:
    """Return glibc's mallopt, or None if the C library is another."""
    return ctypes.CDLL(None).mallopt if platform.libc_ver()[0] == "glibc" else None


def _may_find_accelerators() -> bool:
    """Return True if JAX may look for devices other than CPUs, before it does."""
    if os.environ.get("JAX_PLATFORMS", "").lower() == "cpu":
        return False
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    names = ("libtpu", "jax_plugins")
    return bool(plugins) or any(importlib.util.find_spec(name) is not None for name in names)


# Beyond this size, the least recently used programs are dropped.
_MAX_BYTES = 2 << 30


def enable_compilation_cache(folder: str | os.PathLike | None = None) -> Path | None:
    """Enable JAX's persistent compilation cache, so that later processes need not compile again.

    The command line calls this; a library leaves the choice to its user.  A folder that was set
    before, by `JAX_COMPILATION_CACHE_DIR` or in JAX's config, stays; the cache is off with
    `JAX_ENABLE_COMPILATION_CACHE=0`.

    Args:
      folder: folder of the cache, made if missing; `t5jax/programs` in the user's cache folder if
        None.
    Returns:
      The folder; None if another one was set before, or if it cannot be written to.
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
    # By default, JAX keeps only what took a second to compile, but all of that for ever.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    return path
