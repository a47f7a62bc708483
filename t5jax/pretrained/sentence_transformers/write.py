"""Writing sentence encoders in sentence-transformers' format."""

import json
from pathlib import Path

import numpy as np

from t5jax.fileio import JsonObject, write_json
from t5jax.models import Dense, Layer, LayerNorm, Normalize, Pooling, SentenceEncoder
from t5jax.pretrained.formats import SafetensorsWriter
from t5jax.pretrained.sentence_transformers.read import (
    BIAS,
    MODULES_FILE,
    POOLING_FLAGS,
    RESIDUAL,
    WEIGHT,
)
from t5jax.pretrained.sentence_transformers.settings import ENCODER_FILE, MODEL_FILE

# Names that every version since 2.0 reads.
_TYPES = "sentence_transformers.models."


def write_sentence_transformers(
    folder: Path, encoder: SentenceEncoder, *, d_model: int, projection: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Write the files that turn a folder with a T5 encoder into a sentence encoder.

    Args:
      folder: folder of the encoder.
      encoder: layers and settings.
      d_model: width of the T5.
      projection: [D, O] kernel of the T5's own projection, or None.
    Returns:
      The arrays written, by folder and name.
    """
    modules = [("", "Transformer")]
    written: dict[str, np.ndarray] = {}
    widths: dict[str, int] = {"token_embeddings": d_model}
    for i, layer in enumerate(encoder.with_projection(projection), start=1):
        kind = type(layer).__name__
        name = f"{i}_{kind}"
        modules.append((name, kind))
        (folder / name).mkdir()
        write_json(folder / name / "config.json", _config(layer, widths))
        if arrays := _arrays(layer):
            entries = {key: (array.shape, array.dtype) for key, array in arrays.items()}
            writer = SafetensorsWriter(folder / name / "model.safetensors", entries)
            for key, array in arrays.items():
                writer.write(key, array)
            writer.close()
        written |= {f"{name}/{key}": array for key, array in arrays.items()}
    listed = [
        {"idx": i, "name": str(i), "path": name, "type": _TYPES + kind}
        for i, (name, kind) in enumerate(modules)
    ]
    (folder / MODULES_FILE).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    _write_settings(folder, encoder)
    return written


def _arrays(layer: Layer) -> dict[str, np.ndarray]:
    if isinstance(layer, LayerNorm):
        return {"norm.weight": np.asarray(layer.scale), "norm.bias": np.asarray(layer.bias)}
    if not isinstance(layer, Dense):
        return {}
    arrays = {WEIGHT: np.asarray(layer.kernel).T}
    if layer.bias is not None:
        arrays[BIAS] = np.asarray(layer.bias)
    if layer.residual_kernel is not None:
        arrays[RESIDUAL] = np.asarray(layer.residual_kernel).T
    return arrays


def _config(layer: Layer, widths: dict[str, int]) -> JsonObject:
    """Return the config.json of a layer, and update the widths of the features.

    Settings that only new versions know are written only if they differ from their defaults.
    """
    if isinstance(layer, Pooling):
        width = widths["token_embeddings"]
        widths["sentence_embedding"] = width * len(layer.modes)
        return _pooling_config(layer, width)
    if isinstance(layer, LayerNorm):
        return {"dimension": layer.scale.shape[0]}
    features = {}
    if (layer.source, layer.target) != ("sentence_embedding",) * 2:
        features = {"module_input_name": layer.source, "module_output_name": layer.target}
    if isinstance(layer, Normalize):
        widths[layer.target] = widths[layer.source]
        return features
    assert layer.kernel is not None
    width, widths[layer.target] = layer.kernel.shape
    return {
        "in_features": width,
        "out_features": widths[layer.target],
        "bias": layer.bias is not None,
        "activation_function": _activation(layer.activation),
        **({"use_residual": True} if layer.residual else {}),
        **features,
    }


def _activation(name: str) -> str:
    return f"torch.nn.modules.{'linear' if name == 'Identity' else 'activation'}.{name}"


def _pooling_config(layer: Pooling, width: int) -> JsonObject:
    prompt = {} if layer.include_prompt else {"include_prompt": False}
    in_order = tuple(mode for mode in POOLING_FLAGS.values() if mode in layer.modes)
    if layer.modes != in_order:
        return {"embedding_dimension": width, "pooling_mode": list(layer.modes), **prompt}
    flags = {
        flag: mode in layer.modes
        for flag, mode in POOLING_FLAGS.items()
        if mode in layer.modes or mode not in ("weightedmean", "lasttoken")
    }
    return {"word_embedding_dimension": width, **flags, **prompt}


def _write_settings(folder: Path, encoder: SentenceEncoder) -> None:
    if encoder.max_tokens is not None or encoder.lower_case:
        settings = {"max_seq_length": encoder.max_tokens, "do_lower_case": encoder.lower_case}
        write_json(folder / ENCODER_FILE, settings)
    settings = {
        "prompts": dict(encoder.prompts),
        "default_prompt_name": encoder.default_prompt_name,
        "similarity_fn_name": encoder.similarity,
    }
    if encoder.truncate_dim is not None:
        settings["truncate_dim"] = encoder.truncate_dim
    if any(settings.values()):
        write_json(folder / MODEL_FILE, settings)
