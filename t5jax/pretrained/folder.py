"""Our own folder: `config.json`, tokenizer files, `params/` or a run's `checkpoints/<step>/`."""

import contextlib
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from t5jax import checkpoint, tokenizer
from t5jax.config import T5Config
from t5jax.model import Params, abstract_params
from t5jax.tokenizer import Tokenizer

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
PARAMS = "params"
CHECKSUM = "params.checksum"


def holds_model(path: Path) -> bool:
    """Whether `load` is the reader for this folder."""
    return (path / CONFIG_FILE).is_file() and (
        (path / PARAMS).is_dir() or (path / CHECKPOINTS).is_dir()
    )


def load(path: Path) -> tuple[T5Config, Params, Tokenizer | None]:
    """Config, parameters and tokenizer of a saved model, or of a run's newest checkpoint.

    Raises:
      ValueError: the run has no checkpoint yet, or the files are damaged or do not fit together.
    """
    config = T5Config.from_file(path / CONFIG_FILE)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        abstract_params(config),
    )
    if (path / PARAMS).is_dir():
        params = checkpoint.load_tree(path / PARAMS, abstract)
        expected = path / CHECKSUM
        if expected.is_file() and expected.read_text().strip() != _checksum(params):
            raise ValueError(f"{path / PARAMS} is damaged (its checksum differs); copy it again.")
    else:
        params = _newest_params(path / CHECKPOINTS, abstract)
    return config, params, tokenizer.load(path)


def _newest_params(path: Path, abstract: Params) -> Params:
    """Parameters of the newest checkpoint that is whole; says which ones are not."""
    failure: ValueError | None = None
    for step in reversed(checkpoint.complete_steps(path)):
        try:
            return checkpoint.load_item(path / str(step), PARAMS, abstract)
        except checkpoint.OtherArrays:
            raise
        except ValueError as error:
            warnings.warn(f"{error} Trying the checkpoint before it.", stacklevel=4)
            failure = failure or error
    if failure is not None:
        raise failure
    raise ValueError(f"{path} must hold a checkpoint, but the run has not saved one yet.")


def save(
    path: str | os.PathLike,
    config: T5Config,
    params: Params,
    tokenizer: Tokenizer | None,
    *,
    overwrite: bool = False,
) -> None:
    """Writes a folder that `load` reads; see `Text2Text.save`."""
    with new_folder(path, overwrite=overwrite) as temporary:
        (temporary / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
        checkpoint.save_tree(temporary / PARAMS, params)
        (temporary / CHECKSUM).write_text(_checksum(params) + "\n")
        if tokenizer is not None:
            tokenizer.save(temporary)


def _checksum(params: Params) -> str:
    # Of float32, as which they are loaded.
    wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    return str(int(checkpoint.checksum(wide)))


@contextlib.contextmanager
def new_folder(path: str | os.PathLike, *, overwrite: bool) -> Iterator[Path]:
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
        weights = (path / PARAMS, path / "model.safetensors")
        if not (path / CONFIG_FILE).is_file() or not any(file.exists() for file in weights):
            raise FileExistsError(
                f"{path} must be a saved model to be overwritten, and it is not; "
                "choose another folder."
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
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
