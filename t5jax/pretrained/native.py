"""Our own folder: `config.json`, tokenizer files, `params/` or a run's `checkpoints/<step>/`."""

import contextlib
import functools
import os
import re
import shutil
import time
import uuid
import warnings
from collections.abc import Iterator
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
from t5jax.models import Params, T5Config, abstract_params
from t5jax.pretrained import infer_config
from t5jax.pretrained.formats import open_zarr_folder
from t5jax.pretrained.name_map import Leaf
from t5jax.pretrained.source import CheckpointSource, Progress
from t5jax.tokenizers import Tokenizer

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
PARAMS = "params"
_AVERAGE = "average"
CHECKSUM = "params.checksum"

# Tries to remove a folder, ten in a second.
_PATIENCE = 100

# Everything that a saved model may have.
_OURS = re.compile(
    r"(config|generation_config|conversion|modules|tokenizer|tokenizer_config|special_tokens_map|"
    r"added_tokens|vocab)\.json|params|params\.checksum|model.*\.safetensors(\.index\.json)?|"
    r"checkpoint_[0-9]+|[0-9]_(Pooling|Dense|Normalize)|(spiece|sentencepiece|tokenizer)\.model|"
    r"merges\.txt"
)

# What one of them has beside its config: our own, Hugging Face's, T5X's.
_SAVED = (PARAMS, "model.safetensors", "model.safetensors.index.json", "checkpoint_*")


def holds_native_model(path: Path) -> bool:
    """Whether `load_native` is the reader for this folder."""
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
    """Config and parameters of a saved model, or of a run's newest checkpoint that is whole.

    Raises:
      ValueError: the run has no checkpoint yet, or the files are damaged or do not fit together.
    """
    failure: ValueError | None = None
    for params in params_folders(path):
        try:
            source = open_native(path, params=params, encoder_only=encoder_only)
            return source.config, source.params(dtype=dtype, mesh=mesh, progress=progress)
        except ArrayMismatch:
            raise
        except ValueError as error:
            if params.parent == path:
                raise
            warnings.warn(f"{error} Trying the checkpoint before it.", stacklevel=4)
            failure = failure or error
    assert failure is not None  # for there is at least one folder
    raise failure


def params_folders(path: Path) -> list[Path]:
    """Where the parameters of a saved model lie, or those of a run's checkpoints, newest first.

    Raises:
      ValueError: the run has no checkpoint yet.
    """
    if (path / PARAMS).is_dir():
        return [path / PARAMS]
    steps = complete_steps(path / CHECKPOINTS)
    if not steps:
        raise ValueError(
            f"{path / CHECKPOINTS} must hold a checkpoint, but the run has not saved one yet."
        )
    folders = [path / CHECKPOINTS / str(step) for step in reversed(steps)]
    # A run that averages its parameters evaluates the average, and means it to be used.
    return [folder / (_AVERAGE if (folder / _AVERAGE).is_dir() else PARAMS) for folder in folders]


def open_native(path: Path, *, params: Path, encoder_only: bool = False) -> CheckpointSource:
    """What a folder of ours holds.

    Args:
      path: of the model.
      params: one of its `params_folders`.
      encoder_only: leave out the decoder.
    Raises:
      ValueError: the files are damaged.
      checkpoint.OtherArrays: the arrays are not those of the config.
    """
    config = T5Config.from_file(path / CONFIG_FILE)
    arrays = open_zarr_folder(params) if params.is_dir() else {}
    if not arrays:
        raise ValueError(
            f"{params} must be a folder of arrays written by t5jax; it holds none. Load another."
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
        check=None if encoder_only else functools.partial(_check, params),
    )


def _check(folder: Path, params: Params) -> None:
    file = folder.parent / CHECKSUM
    if folder.parent.name.isdigit() and not file.is_file():
        expected = recorded_checksum(folder.parent, folder.name)
    elif file.is_file():
        expected = file.read_text().strip()
    else:
        return
    if str(expected) != _checksum(params):
        raise ValueError(f"{folder} is damaged (its checksum differs); copy it again.")


def save_native(
    path: str | os.PathLike,
    config: T5Config,
    params: Params,
    tokenizer: Tokenizer | None,
    *,
    overwrite: bool = False,
) -> None:
    """Writes a folder that `load_native` reads; see `Text2Text.save`."""
    with atomic_folder(path, overwrite=overwrite) as temporary:
        (temporary / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
        save_tree(temporary / PARAMS, params)
        (temporary / CHECKSUM).write_text(_checksum(params) + "\n")
        if tokenizer is not None:
            tokenizer.save(temporary)


def _checksum(params: Params) -> str:
    # Of float32, as which they are loaded.
    wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    return str(int(checksum(wide)))


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike, *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place if the block succeeds.

    Raises:
      FileExistsError: `path` is not empty, and is not to be or must not be replaced.
    """
    path = Path(path).expanduser().resolve()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        if not overwrite:
            raise FileExistsError(
                f"{path} must be a new or an empty folder, and it holds files; choose another, or "
                "ask for it to be overwritten."
            )
        if not (path / CONFIG_FILE).is_file() or not any(
            file for pattern in _SAVED for file in path.glob(pattern)
        ):
            raise FileExistsError(
                f"{path} must be a saved model to be overwritten, and it is not; "
                "choose another folder."
            )
        others = [p.name for p in path.iterdir() if not _OURS.fullmatch(p.name)]
        if others:
            raise FileExistsError(
                f"{path} must hold nothing but a model to be overwritten, and it holds "
                f"{', '.join(sorted(others)[:5])} too; choose another folder."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    # Never a name that a killed process left behind.
    unique = uuid.uuid4().hex[:8]
    temporary = path.with_name(f".{path.name}.{unique}.tmp")
    replaced = path.with_name(f".{path.name}.{unique}.old")
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            path.rename(replaced)
        temporary.rename(path)
    finally:
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        _remove(temporary)
        _remove(replaced)


def _remove(path: Path) -> None:
    """Removes a folder, also while a library's threads still finish files in it."""
    for _ in range(_PATIENCE):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.1)
