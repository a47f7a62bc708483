"""Checkpoints in, checkpoints out: whatever the format, a config, parameters and a tokenizer."""

import os
import warnings
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from t5jax.models import Params, T5Config
from t5jax.pretrained import mesh_tf, native
from t5jax.pretrained.hf import download_snapshot, holds_hf_model, open_hf, transformer_folder
from t5jax.pretrained.source import CheckpointSource, Progress
from t5jax.pretrained.t5x import STEP_PATTERN, find_t5x, open_t5x
from t5jax.tokenizers import Tokenizer, load_tokenizer


def load_pretrained(
    name_or_path: str | os.PathLike,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    encoder_only: bool = False,
    dtype: np.dtype | None = None,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> tuple[T5Config, Params, Tokenizer | None]:
    """Reads a checkpoint of any known format, or downloads one from the hub first.

    Args:
      name_or_path: as for `t5jax.load`.
      revision: branch, tag or commit on the hub.
      subfolder: where the model lies in a folder or repository of several.
      encoder_only: leave the decoder where it is.
      dtype: to hold parameters in; None keeps every one as it is in the files.
      mesh: to divide parameters over; None puts them on one device.
      progress: told the number of bytes read.
    Returns:
      Config, parameters, and the tokenizer if there is one beside them.
    """
    path = locate_checkpoint(name_or_path, revision=revision, subfolder=subfolder)
    if native.holds_native_model(path):
        config, params = native.load_native(
            path, dtype=dtype, mesh=mesh, encoder_only=encoder_only, progress=progress
        )
    else:
        source = open_checkpoint(path, encoder_only=encoder_only)
        for note in source.notes:
            warnings.warn(f"{path}: {note}", stacklevel=3)
        config, params = source.config, source.params(dtype=dtype, mesh=mesh, progress=progress)
    return config, params, find_tokenizer(path)


def locate_checkpoint(
    name_or_path: str | os.PathLike, *, revision: str | None = None, subfolder: str | None = None
) -> Path:
    """The file or folder that a user means, downloaded if it is on the hub."""
    path = Path(name_or_path).expanduser()
    given = path.exists() or mesh_tf.find_mesh_tf(path) is not None
    if not given:
        path = download_snapshot(str(name_or_path), revision=revision, subfolder=subfolder)
    elif revision is not None:
        raise ValueError(f"revision must be absent for a folder, got {revision!r} for {path}.")
    return path / subfolder if subfolder else path


def open_checkpoint(path: Path, *, encoder_only: bool = False) -> CheckpointSource:
    """Finds out what a file or folder holds, without reading weights.

    Args:
      path: as from `locate_checkpoint`.
      encoder_only: leave out the decoder.
    Raises:
      ValueError: it is no T5's checkpoint, or a damaged one.
    """
    if native.holds_native_model(path):
        newest = native.params_folders(path)[0]
        return native.open_native(path, params=newest, encoder_only=encoder_only)
    if holds_hf_model(path):
        return open_hf(path, encoder_only=encoder_only)
    if (found := find_t5x(path)) is not None:
        return open_t5x(found, encoder_only=encoder_only)
    if (found := mesh_tf.find_mesh_tf(path)) is not None:
        return mesh_tf.open_mesh_tf(found, encoder_only=encoder_only)
    if not path.is_dir():
        raise ValueError(
            f"{path} must be a folder with a model, a .safetensors file, a T5X checkpoint or a "
            "Mesh TensorFlow checkpoint's prefix; it is none of them."
        )
    names = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    raise ValueError(
        f"{path} must hold a model: config.json beside model.safetensors, pytorch_model.bin or "
        "flax_model.msgpack (Hugging Face), params/ (t5jax), checkpoints/ (a t5jax run), "
        f"checkpoint_<step>/ (T5X) or model.ckpt-<step>.index (Mesh TensorFlow); it holds {names}."
    )


def find_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer in a model's folder, or in the one above a checkpoint of a run."""
    for place in dict.fromkeys((path, transformer_folder(path))):
        if place.is_dir() and (found := load_tokenizer(place)) is not None:
            return found
    above = path.parent
    is_step = STEP_PATTERN.fullmatch(path.name) or not path.is_dir()
    return load_tokenizer(above) if is_step else None


def save_pretrained(
    path: str | os.PathLike,
    config: T5Config,
    params: Params,
    tokenizer: Tokenizer | None,
    *,
    overwrite: bool = False,
) -> None:
    """Writes a folder of ours; see `Text2Text.save`."""
    native.save_native(path, config, params, tokenizer, overwrite=overwrite)
