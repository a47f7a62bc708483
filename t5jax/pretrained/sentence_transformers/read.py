"""Sentence encoders in sentence-transformers' format: a T5 encoder and the layers after it.

`modules.json` lists the layers, each with a folder of its own; sentence-T5 and GTR
(arXiv:2108.08877, 2112.07899) average the encoder states, project the mean without a bias, and
normalize it.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, cast, get_args

import numpy as np

from t5jax.errors import shorten
from t5jax.fileio import JsonObject, is_plain_name, read_json, read_json_object
from t5jax.models import (
    ACTIVATIONS,
    POOLING_MODES,
    Dense,
    Feature,
    Layer,
    LayerNorm,
    Normalize,
    Pooling,
    PoolingMode,
    SentenceEncoder,
    T5Config,
)
from t5jax.pretrained.formats import LazyArray, open_pytorch, open_safetensors, read_array
from t5jax.pretrained.sentence_transformers.settings import read_settings

MODULES_FILE = "modules.json"
PROJECTION_TENSOR = "2_Dense/linear.weight"
WEIGHT, BIAS, RESIDUAL = "linear.weight", "linear.bias", "residual.weight"

# Flags of versions before 5.4, in the order in which they concatenate the vectors.
POOLING_FLAGS: dict[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_POOLING_KEYS = {
    "embedding_dimension",
    "word_embedding_dimension",
    "pooling_mode",
    "include_prompt",
    *POOLING_FLAGS,
}
_LIBRARY = "sentence_transformers."
_KINDS = ("Transformer", "Pooling", "Dense", "LayerNorm", "Dropout", "Normalize")

# sentence-transformers knows these by name, since their files do not say it.
_WITHOUT_PROMPT = tuple(f"hkunlp/instructor-{size}" for size in ("base", "large", "xl"))


class _Module(NamedTuple):
    """Layer of a folder, without its arrays.

    Attributes:
      layer: the layer; a `LayerNorm` has empty arrays.
      folder: folder of the layer.
      settings: content of its config.json.
    """

    layer: Layer
    folder: Path
    settings: JsonObject


def transformer_folder(path: Path) -> Path:
    """Return the folder of the T5 encoder, which is a subfolder in old versions."""
    for module in _modules(path):
        if _kind(module) == "Transformer":
            return _inside(path, module)
    return path


def open_projection(path: Path) -> LazyArray | None:
    """Open the [out, in] weight of the projection, a dense layer as in sentence-T5.

    Args:
      path: path of the folder.
    Returns:
      The weight; None if the folder is not a sentence encoder, or has no such layer.
    Raises:
      ValueError: the files are damaged, or a module is not supported.
    """
    modules = _read_modules(path)
    projection = _projection(modules)
    if projection is None:
        return None
    return _open_arrays(projection.folder, [WEIGHT])[WEIGHT]


def read_sentence_encoder(
    path: Path, config: T5Config, *, name: str = ""
) -> SentenceEncoder | None:
    """Read the layers after the T5 encoder, and the settings for texts.

    Args:
      path: path of the folder.
      config: architecture of the T5.
      name: hub id of the model.
    Returns:
      The sentence encoder; None if the folder is not one.
    Raises:
      ValueError: the files are damaged, or a module or setting is not supported.
    """
    if not _modules(path):
        return None
    modules = _read_modules(path)
    projection = _projection(modules)
    widths: dict[str, int] = {"token_embeddings": config.d_model}
    layers = []
    for module in modules:
        is_projection = projection is not None and module is projection
        layer = module.layer if is_projection else _with_arrays(module, widths)
        if is_projection:
            widths["sentence_embedding"] = config.projection_dim
        if isinstance(layer, Pooling) and name in _WITHOUT_PROMPT:
            layer = dataclasses.replace(layer, include_prompt=False)
        layers.append(layer)
    if "sentence_embedding" not in widths:
        raise ValueError(f"{path / MODULES_FILE} must list a Pooling module, got none.")
    return SentenceEncoder(layers=tuple(layers), **read_settings(path, transformer_folder(path)))


def _read_modules(path: Path) -> list[_Module]:
    """Read the settings of all modules after the Transformer."""
    result = []
    for index, module in enumerate(_modules(path)):
        kind, folder = _kind(module), _inside(path, module)
        if kind not in _KINDS:
            names = f"{', '.join(_KINDS[:-1])} and {_KINDS[-1]}"
            raise ValueError(
                f"{path / MODULES_FILE} must list only {names} of sentence_transformers, got "
                f"{module.get('type')!r:.100}."
            )
        if (kind == "Transformer") != (index == 0):
            raise ValueError(
                f"{path / MODULES_FILE} must list one Transformer, and list it first, got "
                f"{kind} as module {index}."
            )
        # Dropout has an effect in training only.
        if kind not in ("Transformer", "Dropout"):
            result.append(_read_module(kind, folder))
    return result


def _read_module(kind: str, folder: Path) -> _Module:
    config = folder / "config.json"
    if kind == "Normalize" and not config.is_file():
        return _Module(Normalize(), folder, {})  # as saved before version 5.4
    if not config.is_file():
        raise ValueError(f"{config} is missing, but {MODULES_FILE} refers to it; download it too.")
    settings = read_json_object(config)
    if kind == "LayerNorm":
        empty = np.zeros(0, np.float32)
        return _Module(LayerNorm(scale=empty, bias=empty), folder, settings)
    readers = {"Pooling": _read_pooling, "Dense": _read_dense, "Normalize": _read_normalize}
    return _Module(readers[kind](config, settings), folder, settings)


def _read_pooling(config: Path, settings: JsonObject) -> Pooling:
    for key in settings:
        if key not in _POOLING_KEYS:
            raise ValueError(f"{config} must have only known settings, got {shorten(key)}.")
    modes = settings.get("pooling_mode")
    if modes is None:
        # Without a flag, the mode is the mean.
        modes = [mode for flag, mode in POOLING_FLAGS.items() if settings.get(flag)] or ["mean"]
    modes = modes if isinstance(modes, list) else [modes]
    if not modes or not all(isinstance(mode, str) and mode in POOLING_MODES for mode in modes):
        raise ValueError(
            f"{config} must set pooling_mode to some of {', '.join(POOLING_MODES)}, got "
            f"{json.dumps(settings.get('pooling_mode'))[:200]}."
        )
    return Pooling(
        modes=tuple(cast(list[PoolingMode], modes)),
        include_prompt=_flag(config, settings, "include_prompt"),
    )


def _read_dense(config: Path, settings: JsonObject) -> Dense:
    # sentence-transformers defaults to tanh.
    activation = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    name = "Identity" if activation is None else str(activation).rpartition(".")[2]
    if activation is not None and not str(activation).startswith("torch.nn."):
        name = ""
    if name not in ACTIVATIONS:
        raise ValueError(
            f"{config} must set activation_function to one of torch.nn's {', '.join(ACTIVATIONS)}, "
            f"got {activation!r:.100}."
        )
    source, target = _features(config, settings)
    return Dense(
        activation=name,
        residual=_flag(config, settings, "use_residual", default=False),
        source=source,
        target=target,
    )


def _read_normalize(config: Path, settings: JsonObject) -> Normalize:
    source, target = _features(config, settings)
    return Normalize(source=source, target=target)


def _features(config: Path, settings: JsonObject) -> tuple[Feature, Feature]:
    source = settings.get("module_input_name", "sentence_embedding")
    target = settings.get("module_output_name") or source
    for key, name in (("module_input_name", source), ("module_output_name", target)):
        if name not in get_args(Feature):
            raise ValueError(
                f"{config} must set {key} to one of {', '.join(get_args(Feature))}, got "
                f"{name!r:.100}."
            )
    return source, target


def _flag(config: Path, settings: JsonObject, key: str, *, default: bool = True) -> bool:
    value = settings.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{config} must set {key} to true or false, got {value!r:.40}.")
    return value


def _has_bias(module: _Module) -> bool:
    return _flag(module.folder / "config.json", module.settings, "bias")


def _projection(modules: list[_Module]) -> _Module | None:
    """Return the module that is a parameter of the T5: the only dense layer, if it is plain."""
    dense = [module for module in modules if isinstance(module.layer, Dense)]
    biases = [_has_bias(module) for module in dense]
    if len(dense) != 1 or biases[0] or dense[0].layer != Dense():
        return None
    pooled = [module.layer for module in modules if isinstance(module.layer, Pooling)]
    before = [module.layer for module in modules[: modules.index(dense[0])]]
    if len(pooled) != 1 or len(pooled[0].modes) != 1 or pooled[0] not in before:
        return None
    return dense[0]


def _with_arrays(module: _Module, widths: dict[str, int]) -> Layer:
    """Read the arrays of a layer.

    Args:
      module: the module.
      widths: number of features of each feature so far; updated.
    Returns:
      The layer with its arrays.
    Raises:
      ValueError: an array is missing or has another shape.
    """
    layer, folder = module.layer, module.folder
    if isinstance(layer, Pooling):
        widths["sentence_embedding"] = widths["token_embeddings"] * len(layer.modes)
        return layer
    source = "sentence_embedding" if isinstance(layer, LayerNorm) else layer.source
    if source not in widths:
        raise ValueError(
            f"{folder.parent / MODULES_FILE} must list a Pooling before {folder.name}, got none."
        )
    width = widths[source]
    if isinstance(layer, Normalize):
        widths[layer.target] = width
        return layer
    if isinstance(layer, LayerNorm):
        names = {"scale": "norm.weight", "bias": "norm.bias"}
        arrays = _read_arrays(folder, dict.fromkeys(names.values(), (width,)))
        return LayerNorm(**{ours: arrays[theirs] for ours, theirs in names.items()})
    out = module.settings.get("out_features")
    if not isinstance(out, int) or out < 1:
        raise ValueError(f"{folder / 'config.json'} must set out_features, got {out!r:.40}.")
    widths[layer.target] = out
    shapes: dict[str, tuple[int, ...]] = {WEIGHT: (out, width)}
    if _has_bias(module):
        shapes[BIAS] = (out,)
    if layer.residual and out != width:
        shapes[RESIDUAL] = (out, width)
    arrays = _read_arrays(folder, shapes)
    return dataclasses.replace(
        layer,
        kernel=arrays[WEIGHT].T,
        bias=arrays.get(BIAS),
        residual_kernel=arrays[RESIDUAL].T if RESIDUAL in arrays else None,
    )


def _read_arrays(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Read the arrays of a module, in float32."""
    arrays = _open_arrays(folder, list(shapes))
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(
                f"{folder}: {name} must have shape {shape}, got {tuple(arrays[name].shape)}."
            )
    return {name: read_array(arrays[name]).astype(np.float32) for name in shapes}


