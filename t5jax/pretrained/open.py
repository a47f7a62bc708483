"""Load, open and save checkpoints of any format: config, parameters and tokenizer."""

import warnings
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from t5jax.fileio import StrPath
from t5jax.models import Params, T5Config
from t5jax.pretrained import mesh_tf, native
from t5jax.pretrained.hf import download_snapshot, holds_hf_model, open_hf, transformer_folder
from t5jax.pretrained.source import CheckpointSource, Progress
from t5jax.pretrained.t5x import STEP_PATTERN, find_t5x, open_t5x
from t5jax.tokenizers import Tokenizer, load_tokenizer


def load_pretrained(
    name_or_path: StrPath,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    encoder_only: bool = False,
    dtype: np.dtype | None = None,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> tuple[T5Config, Params, Tokenizer | None]:
    """Load a checkpoint of any known format, downloaded from the hub if necessary.

    Args:
      name_or_path: a hub id, or the path of a file or folder or the prefix of several files.
      revision: branch, tag or commit on the hub.
      subfolder: of the model, in a folder or repository of several.
      encoder_only: leave out the decoder, which is not even read.
      dtype: of the loaded parameters; None keeps every one as it is stored.
      mesh: to shard the parameters over; None puts them on one device.
      progress: called with the number of bytes read.
    Returns:
      Config, parameters, and the tokenizer if the checkpoint has one.
    Raises:
      FileNotFoundError: there is no such file, folder or hub id.
      ConnectionError: the hub cannot be reached.
      ValueError: the checkpoint is damaged, or not a T5's.
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
        config, params = (
            source.config,
            source.load_params(dtype=dtype, mesh=mesh, progress=progress),
        )
    return config, params, find_tokenizer(path)


def locate_checkpoint(
    name_or_path: StrPath, *, revision: str | None = None, subfolder: str | None = None
) -> Path:
    """Find the file or folder of a checkpoint, downloading it if it is on the hub.

    Args:
      name_or_path: a hub id, or the path of a file or folder or the prefix of several files.
      revision: branch, tag or commit on the hub.
      subfolder: of the model, in a folder or repository of several.
    Raises:
      FileNotFoundError: there is no such file, folder or hub id.
      ConnectionError: the hub cannot be reached.
      ValueError: a revision is set for a folder.
    """
    path = Path(name_or_path).expanduser()
    is_local = path.exists() or mesh_tf.find_mesh_tf(path) is not None
    if not is_local:
        path = download_snapshot(str(name_or_path), revision=revision, subfolder=subfolder)
    elif revision is not None:
        raise ValueError(f"revision must be absent for a folder, got {revision!r} for {path}.")
    return path / subfolder if subfolder else path


def open_checkpoint(path: Path, *, encoder_only: bool = False) -> CheckpointSource:
    """Open a checkpoint of any known format, without reading its arrays.

    Args:
      path: that `locate_checkpoint` returned.
      encoder_only: leave out the decoder.
    Raises:
      ValueError: the checkpoint is damaged, or not a T5's.
    """
    if native.holds_native_model(path):
        newest = native.params_folders(path)[0]
        return native.open_native(path, params=newest, encoder_only=encoder_only)
    if holds_hf_model(path):
        return open_hf(path, encoder_only=encoder_only)
    if (checkpoint := find_t5x(path)) is not None:
        return open_t5x(checkpoint, encoder_only=encoder_only)
    if (prefix := mesh_tf.find_mesh_tf(path)) is not None:
        return mesh_tf.open_mesh_tf(prefix, encoder_only=encoder_only)
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
    """Load the tokenizer in a model's folder, or in the run's folder of a checkpoint.

    Args:
      path: that `locate_checkpoint` returned.
    Returns:
      The tokenizer; None if there is none.
    Raises:
      ValueError: a file of the tokenizer is damaged.
    """
    for folder in dict.fromkeys((path, transformer_folder(path))):
        if folder.is_dir() and (tokenizer := load_tokenizer(folder)) is not None:
            return tokenizer
    is_step = STEP_PATTERN.fullmatch(path.name) or not path.is_dir()
    return load_tokenizer(path.parent) if is_step else None


def save_pretrained(
    path: StrPath,
    config: T5Config,
    params: Params,
    tokenizer: Tokenizer | None,
    *,
    overwrite: bool = False,
) -> None:
    """Save a model in t5jax's own format.

    Args:
      path: appears whole or not at all.
      config: of the model.
      params: its parameters.
      tokenizer: saved next to them, if there is one.
      overwrite: replace a saved model there.
    Raises:
      FileExistsError: there are files at `path` that must not be replaced.
    """
    native.save_native(path, config, params, tokenizer, overwrite=overwrite)
