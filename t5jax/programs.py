"""Compiled programs that outlive their process."""

import os
from pathlib import Path

import jax


def keep(folder: str | os.PathLike | None = None) -> Path | None:
    """Keeps compiled programs in a folder, so that the next process does not compile them again.

    The command line calls this; a library leaves the choice to its user.  JAX's own settings
    prevail: `JAX_COMPILATION_CACHE_DIR` names another folder, `JAX_ENABLE_COMPILATION_CACHE=0`
    turns it off.

    Args:
      folder: made if it is not there; `t5jax/programs` in the user's cache folder if None.
    Returns:
      The folder, or None if it cannot be written to: then nothing is kept.
    """
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(folder or given or caches / "t5jax" / "programs").expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    # By default, JAX keeps only what took a second to compile.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return path
