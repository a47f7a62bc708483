"""Checkpoints that are written whole or not at all, and that say when they are damaged."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5jax.parallel import (
    path_name,
    process_count,
    process_index,
)


class ArrayMismatch(ValueError):
    """A checkpoint is whole, but not of these arrays."""


def save_tree(folder: str | os.PathLike, tree: Any) -> None:
    """Writes one pytree of arrays to a folder that does not exist yet, and waits for it.

    All processes must call it, but for arrays that one process has alone.
    """
    ocp = import_orbax()
    own = all(getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(tree))
    alone = this_process_only() if own else {}
    if alone:  # Orbax writes arrays of JAX only where they are all processes'
        tree = jax.tree.map(np.asarray, tree)
    with ocp.StandardCheckpointer(**alone) as checkpointer:
        checkpointer.save(Path(folder).resolve(), tree)


def load_tree(folder: str | os.PathLike, abstract: Any) -> Any:
    """Read what `save_tree` or `CheckpointManager` wrote, as `abstract` shards and types it.

    Raises:
      ValueError: the folder is damaged or holds other arrays; the message names it.
    """
    ocp = import_orbax()
    folder = Path(folder).resolve()
    check_shapes(folder, stored_shapes(folder), shapes_by_path(abstract))
    try:
        with ocp.StandardCheckpointer(**this_process_only()) as checkpointer:
            return checkpointer.restore(folder, abstract)
    except Exception as error:  # as in `restore_latest`
        raise ValueError(
            f"{folder} is damaged ({first_line(error)}); load another checkpoint."
        ) from error


def check_shapes(
    folder: Path, saved: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Compares what a folder holds with what is to be read, shapes by '/'-joined path.

    Raises:
      OtherArrays: they differ; the message names the first array that does.
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
def checksum(tree: Any) -> jax.Array:
    """A number, uint32, that changes when any bit of any array does."""
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(tree):
        bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * np.dtype(leaf.dtype).itemsize}")
        total = total * jnp.uint32(31) + jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)
    return total


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    with import_orbax().StandardCheckpointer(**this_process_only()) as checkpointer:
        try:
            tree = checkpointer.metadata(folder).item_metadata.tree
        except Exception as error:  # as in `restore_latest`
            raise ValueError(f"{folder} must be a folder of arrays written by t5jax.") from error
    return shapes_by_path(tree)


def shapes_by_path(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of all leaves by '/'-joined path."""
    leaves = jax.tree.leaves_with_path(tree)
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves}


def first_line(error: Exception) -> str:
    """The first words of an error, without the specification that TensorStore appends."""
    return str(error).partition("\n")[0].partition(" See full")[0][:200]


def this_process_only() -> dict[str, Any]:
    """Orbax's options for reading or writing that waits for no other process."""
    if process_count() == 1:
        return {}
    me = process_index()
    options = import_orbax().options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}"
    )
    return {"multiprocessing_options": options}


def import_orbax():
    import orbax.checkpoint

    # It reports every phase of every save as a warning.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    return orbax.checkpoint
