"""T5X checkpoints: a msgpack file, alone or with a folder of Zarr arrays, or an Orbax folder.

Kernels are [in, out], bias tables [N, R].  With scanned layers, the second axis of every parameter
is the layer, and heads may be a separate axis.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from t5jax.pretrained.formats import (
    FileRegion,
    LazyArray,
    MergedAxesArray,
    open_msgpack_tree,
    open_zarr_array,
    open_zarr_folder,
)
from t5jax.pretrained.gin_config import read_gin_config
from t5jax.pretrained.infer_config import drop_decoder, infer_shapes, mark_shared_bias
from t5jax.pretrained.name_map import EMBEDDING_PATH, OUTPUT_PATH, NameMap, NameRule
from t5jax.pretrained.source import CheckpointSource, checked_source

CHECKPOINT_FILE = "checkpoint"
STEP_PATTERN = re.compile(r"checkpoint_([0-9]+)")

# Version 2 stored bfloat16 as uint16 with the same bits.
_FIRST_WITH_BFLOAT16 = 3
_ORBAX_ITEM = "state"
_ORBAX = ("manifest.ocdbt", "_METADATA", "_CHECKPOINT_METADATA")
_PLACEHOLDER = "PLACEHOLDER://"
_FUSED = re.compile(r".*/(q_wi_fused|kv_fused|o_wo_fused)/.*")
_ATTENTION = re.compile(r"attention/(query|key|value|out)/kernel$")
_BLOCKS = {
    "encoder": {"attention": ("attention", "pre_attention_layer_norm")},
    "decoder": {
        "self_attention": ("self_attention", "pre_self_attention_layer_norm"),
        "cross_attention": ("encoder_decoder_attention", "pre_cross_attention_layer_norm"),
    },
}


def t5x_name_map(*, scanned: bool, gated: bool) -> NameMap:
    """Return the names of all parameters, below `target/`.

    Args:
      scanned: whether the layers of a stack are stacked into one array.
      gated: whether to write gated feed-forward layers.
    """
    return NameMap(_rules(scanned=scanned, gated=gated))


def _rules(*, scanned: bool, gated: bool) -> Iterator[NameRule]:
    inner = [("wi", "wi_0"), ("wi_linear", "wi_1"), ("wi", "wi")]
    yield NameRule(EMBEDDING_PATH, EMBEDDING_PATH)
    for stack, attentions in _BLOCKS.items():
        # Two names of the scanned scope are in use; released checkpoints have the first.
        scopes = [f"{stack}/{stack}", f"{stack}/layers"] if scanned else [f"{stack}/layers_{{}}"]
        kernel, scale = ((1, 0, 2), (1, 0)) if scanned else ((), ())
        table = (1, 2, 0) if scanned else (1, 0)
        for block in scopes:
            layers = f"{stack}/layers"
            for ours, (theirs, norm) in attentions.items():
                for name in ("query", "key", "value", "out"):
                    yield NameRule(
                        f"{layers}/{ours}/{name}", f"{block}/{theirs}/{name}/kernel", kernel
                    )
                yield NameRule(f"{layers}/{ours}_norm/scale", f"{block}/{norm}/scale", scale)
            for ours, theirs in [*(inner if gated else inner[::-1]), ("wo", "wo")]:
                yield NameRule(f"{layers}/mlp/{ours}", f"{block}/mlp/{theirs}/kernel", kernel)
            yield NameRule(f"{layers}/mlp_norm/scale", f"{block}/pre_mlp_layer_norm/scale", scale)
            for name in ("relpos_bias", "relative_posemb"):
                bias = f"{block}/{name}/rel_embedding"
                yield NameRule(f"{layers}/relative_bias/embedding", bias, table)
        shared = f"{stack}/relpos_bias/rel_embedding"
        yield NameRule(f"{stack}/relative_bias/embedding", shared, (1, 0))
        yield NameRule(f"{stack}/final_norm/scale", f"{stack}/{stack}_norm/scale")
    yield NameRule(OUTPUT_PATH, "decoder/logits_dense/kernel")


def find_t5x(path: Path) -> Path | None:
    """Find the checkpoint at a path, inside it, or the newest one of a run, or return None."""
    if path.is_file():
        return path if _is_msgpack(path) else None
    if not path.is_dir():
        return None
    # The item's parent folder has metadata too, so check for the item first.
    if _is_orbax(path / _ORBAX_ITEM):
        return path / _ORBAX_ITEM
    if _is_msgpack(path / CHECKPOINT_FILE) or _is_orbax(path):
        return path
    steps = [(int(m[1]), p) for p in path.iterdir() if (m := STEP_PATTERN.fullmatch(p.name))]
    for _, newest in sorted(steps, reverse=True):
        if (checkpoint := find_t5x(newest)) is not None:
            return checkpoint
    return None


def _is_orbax(path: Path) -> bool:
    return any((path / name).is_file() for name in _ORBAX)


def _is_msgpack(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(32)
    # The first byte of a msgpack map; TensorFlow's text file of the same name starts differently.
    return bool(start) and (0x80 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF))


def open_t5x(path: Path, *, encoder_only: bool = False) -> CheckpointSource:
    """Open a checkpoint without reading its arrays.

    Args:
      path: path returned by `find_t5x`.
      encoder_only: whether to omit the decoder.
    Raises:
      ValueError: the checkpoint is damaged or not a T5; the message names the file and the array.
    """
    ignored: dict[str, str] = {}
    arrays, file = _open_arrays(path, ignored)
    arrays = _targets(arrays, ignored, file)
    prefix, scanned, gated = _tree_form(arrays, file)
    name_map = t5x_name_map(scanned=scanned, gated=gated)
    arrays = {
        name: _merge_heads(name, array, scanned=scanned)
        for name, array in ((name.removeprefix(prefix), array) for name, array in arrays.items())
    }
    layout, unknown = name_map.match(arrays, source=file)
    unknown = [name for name in unknown if not name.startswith("__")]
    if not scanned:
        mark_shared_bias(layout, keep=False)
    if encoder_only:
        drop_decoder(layout, ignored)
    shapes = infer_shapes(layout, arrays)
    notes: list[str] = []
    config = read_gin_config(_folders(path), shapes, source=file, notes=notes)
    if encoder_only:
        config = config.replace(num_decoder_layers=0)
    return checked_source(
        CheckpointSource(
            path=file,
            format=f"T5X, {_kind(path)}, {'scanned' if scanned else 'separate'} layers",
            config=config,
            arrays=arrays,
            layout=layout,
            ignored=ignored,
            notes=tuple(notes),
        ),
        name_map,
        unknown=unknown,
    )


def _folders(path: Path) -> list[Path]:
    """Return the folders that may contain config files: the checkpoint's and its run's."""
    if path.is_file():
        return [path.parent]
    checkpoint = path.parent if path.name == _ORBAX_ITEM else path
    return [checkpoint, checkpoint.parent]


def _kind(path: Path) -> str:
    return "msgpack" if path.is_file() else "Orbax" if _is_orbax(path) else "Zarr"


def _open_arrays(path: Path, ignored: dict[str, str]) -> tuple[dict[str, LazyArray], Path]:
    """Open all arrays except the optimizer's, and return them and the name for error messages.

    The optimizer's arrays may be missing: they are larger than the model and often not copied.
    """

    def skip(name: str) -> bool:
        if "param_states" in name.split("/"):
            ignored[name] = "not a model parameter"
        return name in ignored

    if path.is_file():
        return _leaves(path, path.parent, {}, skip), path
    stored: dict[str, LazyArray] = {}
    if _is_orbax(path) or (path / CHECKPOINT_FILE).is_file():
        stored |= open_zarr_folder(path, skip=skip)
    if (path / CHECKPOINT_FILE).is_file():
        return _leaves(path / CHECKPOINT_FILE, path, stored, skip), path
    return stored, path


def _leaves(
    file: Path, folder: Path, stored: Mapping[str, LazyArray], skip: Callable[[str], bool]
) -> dict[str, LazyArray]:
    """Open the arrays in a msgpack file and in the folders that it refers to."""
    tree = open_msgpack_tree(file)
    version = tree.get("version", _FIRST_WITH_BFLOAT16)
    old = isinstance(version, int) and version < _FIRST_WITH_BFLOAT16
    arrays: dict[str, LazyArray] = {}
    for name, leaf in tree.items():
        if skip(name):
            continue
        if isinstance(leaf, FileRegion):
            arrays[name] = leaf
        elif isinstance(leaf, Mapping):
            arrays[name] = _open_spec(leaf, name, file, folder, old=old)
        elif isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER):
            key = leaf.removeprefix(_PLACEHOLDER).replace(".", "/")
            if key not in stored:
                raise ValueError(
                    f"{folder} must contain the array {leaf.removeprefix(_PLACEHOLDER)!r:.100}, "
                    f"which {file.name} lists, and its metadata; copy the folder again."
                )
            arrays[name] = stored[key]
    return arrays


def _open_spec(
    leaf: Mapping[str, object], name: str, file: Path, folder: Path, *, old: bool
) -> LazyArray:
    """Open an array written by TensorStore, given its spec in the msgpack file."""
    kvstore = leaf.get("kvstore")
    where = leaf.get("path") or (kvstore.get("path") if isinstance(kvstore, Mapping) else None)
    metadata = leaf.get("metadata")
    if leaf.get("driver") != "zarr" or not isinstance(where, str):
        raise ValueError(f"{file}: {name} must be a Zarr array in a folder next to the file.")
    own = where.rstrip("/").rpartition("/")[2]
    stored = (folder / own / ".zarray").is_file()
    if not isinstance(metadata, Mapping):
        raise ValueError(f"{file}: {name} must have a shape; the file is damaged. Copy it again.")
    kind = str(leaf.get("dtype", metadata.get("dtype", "float32")))
    bits = kind == "bfloat16" and old
    full = {"fill_value": None, "order": "C", "filters": None, "zarr_format": 2, **metadata}
    full.setdefault("dtype", "<u2" if bits else _zarr_type(kind))
    bits = bits or (old and str(full["dtype"]) == "<u2")
    return open_zarr_array(folder, own, full, stored=stored, bits=bits)


def _zarr_type(kind: str) -> str:
    known = {"float32": "<f4", "float16": "<f2", "float64": "<f8", "int32": "<i4", "uint16": "<u2"}
    return known.get(kind, kind)


def _targets(
    arrays: dict[str, LazyArray], ignored: dict[str, str], file: Path
) -> dict[str, LazyArray]:
    """Return the model's arrays, and add the others to `ignored`."""
    tables = [name for name in arrays if name.endswith(EMBEDDING_PATH)]
    if len(tables) > 1:
        tables = [name for name in tables if "target" in name.split("/")] or tables
    if len(tables) != 1:
        raise ValueError(
            f"{file} must contain one T5, with one {EMBEDDING_PATH}, got {len(tables)} among "
            f"{len(arrays)} arrays, first {min(arrays, default='none')!r:.80}."
        )
    prefix = tables[0].removesuffix(EMBEDDING_PATH)
    ignored |= {name: "not a model parameter" for name in arrays if not name.startswith(prefix)}
    return {name: array for name, array in arrays.items() if name not in ignored}


def _tree_form(arrays: Mapping[str, LazyArray], file: Path) -> tuple[str, bool, bool]:
    """Return the common name prefix, whether layers are scanned, and whether they are gated."""
    table = next(name for name in arrays if name.endswith(EMBEDDING_PATH))
    fused = next((name for name in arrays if _FUSED.fullmatch(name)), None)
    if fused is not None:
        raise ValueError(f"{file} must be a T5, got parallel layers with {fused}.")
    scanned = not any("/layers_0/" in name for name in arrays)
    return table.removesuffix(EMBEDDING_PATH), scanned, any("/wi_0/" in name for name in arrays)


def _merge_heads(name: str, array: LazyArray, *, scanned: bool) -> LazyArray:
    """Merge the heads and features of an attention kernel into one axis."""
    if not _ATTENTION.search(name) or len(array.shape) != 3 + scanned:
        return array
    if name.endswith("/out/kernel"):
        return MergedAxesArray(array, 0, 1 + scanned)
    return MergedAxesArray(array, 1 + scanned, 2 + scanned)
