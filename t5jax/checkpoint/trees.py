"""Save, load and verify a pytree of arrays."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from t5jax.parallel import (
    path_name,
    process_count,
    process_index,
)


class ArrayMismatch(ValueError):
    """Intact checkpoint whose arrays differ from those to load."""


def save_tree(folder: str | os.PathLike, tree: PyTree) -> None:
    """Write a pytree of arrays, and wait until it is on disk.

    All processes must call it, except for arrays that are local to one process.

    Args:
      folder: destination; must not exist yet.
      tree: pytree of arrays.
    """
    import orbax.checkpoint as ocp

    is_local = all(getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(tree))
    alone = this_process_only() if is_local else {}
    if alone:  # Orbax only writes JAX arrays that belong to all processes
        tree = jax.tree.map(np.asarray, tree)
    with ocp.StandardCheckpointer(**alone) as checkpointer:
        checkpointer.save(Path(folder).resolve(), tree)


def load_tree(folder: str | os.PathLike, abstract: PyTree) -> PyTree:
    """Load a pytree of arrays written by `save_tree` or `CheckpointManager`.

    Args:
      folder: folder of the pytree.
      abstract: pytree with the saved shapes, and the dtypes and shardings to load.
    Raises:
      ValueError: the folder is damaged.
      ArrayMismatch: its arrays differ from `abstract`.
    """
    import orbax.checkpoint as ocp

    folder = Path(folder).resolve()
    check_shapes(folder, stored_shapes(folder), shapes_by_path(abstract))
    try:
        with ocp.StandardCheckpointer(**this_process_only()) as checkpointer:
            return checkpointer.restore(folder, abstract)
    # Orbax and TensorStore raise bare Exceptions, different ones for each kind of damage.
    except Exception as error:
        raise ValueError(
            f"{folder} is damaged ({first_line(error)}); load another checkpoint."
        ) from error


def check_shapes(
    folder: Path, saved: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare the shapes of saved arrays with those to load.

    Args:
      folder: named in errors.
      saved: saved shapes, by "/"-joined path.
      wanted: shapes to load, by "/"-joined path.
    Raises:
      ArrayMismatch: they differ; the message names the first difference.
    """
    for name, shape in wanted.items():
        if name not in saved:
            raise ArrayMismatch(f"{folder} must hold {name} for this config, but lacks it.")
        if saved[name] != shape:
            raise ArrayMismatch(
                f"{folder}: {name} must have shape {shape} for this config, "
                f"got {saved[name]}; the config belongs to other weights."
            )
    for name in saved:
        if name not in wanted:
            raise ArrayMismatch(
                f"{folder} holds {name}, which this config does not use; the config belongs to "
                "other weights."
            )


@jax.jit
def checksum(tree: PyTree) -> jax.Array:
    """Compute a uint32 scalar that changes if any single bit of any array changes."""
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(tree):
        bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * np.dtype(leaf.dtype).itemsize}")
        total = total * jnp.uint32(31) + jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)
    return total


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the arrays in a folder, by "/"-joined path.

    Raises:
      ValueError: the folder has no pytree, or is damaged.
    """
    import orbax.checkpoint as ocp

    # A checkpointer would warn that an item lacks the metadata file of a whole checkpoint.
    handler = ocp.StandardCheckpointHandler(**this_process_only())
    try:
        tree = handler.metadata(folder).tree  # pyright: ignore[reportArgumentType]
        return shapes_by_path(tree)
    except Exception as error:  # as in `load_tree`
        raise ValueError(f"{folder} must be a folder of arrays written by t5jax.") from error
    finally:
        handler.close()


def shapes_by_path(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all leaves, by "/"-joined path."""
    leaves = jax.tree.leaves_with_path(tree)
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves}


def first_line(error: Exception) -> str:
    """Return the first line of an error, without the spec appended by TensorStore."""
    return str(error).partition("\n")[0].partition(" See full")[0][:200]


def this_process_only() -> dict[str, Any]:
    """Return the Orbax options for I/O without waiting for other processes."""
    if process_count() == 1:
        return {}
    import orbax.checkpoint as ocp

    me = process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}"
    )
    return {"multiprocessing_options": options}
