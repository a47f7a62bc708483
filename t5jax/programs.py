"""Compiled programs that outlive their process."""

import os
from pathlib import Path

import jax

# The least recently used programs are dropped beyond it.
_MAX_BYTES = 2 << 30


def keep(folder: str | os.PathLike | None = None) -> Path | None:
    """Keeps compiled programs in a folder, so that the next process does not compile them again.

    The command line calls this; a library leaves the choice to its user.  If JAX has been given a
    place, by `JAX_COMPILATION_CACHE_DIR` or in its config, that is left as it is;
    `JAX_ENABLE_COMPILATION_CACHE=0` turns the cache off.

    Args:
      folder: made if it is not there; `t5jax/programs` in the user's cache folder if None.
    Returns:
      The folder; None if JAX has one already, or if it cannot be written to.
    """
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
