"""t5jax's own format: `params/` of a saved model, or `checkpoints/<step>/` of a run."""

import functools
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from t5jax.checkpoint import (
    ArrayMismatch,
    check_shapes,
    checksum,
    complete_steps,
    recorded_checksum,
    save_tree,
    shapes_by_path,
)
from t5jax.fileio import JsonObject, StrPath, read_text, write_json
from t5jax.models import Params, SentenceEncoder, T5Config, abstract_params
from t5jax.pretrained import infer_config
from t5jax.pretrained.formats import open_zarr_folder
from t5jax.pretrained.model_folder import CONFIG_FILE, GENERATION_FILE, PARAMS, write_model_folder
from t5jax.pretrained.name_map import Leaf
from t5jax.pretrained.sentence_transformers import write_sentence_transformers
from t5jax.pretrained.source import CheckpointSource, Progress
from t5jax.tokenizers import Tokenizer

CHECKPOINTS = "checkpoints"
CHECKSUM = "params.checksum"

_AVERAGE = "average"


def holds_native_model(path: Path) -> bool:
    """Return whether `load_native` reads a folder."""
    return (path / CONFIG_FILE).is_file() and (
        (path / PARAMS).is_dir() or (path / CHECKPOINTS).is_dir()
    )


def load_native(
    path: Path,
    *,
    dtype: np.dtype | None,
    mesh: Mesh | None,
    encoder_only: bool,
    progress: Progress | None,
) -> tuple[T5Config, Params]:
    """Load a saved model, or the newest undamaged checkpoint of a run.

    Args:
      path: folder of the model or run.
      dtype: dtype of the loaded parameters; None keeps the stored dtypes.
      mesh: mesh to shard the parameters over; None puts them on one device.
      encoder_only: whether to omit the decoder.
      progress: called with the number of bytes just read.
    Returns:
      Config and parameters.
    Raises:
      ValueError: the run has no checkpoint yet, or the files are damaged or inconsistent.
    """
    failure: ValueError | None = None
    for params in params_folders(path):
        try:
            source = open_native(path, params=params, encoder_only=encoder_only)
            return source.config, source.load_params(dtype=dtype, mesh=mesh, progress=progress)
        except ArrayMismatch:
            raise
        except ValueError as error:
            if params.parent == path:
                raise
            warnings.warn(f"{error} Trying the previous checkpoint.", stacklevel=4)
            failure = failure or error
    assert failure is not None  # params_folders returns at least one
    raise failure


def params_folders(path: Path) -> list[Path]:
    """List the parameter folders of a saved model (one) or a run (newest first).

    Raises:
      ValueError: the run has no checkpoint yet.
    """
    if (path / PARAMS).is_dir():
        return [path / PARAMS]
    steps = complete_steps(path / CHECKPOINTS)
    if not steps:
        raise ValueError(
            f"{path / CHECKPOINTS} must contain a checkpoint, but the run has not saved one yet."
        )
    folders = [path / CHECKPOINTS / str(step) for step in reversed(steps)]
    # A run that averages its parameters evaluates the average, so that is the model to load.
    return [folder / (_AVERAGE if (folder / _AVERAGE).is_dir() else PARAMS) for folder in folders]


def open_native(path: Path, *, params: Path, encoder_only: bool = False) -> CheckpointSource:
    """Open a saved model or a checkpoint of a run without reading its arrays.

    Args:
      path: folder of the model or run.
      params: one of its `params_folders`.
      encoder_only: whether to omit the decoder.
    Raises:
      ValueError: the files are damaged.
      ArrayMismatch: the arrays do not match the config.
    """
    config = T5Config.from_file(path / CONFIG_FILE)
    arrays = open_zarr_folder(params) if params.is_dir() else {}
    if not arrays:
        raise ValueError(
            f"{params} must be a folder of arrays written by t5jax, got none; choose another."
        )
    shapes = {name: array.shape for name, array in arrays.items()}
    check_shapes(params, shapes, shapes_by_path(abstract_params(config)))
    layout = {name: Leaf((name,), (), False) for name in arrays}
    ignored: dict[str, str] = {}
    if encoder_only:
        config = config.replace(num_decoder_layers=0)
        infer_config.drop_decoder(layout, ignored)
    return CheckpointSource(
        path=params,
        format="t5jax" if params.parent == path else "a run of t5jax",
        config=config,
        arrays=arrays,
        layout=layout,
        ignored=ignored,
        check=None if encoder_only else functools.partial(_check_checksum, params),
    )


def _check_checksum(folder: Path, params: Params) -> None:
    file = folder.parent / CHECKSUM
    if folder.parent.name.isdigit() and not file.is_file():
        expected = recorded_checksum(folder.parent, folder.name)
    elif file.is_file():
        expected = read_text(file).strip()
    else:
        return
    if str(expected) != _checksum(params):
        raise ValueError(f"{folder} is damaged (its checksum differs); copy it again.")


def save_native(
    path: StrPath,
    config: T5Config,
    params: Params,
    tokenizer: Tokenizer | None,
    *,
    generation: JsonObject | None = None,
    sentence_encoder: SentenceEncoder | None = None,
    overwrite: bool = False,
) -> None:
    """Write a folder that `load_native` reads.

    Args:
      path: folder to write, atomically.
      config: model config.
      params: model parameters.
      tokenizer: tokenizer to save with them, or None.
      generation: contents of generation_config.json; empty or None for no file.
      sentence_encoder: layers after the encoder and settings, in sentence-transformers' format.
      overwrite: whether to replace a saved model at `path`.
    Raises:
      FileExistsError: `path` contains files that must not be replaced.
    """
    with write_model_folder(path, overwrite=overwrite) as folder:
        (folder / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
        save_tree(folder / PARAMS, params)
        (folder / CHECKSUM).write_text(_checksum(params) + "\n")
        if sentence_encoder is not None:
            write_sentence_transformers(
                folder,
                sentence_encoder,
                d_model=config.d_model,
                projection=np.asarray(params["projection"]["kernel"])
                if config.projection_dim
                else None,
            )
        if tokenizer is not None:
            tokenizer.save(folder)
        if generation:
            write_json(folder / GENERATION_FILE, generation)


def _checksum(params: Params) -> str:
    # Computed in float32, since parameters may be loaded in another dtype than they were saved in.
    wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    return str(int(checksum(wide)))
