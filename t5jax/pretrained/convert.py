"""Convert a checkpoint from one format to another, with a report of every tensor."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np

from t5jax.fileio import JsonObject, write_atomically
from t5jax.models import Params, SentenceEncoder
from t5jax.pretrained import open
from t5jax.pretrained.formats import DTYPES
from t5jax.pretrained.hf import save_hf
from t5jax.pretrained.sentence_transformers import read_sentence_encoder
from t5jax.pretrained.source import CheckpointSource, Progress, Weights, WrittenArray
from t5jax.pretrained.t5x import save_t5x

Format = Literal["hf", "t5x", "t5jax"]
REPORT_FILE = "conversion.json"


class Conversion(NamedTuple):
    """Result of `convert_checkpoint`.

    Attributes:
      source: source checkpoint.
      report: content of `conversion.json`: every tensor written, renamed or ignored.

    Examples:
      >>> t5jax.pretrained.save_pretrained("model", config, params, None)
      >>> source, report = t5jax.pretrained.convert_checkpoint("model", "hf", to="hf")
      >>> source.format, report["to"]
      ('t5jax', 'hf')
    """

    source: CheckpointSource
    report: JsonObject


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    *,
    to: Format,
    dtype: Literal["keep", "float32", "bfloat16"] = "keep",
    encoder_only: bool = False,
    scan_layers: bool = False,
    max_shard_bytes: int = 5 * 10**9,
    revision: str | None = None,
    subfolder: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Conversion:
    """Convert a checkpoint to another format, bit for bit if `dtype` is "keep".

    A report of every tensor is written to `conversion.json` in the destination.

    Args:
      source: folder, file or hub id, in any format that `load` reads.
      destination: folder to write, atomically.
      to: "hf" (Hugging Face safetensors), "t5x" or "t5jax".
      dtype: dtype to write; "keep" keeps the dtype of every tensor.
      encoder_only: whether to omit the decoder.
      scan_layers: whether to stack the layers into one array, for T5X models that scan over layers.
      max_shard_bytes: maximum size of a Hugging Face weights file; larger models are split.
      revision: branch, tag or commit on the hub.
      subfolder: the model's subfolder, in a folder or repository with several models.
      overwrite: whether to replace a model at the destination.
      progress: called with the number of bytes just read, and the total.
    Returns:
      The source checkpoint and the report.
    Raises:
      ValueError: the source cannot be read, the destination contains it, or the target format
        cannot represent it.
      FileExistsError: the destination exists and is not a model, or `overwrite` is False.

    Examples:
      >>> t5jax.pretrained.save_pretrained("tiny-t5", config, params, None)
      >>> report = t5jax.pretrained.convert_checkpoint("tiny-t5", "tiny-t5-hf", to="hf").report
      >>> [x["name"] for x in report["tensors"] if x["path"] == "token_embedder/embedding"]
      ['shared.weight']
    """
    if scan_layers and to != "t5x":
        raise ValueError(f"scan_layers must not be set for {to}; it only applies to T5X.")
    path = open.locate_checkpoint(str(source), revision=revision, subfolder=subfolder)
    checkpoint = open.open_checkpoint(path, encoder_only=encoder_only)
    _check_apart(path, checkpoint, Path(destination).expanduser())
    tokenizer, generation = open.find_tokenizer(path), open.find_generation_settings(path)
    sentence_encoder = read_sentence_encoder(path, checkpoint.config, name=str(source))
    if to == "t5x":
        _check_plain(sentence_encoder)
    total = sum(checkpoint.num_bytes(name) for name in checkpoint.layout)

    def advance(num_bytes: int) -> None:
        if progress is not None:
            progress(num_bytes, total)

    array_type = None if dtype == "keep" else DTYPES[dtype]
    config = checkpoint.config
    written: list[WrittenArray] = []
    if to == "t5jax":
        params = _read_params(checkpoint, array_type, advance)
        open.save_pretrained(
            destination,
            config,
            params,
            tokenizer,
            generation=generation,
            sentence_encoder=sentence_encoder,
            overwrite=overwrite,
        )
        weights = Weights.from_params(params)
        for name in weights.shapes:
            written.append(WrittenArray.from_values(name, name, weights.read(name)))
    else:
        weights = _lazy_weights(checkpoint, array_type, advance)
        if to == "hf":
            save_hf(
                destination,
                config,
                weights,
                tokenizer,
                generation=generation,
                sentence_encoder=sentence_encoder,
                overwrite=overwrite,
                max_shard_bytes=max_shard_bytes,
                written=written.append,
            )
        else:
            save_t5x(
                destination,
                config,
                weights,
                tokenizer,
                scanned=scan_layers,
                overwrite=overwrite,
                written=written.append,
            )
    report = _report(checkpoint, written, to=to, dtype=dtype)
    file = Path(destination).expanduser() / REPORT_FILE
    write_atomically(file, json.dumps(report, indent=1) + "\n")
    return Conversion(checkpoint, report)


def _check_plain(encoder: SentenceEncoder | None) -> None:
    """Reject a sentence encoder with arrays of its own, which T5X does not support."""
    if encoder is not None and jax.tree.leaves(encoder.layers):
        names = ", ".join(type(layer).__name__ for layer in encoder.layers)
        raise ValueError(
            f"a T5X checkpoint must be a plain T5, got one with {names}; use the Hugging Face or "
            "t5jax format."
        )


def _check_apart(path: Path, source: CheckpointSource, destination: Path) -> None:
    """Reject a destination that contains the source, since the copy may be less complete."""
    destination = destination.resolve()
    read = [path, source.path, *{array.file for array in source.arrays.values()}]
    # Both a symlink and its target.
    read = [p for file in read for p in (file.resolve(), file.parent.resolve() / file.name)]
    if any(file.is_relative_to(destination) for file in read):
        raise ValueError(
            f"the destination must not contain the source, got {destination} for {path}; write to "
            "another folder."
        )


def _lazy_weights(source: CheckpointSource, dtype: np.dtype | None, progress: Progress) -> Weights:
    """Return lazy weights, or weights in memory if the source has a checksum to verify."""
    if source.check is None:
        return source.weights(dtype=dtype, progress=progress)
    return Weights.from_params(_read_params(source, dtype, progress))


def _read_params(source: CheckpointSource, dtype: np.dtype | None, progress: Progress) -> Params:
    # Checksums cover the parameters as stored, before the dtype changes.
    if source.check is None or dtype is None:
        return source.load_params(dtype=dtype, progress=progress)
    params = source.load_params(progress=progress)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def _report(
    source: CheckpointSource, written: list[WrittenArray], *, to: str, dtype: str
) -> JsonObject:
    return {
        "source": str(source.path),
        "format": source.format,
        "to": to,
        "dtype": dtype,
        "config": dataclasses.asdict(source.config),
        "parameters": sum(int(np.prod(shape)) for shape in source.shapes.values()),
        "bytes": sum(int(np.prod(w.shape)) * DTYPES[w.dtype].itemsize for w in written),
        "notes": list(source.notes),
        "renamed": {path: list(leaf.names) for path, leaf in source.layout.items()},
        "ignored": dict(source.ignored),
        "tensors": [w._asdict() for w in written],
    }
