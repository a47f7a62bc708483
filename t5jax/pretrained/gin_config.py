"""Configs of T5X and Mesh TensorFlow checkpoints, whose only config file, if any, is gin."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from t5jax.fileio import read_json_object
from t5jax.models import T5Config
from t5jax.pretrained.hf_config import read_hf_config
from t5jax.pretrained.infer_config import infer_fields
from t5jax.pretrained.model_folder import CONFIG_FILE

_GIN_FILES = ("config.gin", "operative_config.gin")
_GIN_ACTIVATIONS = re.compile(
    r"(?m)^[^#\n]*(?:mlp_activations|MlpBlock\.activations|DenseReluDense\.activation)\s*=[\s\\]*"
    r"([\[(][^\])]*[\])]|['\"][^'\"]*['\"])"
)
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu_tanh", "swish": "silu", "silu": "silu"}


def read_gin_config(
    folders: Sequence[Path],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    source: Path,
    notes: list[str],
) -> T5Config:
    """Read the config of a checkpoint, inferring missing fields.

    Sizes are inferred from the parameters, and the activation is read from a gin file.  A
    `config.json`, t5jax's or Hugging Face's, takes precedence.

    Args:
      folders: folders to search for config files, in order of priority.
      shapes: shapes of the parameters, by t5jax path.
      source: checkpoint name for error messages.
      notes: list to append a note to for each assumption or external config file.
    Returns:
      The config.
    Raises:
      ValueError: a config.json is damaged, or the parameters are not those of a T5.
    """
    for file in (folder / CONFIG_FILE for folder in folders):
        if not file.is_file():
            continue
        keys = read_json_object(file)
        if "model_type" in keys:
            notes.append(f"the config was read from {file}.")
            return read_hf_config(file, shapes, notes=notes)
        if "d_model" in keys:
            return T5Config.from_file(file)
    fields = infer_fields(shapes, source=source)
    notes.append("sizes were inferred from the arrays; pad_id is assumed to be 0 and eos_id 1.")
    for file in (folder / name for folder in folders for name in _GIN_FILES):
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            values = [re.findall(r"[A-Za-z_]+", value) for value in _GIN_ACTIVATIONS.findall(text)]
            known = [_ACTIVATIONS[w] for words in values for w in words if w in _ACTIVATIONS]
            if known:
                return T5Config(**{**fields, "activation": known[-1]})
    notes.append(
        f"the activation is assumed to be {fields['activation']}, since no gin file states it."
    )
    return T5Config(**fields)