def _open_arrays(folder: Path, names: list[str]) -> Mapping[str, LazyArray]:
    openers = {"model.safetensors": open_safetensors, "pytorch_model.bin": open_pytorch}
    for name, opener in openers.items():
        if (folder / name).is_file():
            arrays = opener(folder / name)
            if sorted(arrays) != sorted(names):
                raise ValueError(
                    f"{folder / name} must contain only {', '.join(names)}, got "
                    f"{', '.join(arrays)[:200]}."
                )
            return arrays
    raise ValueError(f"{folder} must contain model.safetensors or pytorch_model.bin, got neither.")


def _modules(path: Path) -> list[JsonObject]:
    file = path / MODULES_FILE
    if not file.is_file():
        return []
    modules = read_json(file)
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise ValueError(f"{file} must be a list of modules.")
    return modules


def _kind(module: JsonObject) -> str:
    """Return the name of a module's class, or "" if it is code of the repository."""
    library, _, kind = str(module.get("type")).rpartition(".")
    return kind if f"{library}.".startswith(_LIBRARY) else ""


def _inside(path: Path, module: JsonObject) -> Path:
    name = module.get("path")
    # The encoder's path is empty.
    if not isinstance(name, str) or not (name == "" or is_plain_name(name)):
        raise ValueError(
            f"{path / MODULES_FILE}: a module must be in a direct subfolder, got {name!r:.100}."
        )
    return path / name
