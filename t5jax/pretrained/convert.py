"""From one checkpoint format to another, with a report of what became of every tensor."""

import dataclasses
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
from tyro.conf import FlagCreatePairsOff, Positional, arg

from t5jax.fileio import write_atomically
from t5jax.models import Params
from t5jax.pretrained import open
from t5jax.pretrained.formats import DTYPES
from t5jax.pretrained.hf import save_hf
from t5jax.pretrained.source import CheckpointSource, Progress, Weights, WrittenArray
from t5jax.pretrained.t5x import save_t5x

REPORT_FILE = "conversion.json"


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert:
    """Write a checkpoint in another format, bit for bit unless --dtype says otherwise."""

    source: Positional[Annotated[str, arg(metavar="SOURCE")]]
    """Folder, file or hub id of any format that t5jax loads."""
    destination: Positional[Annotated[str, arg(metavar="DESTINATION")]]
    """New folder, made whole or not at all."""
    to: Literal["hf", "t5x", "t5jax"]
    """Hugging Face safetensors, T5X, or t5jax's own format."""
    dtype: Literal["keep", "float32", "bfloat16"] = "keep"
    """Type to write; "keep" leaves every tensor as it is."""
    encoder_only: FlagCreatePairsOff[bool] = False
    """Leave out the decoder."""
    scan_layers: FlagCreatePairsOff[bool] = False
    """For T5X: one array for all layers of a stack, for models that scan over layers."""
    max_shard_size: Annotated[str, arg(metavar="SIZE")] = "5GB"
    """For Hugging Face: where there is more, several files and an index are written."""
    revision: Annotated[str | None, arg(metavar="NAME")] = None
    """Branch, tag or commit on the hub."""
    subfolder: Annotated[str | None, arg(metavar="FOLDER")] = None
    """Where the model lies in a folder or repository of several."""
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace a model at the destination."""

    def __post_init__(self):
        if self.scan_layers and self.to != "t5x":
            raise ValueError(f"scan_layers must be left out for {self.to}; it is of T5X alone.")
        parse_size(self.max_shard_size)


def parse_size(text: str) -> int:
    """Bytes in a size such as "5GB", by powers of 1000.

    Raises:
      ValueError: something else.
    """
    matched = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)b?", text.strip().lower())
    size = 0 if matched is None else int(float(matched[1]) * _UNITS[matched[2]])
    if not size:
        raise ValueError(f"max_shard_size must be a size such as 5GB or 300MB, got {text!r}.")
    return size


def convert_checkpoint(options: Convert) -> dict[str, Any]:
    """Converts, says what was done, and writes the same in full to `conversion.json`.

    Returns:
      The content of that file.
    Raises:
      ValueError: the source cannot be read or is at the destination, or the destination's format
        cannot hold it.
      FileExistsError: there is something at the destination, which is not to be or must not be
        replaced.
    """
    path = open.locate_checkpoint(
        options.source, revision=options.revision, subfolder=options.subfolder
    )
    source = open.open_checkpoint(path, encoder_only=options.encoder_only)
    _check_apart(path, source, Path(options.destination).expanduser())
    tokenizer = open.find_tokenizer(path)
    dtype = None if options.dtype == "keep" else DTYPES[options.dtype]
    written: list[WrittenArray] = []
    total = sum(source.num_bytes(name) for name in source.layout)
    with _progress_bar(total) as progress:
        weights, params = _read(options, source, dtype, progress)
        where, config = options.destination, source.config
        if options.to == "hf":
            save_hf(
                where,
                config,
                weights,
                tokenizer,
                overwrite=options.overwrite,
                max_shard_bytes=parse_size(options.max_shard_size),
                written=written.append,
            )
        elif options.to == "t5x":
            save_t5x(
                where,
                config,
                weights,
                tokenizer,
                scanned=options.scan_layers,
                overwrite=options.overwrite,
                written=written.append,
            )
        else:
            open.save_pretrained(where, config, params, tokenizer, overwrite=options.overwrite)
            written += [WrittenArray.of(name, name, weights.read(name)) for name in weights.shapes]
    report = _report(options, source, written)
    write_atomically(Path(where).expanduser() / REPORT_FILE, json.dumps(report, indent=1) + "\n")
    _print(options, source, report)
    return report


def _check_apart(path: Path, source: CheckpointSource, destination: Path) -> None:
    """Refuses to replace what is read, whatever --overwrite says: the copy may hold less of it."""
    destination = destination.resolve()
    read = [path, source.path, *{array.file for array in source.arrays.values()}]
    # Where a file lies, and where it lies if it is a link.
    read = [p for file in read for p in (file.resolve(), file.parent.resolve() / file.name)]
    if any(file.is_relative_to(destination) for file in read):
        raise ValueError(
            f"the destination must not hold the source, got {destination} for {path}; write to "
            "another folder."
        )


def _read(
    options: Convert, source: CheckpointSource, dtype: np.dtype | None, progress: Progress
) -> tuple[Weights, Params]:
    """What to write: one parameter at a time, with no `Params`, unless all are needed at once.

    A checksum is of all of them, as they are in the files.
    """
    checked = source.check is not None
    if not checked and options.to != "t5jax":
        return source.weights(dtype=dtype, progress=progress), {}
    params = source.params(dtype=None if checked else dtype, progress=progress)
    if checked and dtype is not None:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    return Weights.of(params), params


@contextmanager
def _progress_bar(total: int) -> Iterator[Progress]:
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, desc="converting", delay=0.5) as bar:
        yield bar.update


def _report(
    options: Convert, source: CheckpointSource, written: list[WrittenArray]
) -> dict[str, Any]:
    return {
        "source": str(source.path),
        "format": source.format,
        "to": options.to,
        "dtype": options.dtype,
        "config": dataclasses.asdict(source.config),
        "parameters": sum(int(np.prod(shape)) for shape in source.shapes.values()),
        "bytes": sum(int(np.prod(w.shape)) * DTYPES[w.dtype].itemsize for w in written),
        "notes": list(source.notes),
        "renamed": {path: list(leaf.names) for path, leaf in source.layout.items()},
        "ignored": dict(source.ignored),
        "tensors": [w._asdict() for w in written],
    }


def _print(options: Convert, source: CheckpointSource, report: dict[str, Any]) -> None:
    read = sum(len(leaf.names) for leaf in source.layout.values())
    size = sum(source.num_bytes(path) for path in source.layout)
    example = next(iter(source.layout.items()))
    print(f"read     {read} tensors, {size:,} bytes, from {source.path} ({source.format})")
    print(
        f"wrote    {len(report['tensors'])} tensors, {report['bytes']:,} bytes, "
        f"to {options.destination}"
    )
    print(f"renamed  {read}, such as {example[1].names[0]} -> {example[0]}")
    for line in source.ignored_lines():
        print(f"ignored  {line}")
    for note in source.notes:
        print(f"note     {note}")
    print(f"report   {options.destination}/{REPORT_FILE}: every tensor, with its SHA-256")
