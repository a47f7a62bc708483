"""Load, open and save checkpoints of any format: config, parameters and tokenizer."""

import warnings
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from t5jax.fileio import JsonObject, StrPath
from t5jax.models import Params, SentenceEncoder, T5Config
from t5jax.pretrained import mesh_tf, native
from t5jax.pretrained.hf import download_snapshot, holds_hf_model, open_hf
from t5jax.pretrained.hf_config import read_generation_file
from t5jax.pretrained.recognize import recognize
from t5jax.pretrained.sentence_transformers import transformer_folder
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
    """Load a checkpoint in any supported format, downloading it from the hub if needed.

    Args:
      name_or_path: hub id, or path of a file, a folder or a prefix of several files.
      revision: branch, tag or commit on the hub.
      subfolder: the model's subfolder, in a folder or repository with several models.
      encoder_only: whether to omit the decoder; its arrays are not read.
      dtype: dtype of the loaded parameters; None keeps the stored dtypes.
      mesh: mesh to shard the parameters over; None puts them on one device.
      progress: called with the number of bytes just read.
    Returns:
      Config, parameters, and the tokenizer or None.
    Raises:
      FileNotFoundError: there is no such file, folder or hub id.
      ConnectionError: the hub cannot be reached.
      ValueError: the checkpoint is damaged or not a T5.

    Examples:
      >>> t5jax.pretrained.save_pretrained("tiny-t5", config, params, None)
      >>> loaded_config, loaded, tokenizer = t5jax.pretrained.load_pretrained("tiny-t5")
      >>> loaded_config == config, tokenizer
      (True, None)
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
    """Find the file or folder of a checkpoint, downloading it if it is a hub id.

    Args:
      name_or_path: hub id, or path of a file, a folder or a prefix of several files.
      revision: branch, tag or commit on the hub.
      subfolder: the model's subfolder, in a folder or repository with several models.
    Returns:
      The path.
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
        raise ValueError(f"revision must not be set for a local path, got {revision!r} for {path}.")
    return path / subfolder if subfolder else path


def open_checkpoint(path: Path, *, encoder_only: bool = False) -> CheckpointSource:
    """Open a checkpoint in any supported format without reading its arrays.

    Args:
      path: file, folder or prefix of the checkpoint.
      encoder_only: whether to omit the decoder.
    Returns:
      The opened checkpoint: its config, and its parameters as lazy arrays.
    Raises:
      ValueError: the checkpoint is damaged or not a T5.

    Examples:
      >>> from pathlib import Path
      >>> t5jax.pretrained.save_pretrained("encoder", config, params, None)
      >>> source = t5jax.pretrained.open_checkpoint(Path("encoder"), encoder_only=True)
      >>> source.format, source.shapes["token_embedder/embedding"]
      ('t5jax', (97, 16))
    """
    if native.holds_native_model(path):
        newest = native.params_folders(path)[0]
        return native.open_native(path, params=newest, encoder_only=encoder_only)
    if holds_hf_model(path):
        return open_hf(path, encoder_only=encoder_only)
    if (what := recognize(path)) is not None:
        raise ValueError(f"{path} must be a checkpoint that t5jax reads, got {what}.")
    if (checkpoint := find_t5x(path)) is not None:
        return open_t5x(checkpoint, encoder_only=encoder_only)
    if (prefix := mesh_tf.find_mesh_tf(path)) is not None:
        return mesh_tf.open_mesh_tf(prefix, encoder_only=encoder_only)
    if not path.is_dir():
        raise ValueError(
            f"{path} must be a folder with a model, a .safetensors, .bin or .pt file, a T5X "
            "checkpoint or the prefix of a Mesh TensorFlow checkpoint; it is none of them."
        )
    names = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    raise ValueError(
        f"{path} must contain a model: config.json and model.safetensors, pytorch_model.bin or "
        "flax_model.msgpack (Hugging Face), params/ (t5jax), checkpoints/ (a t5jax run), "
        f"checkpoint_<step>/ (T5X) or model.ckpt-<step>.index (Mesh TensorFlow); got {names}."
    )


def find_tokenizer(path: Path) -> Tokenizer | None:
    """Load the tokenizer in a model's folder, or in the run folder that contains a checkpoint.

    Args:
      path: path returned by `locate_checkpoint`.
    Returns:
      The tokenizer, or None.
    Raises:
      ValueError: a tokenizer file is damaged.
    """
    for folder in dict.fromkeys((path, transformer_folder(path))):
        if folder.is_dir() and (tokenizer := load_tokenizer(folder)) is not None:
            return tokenizer
    is_step = STEP_PATTERN.fullmatch(path.name) or not path.is_dir()
    return load_tokenizer(path.parent) if is_step else None


def find_generation_settings(path: Path) -> JsonObject:
    """Read the generation_config.json of a checkpoint.

    Args:
      path: path returned by `locate_checkpoint`.
    Returns:
      The settings, with transformers' names; empty if there are none.
    Raises:
      ValueError: a file is not a JSON object.
    """
    folder = path if path.is_dir() else path.parent
    return read_generation_file(folder)


def save_pretrained(
    path: StrPath,
    config: T5Config,
    params: Params,
    tokenizer: Tokenizer | None,
    *,
    generation: JsonObject | None = None,
    sentence_encoder: SentenceEncoder | None = None,
    overwrite: bool = False,
) -> None:
    """Save a model in t5jax's own format.

    Args:
      path: folder to write, atomically.
      config: model config.
      params: model parameters.
      tokenizer: tokenizer to save with them, or None.
      generation: contents of generation_config.json; empty or None for no file.
      sentence_encoder: layers after the encoder and settings of a sentence encoder, or None.
      overwrite: whether to replace a saved model at `path`.
    Raises:
      FileExistsError: `path` contains files that must not be replaced.

    Examples:
      >>> from pathlib import Path
      >>> t5jax.pretrained.save_pretrained("model", config, params, None)
      >>> sorted(path.name for path in Path("model").iterdir())
      ['config.json', 'params', 'params.checksum']
    """
    native.save_native(
        path,
        config,
        params,
        tokenizer,
        generation=generation,
        sentence_encoder=sentence_encoder,
        overwrite=overwrite,
    )
