"""Model folders in any format: their files, and how they are replaced."""

import contextlib
import functools
import re
from pathlib import Path

from t5jax.fileio import StrPath, atomic_folder

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
PARAMS = "params"

# All files that a saved model may contain.
_MODEL_FILES = re.compile(
    r"(config|generation_config|conversion|modules|tokenizer|tokenizer_config|special_tokens_map|"
    r"added_tokens|vocab|sentence_bert_config|config_sentence_transformers)\.json|params|"
    r"params\.checksum|model.*\.safetensors(\.index\.json)?|checkpoint_[0-9]+|"
    r"[0-9]+_(Pooling|Dense|LayerNorm|Normalize)|(spiece|sentencepiece|tokenizer)\.model|"
    r"merges\.txt"
)

# Weights of t5jax, Hugging Face or T5X; a saved model has one of these next to its config.
_WEIGHTS = (PARAMS, "model.safetensors", "model.safetensors.index.json", "checkpoint_*")


def write_model_folder(
    path: StrPath, *, overwrite: bool
) -> contextlib.AbstractContextManager[Path]:
    """Write a model folder atomically.

    Args:
      path: folder to write.
      overwrite: whether to replace a saved model there; a folder with any other file in it is never
        replaced.
    Returns:
      A context manager that yields a temporary folder; see `fileio.atomic_folder`.
    Raises:
      FileExistsError: on entering, if `path` contains files and must not be replaced.
    """
    return atomic_folder(path, check_replaceable=functools.partial(_check, overwrite=overwrite))


def _check(path: Path, *, overwrite: bool) -> None:
    if not overwrite:
        raise FileExistsError(
            f"{path} must be a new or an empty folder, but it contains files; choose another, or "
            "set overwrite."
        )
    if not (path / CONFIG_FILE).is_file() or not any(
        file for pattern in _WEIGHTS for file in path.glob(pattern)
    ):
        raise FileExistsError(
            f"{path} must be a saved model to be overwritten, but it is not; choose another folder."
        )
    others = [p.name for p in path.iterdir() if not _MODEL_FILES.fullmatch(p.name)]
    if others:
        raise FileExistsError(
            f"{path} must contain only a model to be overwritten, but it also contains "
            f"{', '.join(sorted(others)[:5])}; choose another folder."
        )
