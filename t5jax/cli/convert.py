"""`t5jax convert`: convert a checkpoint to another format."""

import dataclasses
import re
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from t5jax.pretrained import REPORT_FILE, Conversion, convert_checkpoint

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert:
    """Write a checkpoint in another format, bit for bit unless --dtype is set.

    Attributes:
      source: file, folder or Hugging Face Hub id, in any format that t5jax loads.
      destination: new folder, written atomically.
      to: output format: hf (Hugging Face safetensors), t5x or t5jax.
      dtype: dtype of the output; keep = dtype of each source tensor.
      encoder_only: omit the decoder.
      scan_layers: T5X only: stack the layers into one array, for models that scan over layers.
      max_shard_size: Hugging Face only: maximum size of a weight file; larger weights are sharded.
      revision: branch, tag or commit on the Hub.
      subfolder: subfolder of the model in a folder or repository.
      overwrite: replace a model at the destination.
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
    """Convert a checkpoint and print a summary.

    Args:
      options: options of the command.
    Raises:
      ValueError: the source is unreadable or the same as the destination, or the output format
        cannot represent it.
      FileExistsError: the destination exists, and is not a model or `overwrite` is not set.
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
    """Parse a size such as "5GB" to bytes, in powers of 1000.

    Raises:
      ValueError: the text is not a positive size.
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
