"""T5X checkpoints: one msgpack file, a folder of Zarr arrays beside one, or Orbax's folders.

Kernels are [in, out], bias tables [N, R].  With scanned layers the layer is the second axis of
every parameter, and heads may be an axis of their own.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5jax.fileio import read_json_object
from t5jax.models import T5Config
from t5jax.pretrained.formats import (
    FileRegion,
    LazyArray,
    MergedAxesArray,
    open_zarr_array,
    open_zarr_folder,
    read_msgpack_tree,
)
from t5jax.pretrained.hf import read_hf_config
from t5jax.pretrained.infer_config import drop_decoder, infer_fields, infer_shapes, split_bias_rules
from t5jax.pretrained.name_map import NameMap, NameRule
from t5jax.pretrained.source import CheckpointSource, checked_source

CHECKPOINT_FILE = "checkpoint"
STEP_PATTERN = re.compile(r"checkpoint_([0-9]+)")
GIN_FILE = "config.json"

# Version 2 stored bfloat16 as the uint16 of the same bits.
_FIRST_WITH_BFLOAT16 = 3
_EMBEDDING = "token_embedder/embedding"
_ORBAX_ITEM = "state"
_ORBAX = ("manifest.ocdbt", "_METADATA", "_CHECKPOINT_METADATA")
_PLACEHOLDER = "PLACEHOLDER://"
_FUSED = re.compile(r".*/(q_wi_fused|kv_fused|o_wo_fused)/.*")
_ATTENTION = re.compile(r"attention/(query|key|value|out)/kernel$")
_GIN = ("config.gin", "operative_config.gin")

_GIN_ACTIVATIONS = re.compile(
    r"(?m)^[^#\n]*(?:mlp_activations|MlpBlock\.activations|DenseReluDense\.activation)\s*=[\s\\]*"
    r"([\[(][^\])]*[\])]|['\"][^'\"]*['\"])"
)

_ACTIVATIONS = {"relu": "relu", "gelu": "gelu_tanh", "swish": "silu", "silu": "silu"}

_BLOCKS = {
    "encoder": {"attention": ("attention", "pre_attention_layer_norm")},
    "decoder": {
        "self_attention": ("self_attention", "pre_self_attention_layer_norm"),
        "cross_attention": ("encoder_decoder_attention", "pre_cross_attention_layer_norm"),
    },
}


def t5x_name_map(*, scanned: bool, gated: bool) -> NameMap:
    """Names below `target/`.

    Args:
      scanned: whether all layers of a stack are one array.
      gated: which feed-forward layer is written.
    """
    return NameMap(_rules(scanned=scanned, gated=gated))


def _rules(*, scanned: bool, gated: bool) -> Iterator[NameRule]:
    inner = [("wi", "wi_0"), ("wi_linear", "wi_1"), ("wi", "wi")]
    yield NameRule(_EMBEDDING, _EMBEDDING)
    for stack, attentions in _BLOCKS.items():
        # Two names of the scanned scope are in use, of which the first is in released checkpoints.
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
    yield NameRule("output/kernel", "decoder/logits_dense/kernel")


def find_t5x(path: Path) -> Path | None:
    """The checkpoint at a path, in it, or the newest of a run's folder; None if there is none."""
    if path.is_file():
        return path if _is_msgpack(path) else None
    if not path.is_dir():
        return None
    # The folder around an item has metadata too.
    if _is_orbax(path / _ORBAX_ITEM):
        return path / _ORBAX_ITEM
    if _is_msgpack(path / CHECKPOINT_FILE) or _is_orbax(path):
        return path
    steps = [(int(m[1]), p) for p in path.iterdir() if (m := STEP_PATTERN.fullmatch(p.name))]
    for _, newest in sorted(steps, reverse=True):
        if (found := find_t5x(newest)) is not None:
            return found
    return None


def _is_orbax(path: Path) -> bool:
    return any((path / name).is_file() for name in _ORBAX)


def _is_msgpack(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(32)
    # A small or large msgpack map, of which TensorFlow's text file of the same name is none.
    return bool(start) and (0x80 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF))


def open_t5x(path: Path, *, encoder_only: bool = False) -> CheckpointSource:
    """What the checkpoint that `find_t5x` found holds.

    Sizes follow from the arrays; the activation from a gin file beside the checkpoint, if there is
    one.  A `config.json` of ours beside it is believed instead.

    Raises:
      ValueError: not a T5's checkpoint, or a damaged one; the message names file and array.
    """
    ignored: dict[str, str] = {}
    found, file = _arrays(path, ignored)
    found = _targets(found, ignored, file)
    prefix, scanned, gated = _shape_of_tree(found, file)
    names = t5x_name_map(scanned=scanned, gated=gated)
    found = {
        name: _joined(name, array, scanned=scanned)
        for name, array in ((name.removeprefix(prefix), array) for name, array in found.items())
    }
    layout, unknown = names.match(found, source=file)
    unknown = [name for name in unknown if not name.startswith("__")]
    if not scanned:
        split_bias_rules(layout, keep=False)
    if encoder_only:
        drop_decoder(layout, ignored)
    shapes = infer_shapes(layout, found)
    notes: list[str] = []
    config = read_t5x_config(_folders(path), shapes, source=file, notes=notes)
    if encoder_only:
        config = config.replace(num_decoder_layers=0)
    return checked_source(
        CheckpointSource(
            path=file,
            format=f"T5X, {_kind(path)}, {'scanned' if scanned else 'separate'} layers",
            config=config,
            arrays=found,
            layout=layout,
            ignored=ignored,
            notes=tuple(notes),
        ),
        names,
        unknown=unknown,
    )


