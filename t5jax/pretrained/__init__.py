"""Checkpoints in, checkpoints out: whatever the format, a config, parameters and a tokenizer."""

import os
from pathlib import Path

from t5jax import tokenizer
from t5jax.config import T5Config
from t5jax.model import Params
from t5jax.pretrained import folder, hf, hub
from t5jax.pretrained.folder import save as save
from t5jax.tokenizer import Tokenizer


def load(
    name_or_path: str | os.PathLike, *, revision: str | None = None
) -> tuple[T5Config, Params, Tokenizer | None]:
    """Reads a folder of any known format, or downloads one from the hub first.

    Args:
      name_or_path: as for `t5jax.load`.
      revision: branch, tag or commit on the hub.
    Returns:
      Config, float32 parameters, and the tokenizer if the folder has one.
    """
    path = Path(name_or_path).expanduser()
    if not path.exists():
        path = hub.download(str(name_or_path), revision=revision)
    elif revision is not None:
        raise ValueError(f"revision must be absent for a folder, got {revision!r} for {path}.")
    if not path.is_dir():
        raise ValueError(f"{path} must be a folder that holds config.json and weights, not a file.")
    if folder.holds_model(path):
        return folder.load(path)
    if hf.holds_model(path):
        return *hf.load(path), tokenizer.load(path)
    names = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    raise ValueError(
        f"{path} must hold a model: config.json beside model.safetensors (Hugging Face), params/ "
        f"(t5jax) or checkpoints/ (a t5jax run); it holds {names}."
    )
