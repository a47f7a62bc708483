"""Save and load one pytree of arrays, and check it for damage."""

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
    """The checkpoint is not damaged, but holds other arrays."""


def save_tree(folder: str | os.PathLike, tree: PyTree) -> None:
    """Write one pytree of arrays, and wait until it is on disk.

    All processes must call it, unless the arrays are those of one process alone.

    Args:
      folder: to write; it must not exist.
      tree: of arrays.
    """
    import orbax.checkpoint as ocp

    is_local = all(getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(tree))
    alone = this_process_only() if is_local else {}
    if alone:  # Orbax writes JAX arrays only if they belong to all processes
        tree = jax.tree.map(np.asarray, tree)
    with ocp.StandardCheckpointer(**alone) as checkpointer:
        checkpointer.save(Path(folder).resolve(), tree)


def load_tree(folder: str | os.PathLike, abstract: PyTree) -> PyTree:
    """Load one pytree of arrays that `save_tree` or `CheckpointManager` wrote.

    Args:
      folder: of the pytree.
      abstract: its shapes, and the dtypes and shardings to load it in.
    Raises:
      ValueError: the folder is damaged; the message names it.
      ArrayMismatch: the folder holds other arrays.
    """
    import orbax.checkpoint as ocp

    folder = Path(folder).resolve()
    check_shapes(folder, stored_shapes(folder), shapes_by_path(abstract))
    try:
        with ocp.StandardCheckpointer(**this_process_only()) as checkpointer:
            return checkpointer.restore(folder, abstract)
    # Orbax and TensorStore raise bare Exceptions, and no two kinds of damage the same.
    except Exception as error:
        raise ValueError(
            f"{folder} is damaged ({first_line(error)}); load another checkpoint."
        ) from error


def check_shapes(
    folder: Path, saved: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare the arrays of a folder with those to load.

    Args:
      folder: for messages.
      saved: shapes in the folder, by '/'-joined path.
      wanted: shapes to load.
    Raises:
      ArrayMismatch: they differ; the message names the first array that does.
    """
    for name, shape in wanted.items():
        if name not in saved:
            raise ArrayMismatch(f"{folder} must hold {name} for this config; it lacks it.")
        if saved[name] != shape:
            raise ArrayMismatch(
                f"{folder}: {name} must have shape {shape} for this config, "
                f"got {saved[name]}; the config belongs to other weights."
            )
    for name in saved:
        if name not in wanted:
            raise ArrayMismatch(
                f"{folder} holds {name}, which this config has no use for; the config belongs to "
                "other weights."
            )


@jax.jit
def checksum(tree: PyTree) -> jax.Array:
    """Compute a uint32 scalar that changes when any one bit of any array does."""
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(tree):
        bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * np.dtype(leaf.dtype).itemsize}")
        total = total * jnp.uint32(31) + jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)
    return total


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the arrays in a folder, by '/'-joined path.

    Raises:
      ValueError: the folder holds no pytree, or a damaged one.
    """
    import orbax.checkpoint as ocp

    # Not of a checkpointer, which warns that one item of a checkpoint lacks the file of a whole.
    handler = ocp.StandardCheckpointHandler(**this_process_only())
    try:
        tree = handler.metadata(folder).tree  # pyright: ignore[reportArgumentType]
        return shapes_by_path(tree)
    except Exception as error:  # as in `load_tree`
        raise ValueError(f"{folder} must be a folder of arrays written by t5jax.") from error
    finally:
        handler.close()


def shapes_by_path(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all leaves, by '/'-joined path."""
    leaves = jax.tree.leaves_with_path(tree)
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves}


def first_line(error: Exception) -> str:
    """Return the first line of an error, without the spec that TensorStore appends."""
    return str(error).partition("\n")[0].partition(" See full")[0][:200]


def this_process_only() -> dict[str, Any]:
    """Return Orbax's options for reading or writing without waiting for other processes."""
    if process_count() == 1:
        return {}
    import orbax.checkpoint as ocp

    me = process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}"
    )
    return {"multiprocessing_options": options}