def read_t5x_config(
    folders: Sequence[Path],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    source: Path,
    notes: list[str],
) -> T5Config:
    """The config of a model whose checkpoint has none.

    Args:
      folders: where a config.json, ours or Hugging Face's, or a gin file may lie, best first.
      shapes: of the parameters, by our path.
      source: what to call the checkpoint in an error.
      notes: gets a sentence for everything that is assumed or taken from elsewhere.
    """
    for file in (folder / GIN_FILE for folder in folders):
        if not file.is_file():
            continue
        keys = read_json_object(file)
        if "model_type" in keys:
            notes.append(f"the config is that of {file}.")
            return read_hf_config(file, shapes, notes=notes)
        if "d_model" in keys:
            return T5Config.from_file(file)
    fields = infer_fields(shapes, source=source)
    notes.append("sizes follow from the arrays, padding is 0 and the end 1.")
    for file in (folder / name for folder in folders for name in _GIN):
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            found = [re.findall(r"[A-Za-z_]+", m) for m in _GIN_ACTIVATIONS.findall(text)]
            known = [_ACTIVATIONS[w] for words in found for w in words if w in _ACTIVATIONS]
            if known:
                return T5Config(**{**fields, "activation": known[-1]})
    notes.append(
        f"the activation is assumed to be {fields['activation']}, for no gin file tells it."
    )
    return T5Config(**fields)


def _folders(path: Path) -> list[Path]:
    """Where files that belong to a checkpoint lie: with it, and in its run's folder."""
    if path.is_file():
        return [path.parent]
    checkpoint = path.parent if path.name == _ORBAX_ITEM else path
    return [checkpoint, checkpoint.parent]


def _kind(path: Path) -> str:
    return "msgpack" if path.is_file() else "Orbax" if _is_orbax(path) else "Zarr"


def _arrays(path: Path, ignored: dict[str, str]) -> tuple[dict[str, LazyArray], Path]:
    """All arrays but the optimizer's, and what to call the checkpoint in an error.

    Those need not be there: they are larger than the model, and often not copied.
    """

    def skip(name: str) -> bool:
        if "param_states" in name.split("/"):
            ignored[name] = "not of the model"
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
    """The arrays in a msgpack file, and those that it says lie in folders beside it."""
    tree = read_msgpack_tree(file)
    version = tree.get("version", _FIRST_WITH_BFLOAT16)
    old = isinstance(version, int) and version < _FIRST_WITH_BFLOAT16
    found: dict[str, LazyArray] = {}
    for name, leaf in tree.items():
        if skip(name):
            continue
        if isinstance(leaf, FileRegion):
            found[name] = leaf
        elif isinstance(leaf, Mapping):
            found[name] = _spec(leaf, name, file, folder, old=old)
        elif isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER):
            key = leaf.removeprefix(_PLACEHOLDER).replace(".", "/")
            if key not in stored:
                raise ValueError(
                    f"{folder} must hold the array {leaf.removeprefix(_PLACEHOLDER)!r:.100}, as "
                    f"{file.name} says; it lacks it or its metadata. Copy the folder again."
                )
            found[name] = stored[key]
    return found


def _spec(leaf: Mapping[str, Any], name: str, file: Path, folder: Path, *, old: bool) -> LazyArray:
    """An array that TensorStore wrote, by its specification in the msgpack file."""
    kvstore = leaf.get("kvstore")
    where = leaf.get("path") or (kvstore.get("path") if isinstance(kvstore, Mapping) else None)
    metadata = leaf.get("metadata")
    if leaf.get("driver") != "zarr" or not isinstance(where, str):
        raise ValueError(f"{file}: {name} must be stored by Zarr in a folder beside the file.")
    own = where.rstrip("/").rpartition("/")[2]
    stored = (folder / own / ".zarray").is_file()
    if not isinstance(metadata, Mapping):
        raise ValueError(f"{file}: {name} must come with its shape; the file is damaged.")
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
    found: dict[str, LazyArray], ignored: dict[str, str], file: Path
) -> dict[str, LazyArray]:
    """The model's own arrays; others become `ignored`."""
    tables = [name for name in found if name.endswith(_EMBEDDING)]
    if len(tables) > 1:
        tables = [name for name in tables if "target" in name.split("/")] or tables
    if len(tables) != 1:
        raise ValueError(
            f"{file} must hold one T5, with {_EMBEDDING}; it holds {len(tables)} and "
            f"{len(found)} arrays in all, first {min(found, default='none')!r:.80}."
        )
    prefix = tables[0].removesuffix(_EMBEDDING)
    ignored |= {name: "not of the model" for name in found if not name.startswith(prefix)}
    return {name: array for name, array in found.items() if name not in ignored}


def _shape_of_tree(found: Mapping[str, LazyArray], file: Path) -> tuple[str, bool, bool]:
    """What stands before every name, whether layers are scanned, and whether they are gated."""
    table = next(name for name in found if name.endswith(_EMBEDDING))
    fused = next((name for name in found if _FUSED.fullmatch(name)), None)
    if fused is not None:
        raise ValueError(f"{file} holds {fused}, of layers computed in parallel, not a T5's.")
    scanned = not any("/layers_0/" in name for name in found)
    return table.removesuffix(_EMBEDDING), scanned, any("/wi_0/" in name for name in found)


def _joined(name: str, array: LazyArray, *, scanned: bool) -> LazyArray:
    """An attention kernel with its heads and their features as one axis."""
    if not _ATTENTION.search(name) or len(array.shape) != 3 + scanned:
        return array
    if name.endswith("/out/kernel"):
        return MergedAxesArray(array, 0, 1 + scanned)
    return MergedAxesArray(array, 1 + scanned, 2 + scanned)
