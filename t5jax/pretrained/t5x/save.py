"""Export of T5X checkpoints: a msgpack file, and a folder of Zarr chunks for every array.

They contain the model without optimizer state, like T5X's own exports for inference.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from t5jax.fileio import JsonObject, StrPath
from t5jax.models import T5Config
from t5jax.pretrained.formats import tensorstore_reason
from t5jax.pretrained.model_folder import CONFIG_FILE, write_model_folder
from t5jax.pretrained.name_map import PROJECTION_PATH
from t5jax.pretrained.source import Weights, WrittenArray, num_layers
from t5jax.pretrained.t5x import load
from t5jax.tokenizers import Tokenizer

_FOLDER = "checkpoint_0"
_VERSION = 3

# T5X reads several whole chunks at a time.
_CHUNK_BYTES = 64 << 20
_ZARR_TYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "bfloat16"}


def save_t5x(
    path: StrPath,
    config: T5Config,
    weights: Weights,
    tokenizer: Tokenizer | None,
    *,
    scanned: bool = False,
    overwrite: bool = False,
    written: Callable[[WrittenArray], object] = lambda _: None,
) -> None:
    """Write a T5X checkpoint, with t5jax's config and tokenizer next to it.

    T5X restores the subfolder `checkpoint_0`.  Only one parameter is read into memory at a time.

    Args:
      path: folder to write, atomically.
      config: model config.
      weights: model parameters, in the dtypes to write.
      tokenizer: tokenizer to save with them, or None.
      scanned: whether to stack the layers into one array, for models that scan over layers.
      overwrite: whether to replace a saved model at `path`.
      written: callback for each array that has been written.
    Raises:
      FileExistsError: `path` contains files that must not be replaced.
      ValueError: the model has a sentence encoder's projection, which T5X does not support.

    Examples:
      >>> from pathlib import Path
      >>> weights = t5jax.pretrained.Weights.from_params(params)
      >>> t5jax.pretrained.t5x.save_t5x("model", config, weights, None)
      >>> sorted(path.name for path in Path("model").iterdir())
      ['checkpoint_0', 'config.json']
    """
    if PROJECTION_PATH in weights.shapes:
        raise ValueError(
            f"a T5X checkpoint must be a plain T5, got one with {PROJECTION_PATH}; use the "
            "Hugging Face or t5jax format."
        )
    name_map = load.t5x_name_map(scanned=scanned, gated=config.gated_ff)
    with write_model_folder(path, overwrite=overwrite) as folder:
        checkpoint = folder / _FOLDER
        checkpoint.mkdir()
        tree: JsonObject = {}
        for ours in weights.shapes:
            leaf = name_map.leaf(ours, num_layers(config, ours))
            for name, values in leaf.split(weights.read(ours)):
                theirs = np.ascontiguousarray(values)
                _insert(tree, name.split("/"), _write_array(checkpoint, name, theirs))
                written(WrittenArray.from_values(name, ours, theirs))
        _write_tree(checkpoint / load.CHECKPOINT_FILE, tree)
        (folder / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(folder)


def _write_array(checkpoint: Path, name: str, values: np.ndarray) -> JsonObject:
    """Write one array and return its spec for the msgpack file."""
    import tensorstore

    own = f"target.{name.replace('/', '.')}"
    row_bytes = max(1, values.nbytes // max(1, len(values)))
    rows = max(1, min(len(values), _CHUNK_BYTES // row_bytes))
    spec: JsonObject = {
        "driver": "zarr",
        "dtype": values.dtype.name,
        "kvstore": {"driver": "file", "path": f"{own}/"},
        "metadata": {
            "shape": list(values.shape),
            "chunks": [rows, *values.shape[1:]],
            # Weights hardly compress, and gzip writes only 30 MB/s.
            "compressor": None,
            "dtype": _ZARR_TYPES[values.dtype.name],
        },
    }
    where = {"driver": "file", "path": f"{checkpoint.resolve() / own}/"}
    try:
        store = tensorstore.open({**spec, "kvstore": where}, create=True).result()
        store.write(values).result()
    # A full disk raises one of these too.
    except (ValueError, RuntimeError, NotImplementedError) as error:
        reason = tensorstore_reason(error)
        raise OSError(f"could not write {checkpoint / own} ({reason}).") from error
    return spec


def _write_tree(file: Path, target: JsonObject) -> None:
    import msgpack

    # Flax encodes an array as packed shape, dtype and bytes.
    step = msgpack.packb(((), "int32", np.int32(0).tobytes()), use_bin_type=True)
    state = {"step": msgpack.ExtType(1, step)}
    tree = {"version": _VERSION, "optimizer": {"target": target, "state": state}}
    with file.open("wb") as out:
        msgpack.pack(tree, out, use_bin_type=True)


def _insert(tree: JsonObject, path: list[str], value: object) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value
