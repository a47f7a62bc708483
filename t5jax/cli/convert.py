"""`t5jax convert`: from one checkpoint format to another."""

import dataclasses
import re
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from t5jax.pretrained import REPORT_FILE, Conversion, convert_checkpoint

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert:
    """Write a checkpoint in another format, bit for bit unless --dtype says otherwise.

    Attributes:
      source: Folder, file or hub id of any format that t5jax loads.
      destination: New folder, written completely or not at all.
      to: Hugging Face safetensors, T5X, or t5jax's own format.
      dtype: Type to write; "keep" leaves every tensor as it is.
      encoder_only: Leave out the decoder.
      scan_layers: For T5X: one array for all layers of a stack, for models that scan over layers.
      max_shard_size: For Hugging Face: size above which weights are split into several files and
        an index.
      revision: Branch, tag or commit on the hub.
      subfolder: Folder of the model in a folder or repository of several.
      overwrite: Replace a model at the destination.
    """

    source: Positional[Annotated[str, arg(metavar="SOURCE")]]
    destination: Positional[Annotated[str, arg(metavar="DESTINATION")]]
    to: Literal["hf", "t5x", "t5jax"]
    dtype: Literal["keep", "float32", "bfloat16"] = "keep"
    encoder_only: FlagCreatePairsOff[bool] = False
    scan_layers: FlagCreatePairsOff[bool] = False
    max_shard_size: Annotated[str, arg(metavar="SIZE")] = "5GB"
    revision: Annotated[str | None, arg(metavar="NAME")] = None
    subfolder: Annotated[str | None, arg(metavar="FOLDER")] = None
    overwrite: FlagCreatePairsOff[bool] = False


def convert(options: Convert) -> None:
    """Convert a checkpoint, and print a summary.

    Raises:
      ValueError: the source cannot be read or is at the destination, or the destination's format
        cannot hold it.
      FileExistsError: the destination exists, and is not a model or must not be replaced.
    """
    from tqdm import tqdm

    max_shard_bytes = parse_size(options.max_shard_size)
    with tqdm(unit="B", unit_scale=True, desc="converting", delay=0.5, disable=None) as bar:

        def progress(num_bytes: int, total: int) -> None:
            bar.total = total
            bar.update(num_bytes)

        conversion = convert_checkpoint(
            options.source,
            options.destination,
            to=options.to,
            dtype=options.dtype,
            encoder_only=options.encoder_only,
            scan_layers=options.scan_layers,
            max_shard_bytes=max_shard_bytes,
            revision=options.revision,
            subfolder=options.subfolder,
            overwrite=options.overwrite,
            progress=progress,
        )
    _print(conversion, options.destination)


def parse_size(text: str) -> int:
    """Return the number of bytes in a size such as "5GB", by powers of 1000.

    Raises:
      ValueError: the text is not a size, or is 0.
    """
    matched = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)b?", text.strip().lower())
    size = 0 if matched is None else int(float(matched[1]) * _UNITS[matched[2]])
    if not size:
        raise ValueError(f"max_shard_size must be a size such as 5GB or 300MB, got {text!r}.")
    return size


def _print(conversion: Conversion, destination: str) -> None:
    source, report = conversion
    count = sum(len(leaf.names) for leaf in source.layout.values())
    size = sum(source.num_bytes(path) for path in source.layout)
    path, leaf = next(iter(source.layout.items()))
    print(f"read     {count} tensors, {size:,} bytes, from {source.path} ({source.format})")
    print(f"wrote    {len(report['tensors'])} tensors, {report['bytes']:,} bytes, to {destination}")
    print(f"renamed  {count}, such as {leaf.names[0]} -> {path}")
    for line in source.ignored_lines():
        print(f"ignored  {line}")
    for note in source.notes:
        print(f"note     {note}")
    print(f"report   {destination}/{REPORT_FILE}: every tensor, with its SHA-256")
