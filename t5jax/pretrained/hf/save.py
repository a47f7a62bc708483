"""Writing Hugging Face folders."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from t5jax.fileio import write_json
from t5jax.models import T5Config
from t5jax.pretrained.formats import SafetensorsWriter
from t5jax.pretrained.hf import load, sentence_transformers
from t5jax.pretrained.hf.config import write_hf_config
from t5jax.pretrained.name_map import Leaf
from t5jax.pretrained.native import atomic_folder
from t5jax.pretrained.source import Weights, WrittenArray, num_layers
from t5jax.tokenizers import Tokenizer

MAX_SHARD_BYTES = 5 * 10**9
_INDEX = f"{load.WEIGHTS_FILE}{load.INDEX_FILE}"


def save_hf(
    path: str | os.PathLike,
    config: T5Config,
    weights: Weights,
    tokenizer: Tokenizer | None,
    *,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    written: Callable[[WrittenArray], object] = lambda _: None,
) -> None:
    """Writes a folder that transformers loads; see `t5jax.export_hf`.

    One parameter at a time is in memory.

    Args:
      path: made whole or not at all.
      config: of the model.
      weights: its parameters, in the types that they are to have.
      tokenizer: written too, if there is one.
      overwrite: replace a saved model there.
      max_shard_bytes: where there is more, in bytes, there are several files and an index.
      written: told of every tensor.
    Raises:
      FileExistsError: as `atomic_folder`.
      ValueError: `max_shard_bytes` is not positive.
    """
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be at least 1, got {max_shard_bytes}; try 5e9.")
    if config.scale_logits != config.tie_embeddings:
        warnings.warn(
            f"a model with tie_embeddings={config.tie_embeddings} and "
            f"scale_logits={config.scale_logits} is read rightly by transformers from version 5 "
            "on; before, tied ones are scaled and others are not.",
            stacklevel=3,
        )
    naming = load.hf_name_map(gated=config.gated_ff)
    layout = {
        ours: naming.leaf(ours, num_layers(config, ours))
        for ours in weights.shapes
        if ours != sentence_transformers.PROJECTION_PATH
    }
    files = _shards(layout, weights, max_shard_bytes)
    with atomic_folder(path, overwrite=overwrite) as folder:
        writers = {
            file: SafetensorsWriter(folder / file, entries) for file, entries in files.items()
        }
        holder = {name: file for file, entries in files.items() for name in entries}
        for ours, leaf in layout.items():
            for name, theirs in leaf.split(weights.read(ours)):
                writers[holder[name]].write(name, theirs)
                written(WrittenArray.of(name, ours, theirs))
        for writer in writers.values():
            writer.close()
        if len(files) > 1:
            sizes = [entry for entries in files.values() for entry in entries.values()]
            total = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in sizes)
            index = {"metadata": {"total_size": total}, "weight_map": holder}
            write_json(folder / _INDEX, index)
        write_hf_config(folder, config)
        if sentence_transformers.PROJECTION_PATH in weights.shapes:
            kernel = weights.read(sentence_transformers.PROJECTION_PATH)
            sentence_transformers.write_sentence_transformers(folder, kernel)
            written(
                WrittenArray.of(
                    sentence_transformers.PROJECTION_TENSOR,
                    sentence_transformers.PROJECTION_PATH,
                    kernel.T,
                )
            )
        if tokenizer is not None:
            tokenizer.save(folder)


def _shards(
    layout: dict[str, Leaf], weights: Weights, max_bytes: int
) -> dict[str, dict[str, tuple[tuple[int, ...], np.dtype]]]:
    """Files, and the shape and type of each of their tensors: block by block, as many as fit."""
    entries = {}
    for ours, leaf in layout.items():
        shape = weights.shapes[ours]
        theirs = leaf.to_theirs(shape[1:] if leaf.per_layer else shape)
        entries |= dict.fromkeys(leaf.names, (theirs, weights.dtypes[ours]))
    shards, size = [{}], 0
    for name in sorted(entries, key=_natural):
        shape, dtype = entries[name]
        count = int(np.prod(shape)) * dtype.itemsize
        if shards[-1] and size + count > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = entries[name]
        size += count
    if len(shards) == 1:
        return {load.WEIGHTS_FILE: shards[0]}
    stem, suffix = Path(load.WEIGHTS_FILE).stem, Path(load.WEIGHTS_FILE).suffix
    return {f"{stem}-{i + 1:05}-of-{len(shards):05}{suffix}": part for i, part in enumerate(shards)}


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Block 2 before block 10, and the embedding before everything."""
    parts = name.split(".")
    return [(part != "shared", int(part) if part.isdigit() else 0, part) for part in parts]
