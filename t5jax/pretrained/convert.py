"""Convert a checkpoint from one format to another, with a report of every tensor."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from t5jax.fileio import write_atomically
from t5jax.models import Params
from t5jax.pretrained import open
from t5jax.pretrained.formats import DTYPES
from t5jax.pretrained.hf import save_hf
from t5jax.pretrained.source import CheckpointSource, Progress, Weights, WrittenArray
from t5jax.pretrained.t5x import save_t5x

Format = Literal["hf", "t5x", "t5jax"]
REPORT_FILE = "conversion.json"


class Conversion(NamedTuple):
    """A checkpoint that was converted.

    Attributes:
      source: Source checkpoint.
      report: Content of `conversion.json`: every tensor, written, renamed or ignored.
    """

    source: CheckpointSource
    report: dict[str, Any]


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
    """Write a checkpoint in another format, bit for bit unless `dtype` says otherwise.

    A report of every tensor is written to `conversion.json` in the destination.

    Args:
      source: folder, file or hub id of any format that `load` reads.
      destination: new folder, written completely or not at all.
      to: Hugging Face safetensors, T5X, or t5jax's own format.
      dtype: type to write; "keep" leaves every tensor as it is.
      encoder_only: leave out the decoder.
      scan_layers: write one array for all layers of a stack, for T5X models that scan over layers.
      max_shard_bytes: size above which Hugging Face weights are split into several files.
      revision: branch, tag or commit on the hub.
      subfolder: folder of the model in a folder or repository of several.
      overwrite: replace a model at the destination.
      progress: called with the number of bytes that were just read, and that of the whole source.
    Raises:
      ValueError: the source cannot be read or is at the destination, or the destination's format
        cannot hold it.
      FileExistsError: the destination exists, and is not a model or must not be replaced.
    """
    if scan_layers and to != "t5x":
        raise ValueError(f"scan_layers must be left out for {to}; it is of T5X alone.")
    path = open.locate_checkpoint(str(source), revision=revision, subfolder=subfolder)
    checkpoint = open.open_checkpoint(path, encoder_only=encoder_only)
    _check_apart(path, checkpoint, Path(destination).expanduser())
    tokenizer = open.find_tokenizer(path)
    total = sum(checkpoint.num_bytes(name) for name in checkpoint.layout)

    def advance(num_bytes: int) -> None:
        if progress is not None:
            progress(num_bytes, total)

    array_type = None if dtype == "keep" else DTYPES[dtype]
    config = checkpoint.config
    written: list[WrittenArray] = []
    if to == "t5jax":
        params = _read_params(checkpoint, array_type, advance)
        open.save_pretrained(destination, config, params, tokenizer, overwrite=overwrite)
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


def _check_apart(path: Path, source: CheckpointSource, destination: Path) -> None:
    """Refuse to replace what is read, even to overwrite: the copy may hold less of it."""
    destination = destination.resolve()
    read = [path, source.path, *{array.file for array in source.arrays.values()}]
    # The place of a file, and that of a link to it.
    read = [p for file in read for p in (file.resolve(), file.parent.resolve() / file.name)]
    if any(file.is_relative_to(destination) for file in read):
        raise ValueError(
            f"the destination must not hold the source, got {destination} for {path}; write to "
            "another folder."
        )


def _lazy_weights(source: CheckpointSource, dtype: np.dtype | None, progress: Progress) -> Weights:
    """Return weights to read one by one, or all at once if a checksum of all must be right."""
    if source.check is None:
        return source.weights(dtype=dtype, progress=progress)
    return Weights.from_params(_read_params(source, dtype, progress))


def _read_params(source: CheckpointSource, dtype: np.dtype | None, progress: Progress) -> Params:
    # A checksum is of the parameters as they are in the files.
    if source.check is None or dtype is None:
        return source.load_params(dtype=dtype, progress=progress)
    params = source.load_params(progress=progress)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def _report(
    source: CheckpointSource, written: list[WrittenArray], *, to: str, dtype: str
) -> dict[str, Any]:
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
