"""Folders that hold one saved model, of whichever format: their files, and replacing them."""

import contextlib
import functools
import re
from pathlib import Path

from t5jax.fileio import StrPath, atomic_folder

CONFIG_FILE = "config.json"
PARAMS = "params"

# All files that a saved model may have.
_MODEL_FILES = re.compile(
    r"(config|generation_config|conversion|modules|tokenizer|tokenizer_config|special_tokens_map|"
    r"added_tokens|vocab)\.json|params|params\.checksum|model.*\.safetensors(\.index\.json)?|"
    r"checkpoint_[0-9]+|[0-9]_(Pooling|Dense|Normalize)|(spiece|sentencepiece|tokenizer)\.model|"
    r"merges\.txt"
)

# One of these accompanies the config: t5jax's, Hugging Face's or T5X's weights.
_WEIGHTS = (PARAMS, "model.safetensors", "model.safetensors.index.json", "checkpoint_*")


def write_model_folder(
    path: StrPath, *, overwrite: bool
) -> contextlib.AbstractContextManager[Path]:
    """Fill the folder of a saved model, which appears whole or not at all.

    Args:
      path: the folder to write.
      overwrite: replace a saved model there; a folder with anything else in it never is.
    Returns:
      A context manager that yields a temporary folder; see `fileio.atomic_folder`.
    Raises:
      FileExistsError: on entering, if `path` holds files and must not be replaced.
    """
    return atomic_folder(path, check_replaceable=functools.partial(_check, overwrite=overwrite))


def _check(path: Path, *, overwrite: bool) -> None:
    if not overwrite:
        raise FileExistsError(
            f"{path} must be a new or an empty folder, and it holds files; choose another, or "
            "ask for it to be overwritten."
        )
    if not (path / CONFIG_FILE).is_file() or not any(
        file for pattern in _WEIGHTS for file in path.glob(pattern)
    ):
        raise FileExistsError(
            f"{path} must be a saved model to be overwritten, and it is not; choose another folder."
        )
    others = [p.name for p in path.iterdir() if not _MODEL_FILES.fullmatch(p.name)]
    if others:
        raise FileExistsError(
            f"{path} must hold nothing but a model to be overwritten, and it holds "
            f"{', '.join(sorted(others)[:5])} too; choose another folder."
        )
