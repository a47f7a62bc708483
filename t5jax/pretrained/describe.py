"""Checkpoint descriptions."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from t5jax.fileio import JsonObject
from t5jax.models import Dense, Pooling, SentenceEncoder, T5Config, preset_fields
from t5jax.pretrained import open
from t5jax.pretrained.sentence_transformers import read_sentence_encoder
from t5jax.pretrained.source import CheckpointSource
from t5jax.tokenizers import Tokenizer


def describe_checkpoint(
    source: str | Path, *, revision: str | None = None, subfolder: str | None = None
) -> JsonObject:
    """Describe a checkpoint without reading its weights.

    Args:
      source: folder, file or hub id, in any format that `load` reads; a hub id is downloaded.
      revision: branch, tag or commit on the hub.
      subfolder: the model's subfolder, in a folder or repository with several models.
    Returns:
      A JSON-serializable dict of facts, the most important first.
    Raises:
      ValueError: the source cannot be read.

    Examples:
      >>> t5jax.pretrained.save_pretrained("model", config, params, None)
      >>> facts = t5jax.pretrained.describe_checkpoint("model")
      >>> facts["format"], facts["sizes"]["vocab_size"], facts["types"].keys()
      ('t5jax', 97, dict_keys(['float32']))
    """
    path = open.locate_checkpoint(str(source), revision=revision, subfolder=subfolder)
    checkpoint = open.open_checkpoint(path)
    encoder = read_sentence_encoder(path, checkpoint.config, name=str(source))
    return _describe(checkpoint, open.find_tokenizer(path), encoder)


def _describe(
    source: CheckpointSource, tokenizer: Tokenizer | None, encoder: SentenceEncoder | None
) -> JsonObject:
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
        "family": matching_presets(config),
        "layers": {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers},
        "sizes": {
            name: getattr(config, name)
            for name in ("d_model", "d_ff", "d_kv", "num_heads", "vocab_size")
        },
        "parameters": sum(counts.values()),
        "bytes": sum(source.num_bytes(path) for path in source.layout),
        "types": types,
        "activation": f"{'gated ' if config.gated_ff else ''}{config.activation}",
        "output": ("tied to the embedding" if config.tie_embeddings else "untied output layer")
        + (", scaled" if config.scale_logits else ", unscaled"),
        "tokenizer": vocabulary,
        "special ids": {
            "padding": config.pad_id,
            "end": config.eos_id,
            "decoder start": config.decoder_start_id,
            **({} if tokenizer is None else {"unknown": tokenizer.unk_id}),
        },
        **({} if encoder is None else {"embedding": _describe_sentence_encoder(encoder)}),
        "ignored": source.ignored_lines(),
        "notes": list(source.notes),
    }


def _describe_sentence_encoder(encoder: SentenceEncoder) -> dict[str, str | int | bool]:
    """Return the layers after the T5 encoder, and the settings that are not the defaults."""
    layers = []
    for layer in encoder.layers:
        name = type(layer).__name__
        if isinstance(layer, Pooling):
            name += f" ({' + '.join(layer.modes)}{'' if layer.include_prompt else ', no prompt'})"
        elif isinstance(layer, Dense) and layer.activation != "Identity":
            name += f" ({layer.activation})"
        layers.append(name)
    facts = {
        "max tokens": encoder.max_tokens,
        "lower case": encoder.lower_case or None,
        "prompts": " ".join(name for name, text in encoder.prompts.items() if text) or None,
        "default prompt": encoder.default_prompt_name,
        "similarity": encoder.similarity,
        "features kept": encoder.truncate_dim,
    }
    return {
        "layers": " > ".join(layers),
        **{name: value for name, value in facts.items() if value is not None},
    }


def matching_presets(config: T5Config) -> str:
    """Return the published models with this config, or the family of its layers."""
    shape = dataclasses.asdict(config)
    names = [
        name
        for name, fields in preset_fields().items()
        if all(
            shape[key] == value
            for key, value in dataclasses.asdict(T5Config(**fields)).items()
            if key != "dropout_rate"
        )
    ]
    if names:
        return ", ".join(names)
    kind = "T5 1.0" if not config.gated_ff else "T5 v1.1"
    if config.relative_bias_per_layer:
        kind = "umT5"
    elif config.gated_ff and config.activation == "silu":
        kind = "UL2"
    return f"{kind}, {'encoder only' if not config.num_decoder_layers else 'custom size'}"
