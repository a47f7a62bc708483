"""Sentence encoders in sentence-transformers' format: a T5 encoder and a projection.

Sentence-T5 and GTR (arXiv:2108.08877, 2112.07899) average the encoder states, project the mean
without a bias, and normalize it; `modules.json` lists these steps.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from t5jax.fileio import is_plain_name, read_json, read_json_object, write_json
from t5jax.pretrained.formats import (
    LazyArray,
    SafetensorsWriter,
    open_pytorch,
    open_safetensors,
)

MODULES_FILE = "modules.json"
PROJECTION_TENSOR = "2_Dense/linear.weight"
_DENSE = "2_Dense"
_POOLING = "1_Pooling"
_WEIGHT = "linear.weight"
_TYPES = "sentence_transformers.models."
_SWITCH = "pooling_mode_"
_IDENTITY = "torch.nn.modules.linear.Identity"


def transformer_folder(path: Path) -> Path:
    """Return the folder of the T5 encoder, which is a subfolder in old versions."""
    for module in _modules(path):
        if _kind(module) == "Transformer":
            return _inside(path, module)
    return path


def open_projection(path: Path) -> LazyArray | None:
    """Open the [out, in] weight of the projection.

    Args:
      path: path of the folder.
    Returns:
      The weight; None if the folder is not a sentence encoder.
    Raises:
      ValueError: the files are damaged, or a module is not part of sentence-T5.
    """
    weight = None
    for module in _modules(path):
        kind = _kind(module)
        folder = _inside(path, module)
        if kind == "Pooling":
            _check_pooling(folder / "config.json")
        elif kind == "Dense":
            _check_dense(folder / "config.json")
            if weight is not None:
                raise ValueError(
                    f"{path / MODULES_FILE} must list one Dense module, as sentence-T5 does, got "
                    "several."
                )
            weight = _open_weight(folder)
        elif kind not in ("Transformer", "Normalize"):
            raise ValueError(
                f"{path / MODULES_FILE} must list only Transformer, Pooling, Dense and Normalize, "
                f"as sentence-T5 does, got {kind!r:.100}."
            )
    return weight


def _check_pooling(config: Path) -> None:
    settings = _settings(config)
    # One switch per mode; since version 5.4 one name or a list of names.
    named = settings.get("pooling_mode")
    modes = {key for key, on in settings.items() if on is True and key.startswith(_SWITCH)}
    if named not in ("mean", ["mean"]) and (
        named is not None or modes != {_SWITCH + "mean_tokens"}
    ):
        mode = ", ".join(sorted(modes)) if named is None else json.dumps(named)
        raise ValueError(
            f"{config} must set mean pooling over tokens, as sentence-T5 does, got "
            f"{mode[:200] or 'no mode'}."
        )


def _check_dense(config: Path) -> None:
    settings = _settings(config)
    # sentence-transformers defaults to tanh.
    activation = settings.get("activation_function", "tanh")
    if (
        settings.get("bias") is not False
        or settings.get("use_residual")
        or activation not in (_IDENTITY, None)
    ):
        raise ValueError(
            f"{config} must be a projection without bias, activation or residual, as in "
            f"sentence-T5, got {json.dumps(dict(settings))[:200]}."
        )


def _settings(config: Path) -> Mapping[str, Any]:
    if not config.is_file():
        raise ValueError(f"{config} is missing, but {MODULES_FILE} refers to it; download it too.")
    return read_json_object(config)


def write_sentence_transformers(folder: Path, kernel: np.ndarray) -> None:
    """Write the files that turn a folder with a T5 encoder into a sentence encoder.

    Args:
      folder: folder of the encoder.
      kernel: [D, projection_dim] projection.
    """
    kinds = {"": "Transformer", _POOLING: "Pooling", _DENSE: "Dense", "3_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": name, "type": _TYPES + kind}
        for i, (name, kind) in enumerate(kinds.items())
    ]
    (folder / MODULES_FILE).write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
    for name in list(kinds)[1:]:
        (folder / name).mkdir()
    pooling = {"word_embedding_dimension": kernel.shape[0], "pooling_mode_mean_tokens": True}
    others = ("cls_token", "max_tokens", "mean_sqrt_len_tokens")
    write_json(
        folder / _POOLING / "config.json",
        {**pooling, **{f"pooling_mode_{other}": False for other in others}},
    )
    dense = {
        "in_features": kernel.shape[0],
        "out_features": kernel.shape[1],
        "bias": False,
        "activation_function": _IDENTITY,
    }
    write_json(folder / _DENSE / "config.json", dense)
    entries = {_WEIGHT: (kernel.shape[::-1], kernel.dtype)}
    writer = SafetensorsWriter(folder / _DENSE / "model.safetensors", entries)
    writer.write(_WEIGHT, kernel.T)
    writer.close()


def _modules(path: Path) -> list[dict[str, Any]]:
    file = path / MODULES_FILE
    if not file.is_file():
        return []
    modules = read_json(file)
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise ValueError(f"{file} must be a list of modules.")
    return modules


def _kind(module: dict[str, Any]) -> str:
    return str(module.get("type")).rpartition(".")[2]


def _inside(path: Path, module: dict[str, Any]) -> Path:
    name = module.get("path")
    # The encoder's path is empty.
    if not isinstance(name, str) or not (name == "" or is_plain_name(name)):
        raise ValueError(
            f"{path / MODULES_FILE}: a module must be in a direct subfolder, got {name!r:.100}."
        )
    return path / name


def _open_weight(folder: Path) -> LazyArray:
    openers = {
        "model.safetensors": open_safetensors,
        "pytorch_model.bin": open_pytorch,
    }
    for name, opener in openers.items():
        if (folder / name).is_file():
            arrays = opener(folder / name)
            if list(arrays) != [_WEIGHT]:
                raise ValueError(
                    f"{folder / name} must contain only {_WEIGHT}, got {', '.join(arrays)[:200]}."
                )
            return arrays[_WEIGHT]
    raise ValueError(f"{folder} must contain model.safetensors or pytorch_model.bin, got neither.")
