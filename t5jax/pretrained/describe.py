"""What a checkpoint is, told without reading its weights."""

import dataclasses
import json
from typing import Annotated, Any

import numpy as np
from tyro.conf import FlagCreatePairsOff, Positional, arg

from t5jax.models import COMPUTE_FIELDS, T5Config, preset_fields
from t5jax.pretrained import open
from t5jax.pretrained.source import CheckpointSource
from t5jax.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect:
    """Say what a checkpoint is, without reading its weights."""

    source: Positional[Annotated[str, arg(metavar="SOURCE")]]
    """Folder, file or hub id, which is downloaded, of any format that t5jax loads."""
    revision: Annotated[str | None, arg(metavar="NAME")] = None
    """Branch, tag or commit on the hub."""
    subfolder: Annotated[str | None, arg(metavar="FOLDER")] = None
    """Where the model lies in a folder or repository of several."""
    json: FlagCreatePairsOff[bool] = False
    """Print JSON instead of lines for people."""


def inspect_checkpoint(options: Inspect) -> dict[str, Any]:
    """Prints what a checkpoint is, and returns it.

    Raises:
      ValueError: it cannot be read.
    """
    path = open.locate_checkpoint(
        options.source, revision=options.revision, subfolder=options.subfolder
    )
    source = open.open_checkpoint(path)
    found = describe_checkpoint(source, open.find_tokenizer(path))
    if options.json:
        print(json.dumps(found, indent=1))
        return found
    for name, value in found.items():
        lines = value if isinstance(value, list) else [value]
        if isinstance(value, dict):
            # Amounts are read, sizes and ids are copied.
            form = "," if name == "types" else ""
            lines = [", ".join(f"{key} {item:{form}}" for key, item in value.items())]
        for i, line in enumerate(lines):
            text = f"{line:,}" if isinstance(line, int) else line
            print(f"{name if i == 0 else '':12}  {text}")
    return found


def describe_checkpoint(source: CheckpointSource, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The facts about a checkpoint, in the order in which they are worth reading."""
    config = source.config
    counts = {path: int(np.prod(shape)) for path, shape in source.shapes.items()}
    types: dict[str, int] = {}
    for path, count in counts.items():
        name = source.dtype(path).name
        types[name] = types.get(name, 0) + count
    vocabulary: Any = "none in this folder"
    if tokenizer is not None:
        vocabulary = {
            "kind": type(tokenizer).__name__,
            "ids": tokenizer.vocab_size,
            "sentinels": tokenizer.num_sentinels,
        }
    return {
        "path": str(source.path),
        "format": source.format,
        "family": model_family(config),
        "layers": {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers},
        "sizes": {
            name: getattr(config, name)
            for name in ("d_model", "d_ff", "d_kv", "num_heads", "vocab_size")
        },
        "parameters": sum(counts.values()),
        "bytes": sum(source.num_bytes(path) for path in source.layout),
        "types": types,
        "activation": f"{'gated ' if config.gated_ff else ''}{config.activation}",
        "output": ("the embedding" if config.tie_embeddings else "a layer of its own")
        + (", scaled" if config.scale_logits else ", not scaled"),
        "tokenizer": vocabulary,
        "special ids": {
            "padding": config.pad_id,
            "end": config.eos_id,
            "decoder start": config.decoder_start_id,
            **({} if tokenizer is None else {"unknown": tokenizer.unk_id}),
        },
        "ignored": source.ignored_lines(),
        "notes": list(source.notes),
    }


def model_family(config: T5Config) -> str:
    """The published models of this shape, or the family whose kind of layers it has."""
    shape = dataclasses.asdict(config)
    names = [
        name
        for name, fields in preset_fields().items()
        if all(
            shape[key] == value
            for key, value in dataclasses.asdict(T5Config(**fields)).items()
            if key not in ("dropout_rate", "dtype", *COMPUTE_FIELDS)
        )
    ]
    if names:
        return ", ".join(names)
    kind = "T5 1.0" if not config.gated_ff else "T5 v1.1"
    if config.relative_bias_per_layer:
        kind = "umT5"
    elif config.gated_ff and config.activation == "silu":
        kind = "UL2"
    return f"{kind}, {'encoder only' if not config.num_decoder_layers else 'a size of its own'}"
