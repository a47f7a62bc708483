"""Export of Hugging Face model folders."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from t5jax.fileio import JsonObject, StrPath
from t5jax.models import SentenceEncoder, T5Config
from t5jax.pretrained.formats import SafetensorsWriter
from t5jax.pretrained.hf import load
from t5jax.pretrained.hf.shards import split_into_shards, write_shard_index
from t5jax.pretrained.hf_config import write_hf_config
from t5jax.pretrained.model_folder import write_model_folder
from t5jax.pretrained.name_map import PROJECTION_PATH
from t5jax.pretrained.sentence_transformers import write_sentence_transformers
from t5jax.pretrained.source import Weights, WrittenArray, num_layers
from t5jax.tokenizers import Tokenizer

MAX_SHARD_BYTES = 5 * 10**9


def save_hf(
    path: StrPath,
    config: T5Config,
    weights: Weights,
    tokenizer: Tokenizer | None,
    *,
    generation: JsonObject | None = None,
    sentence_encoder: SentenceEncoder | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    written: Callable[[WrittenArray], object] = lambda _: None,
) -> None:
    """Write a Hugging Face folder that transformers loads.

    Only one parameter is read into memory at a time.

    Args:
      path: folder to write, atomically.
      config: model config.
      weights: model parameters, in the dtypes to write.
      tokenizer: tokenizer to save with them, or None.
      generation: further contents of generation_config.json.
      sentence_encoder: layers after the encoder and settings, to save in sentence-transformers'
        format; None saves them only if the model has a projection.
      overwrite: whether to replace a saved model at `path`.
      max_shard_bytes: maximum size of a weights file; larger models get several files and an index.
      written: callback for each tensor that has been written.
    Raises:
      FileExistsError: `path` contains files that must not be replaced.
      ValueError: `max_shard_bytes` is not positive.

    Examples:
      >>> from pathlib import Path
      >>> weights = t5jax.pretrained.Weights.from_params(params)
      >>> t5jax.pretrained.hf.save_hf("model", config, weights, None)
      >>> sorted(path.name for path in Path("model").iterdir())
      ['config.json', 'generation_config.json', 'model.safetensors']
    """
    if max_shard_bytes < 1:
        raise ValueError(
            f"max_shard_bytes must be at least 1, got {max_shard_bytes}; 5e9 is usual."
        )
    if config.scale_logits != config.tie_embeddings:
        warnings.warn(
            f"a model with tie_embeddings={config.tie_embeddings} and "
            f"scale_logits={config.scale_logits} requires transformers >= 5; older versions scale "
            "logits if and only if embeddings are tied.",
            stacklevel=3,
        )
    name_map = load.hf_name_map(gated=config.gated_ff)
    layout = {
        ours: name_map.leaf(ours, num_layers(config, ours))
        for ours in weights.shapes
        if ours != PROJECTION_PATH
    }
    entries = {}
    for ours, leaf in layout.items():
        shape = weights.shapes[ours]
        theirs = leaf.to_theirs(shape[1:] if leaf.per_layer else shape)
        entries |= dict.fromkeys(leaf.names, (theirs, weights.dtypes[ours]))
    shards = split_into_shards(entries, max_bytes=max_shard_bytes)
    with write_model_folder(path, overwrite=overwrite) as folder:
        writers = {
            file: SafetensorsWriter(folder / file, tensors) for file, tensors in shards.items()
        }
        writer_of = {name: writers[file] for file, tensors in shards.items() for name in tensors}
        for ours, leaf in layout.items():
            for name, values in leaf.split(weights.read(ours)):
                writer_of[name].write(name, values)
                written(WrittenArray.from_values(name, ours, values))
        for writer in writers.values():
            writer.close()
        if len(shards) > 1:
            write_shard_index(folder, shards)
        write_hf_config(folder, config, generation=generation)
        if PROJECTION_PATH in weights.shapes or sentence_encoder is not None:
            _write_sentence_encoder(folder, config, weights, sentence_encoder, written)
        if tokenizer is not None:
            tokenizer.save(folder)


def _write_sentence_encoder(
    folder: Path,
    config: T5Config,
    weights: Weights,
    encoder: SentenceEncoder | None,
    written: Callable[[WrittenArray], object],
) -> None:
    projection = weights.read(PROJECTION_PATH) if config.projection_dim else None
    arrays = write_sentence_transformers(
        folder,
        encoder or SentenceEncoder.default(config),
        d_model=config.d_model,
        projection=projection,
    )
    for name, values in arrays.items():
        is_projection = projection is not None and np.shares_memory(values, projection)
        written(WrittenArray.from_values(name, PROJECTION_PATH if is_projection else name, values))
