"""Hugging Face folders of T5, mT5 and umT5, as saved by transformers, Flax and diffusers.

Linear weights are [out, in] in torch files, and [in, out] in Flax files and t5jax; layers are
separate in these files and stacked in t5jax.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from t5jax.errors import shorten
from t5jax.models import T5Config
from t5jax.pretrained.formats import (
    InMemoryArray,
    LazyArray,
    arrays_equal,
    open_msgpack_tree,
    open_pytorch,
    open_safetensors,
    read_array,
)
from t5jax.pretrained.hf.shards import INDEX_SUFFIX, WEIGHTS_FILE, read_shard_index
from t5jax.pretrained.hf_config import check_family, read_hf_config
from t5jax.pretrained.infer_config import drop_decoder, infer_fields, infer_shapes, mark_shared_bias
from t5jax.pretrained.model_folder import CONFIG_FILE
from t5jax.pretrained.name_map import (
    ATTENTIONS,
    EMBEDDING_PATH,
    KERNELS,
    OUTPUT_PATH,
    PROJECTION_PATH,
    Leaf,
    NameMap,
    NameRule,
)
from t5jax.pretrained.recognize import recognize_tensors
from t5jax.pretrained.sentence_transformers import (
    PROJECTION_TENSOR,
    open_projection,
    transformer_folder,
)
from t5jax.pretrained.source import CheckpointSource, checked_source

_EMBEDDINGS = ("shared", "encoder.embed_tokens", "decoder.embed_tokens")

# Written by old versions, although cross-attention has no bias.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias"

# Single-file text encoders of image models include their tokenizer.
_VOCABULARY = "spiece_model"
_HEADS = ("classification_head.", "qa_outputs.", "classifier.", "v_head.", "value_head.", "score.")
# Buffers of attention variants and profilers, which hold nothing that is learned.
_BUFFERS = (
    ".position_ids",
    ".inv_freq",
    ".total_ops",
    ".total_params",
    "total_ops",
    "total_params",
)
# Prefixes of DistributedDataParallel, torch.compile, Lightning, task heads, trl and peft.
_WRAPPERS = ("module", "_orig_mod", "model", "transformer", "pretrained_model", "base_model", "t5")
# A parameter that every T5 has.
_ANCHOR = "encoder.block.0.layer.0.SelfAttention.q"


class _Format(NamedTuple):
    """Weights file format.

    Attributes:
      open: function that opens the arrays of a file.
      spell: function from a torch module name to the array name in the file.
      linear: axes of linear weights, as in `NameRule`.
      separator: separator of the parts of an array name.
    """

    open: Callable[[Path], Mapping[str, Any]]
    spell: Callable[[str], str]
    linear: tuple[int, ...]
    separator: str = "."


def _torch_name(name: str) -> str:
    return f"{name}.weight"


def _flax_name(name: str) -> str:
    *_, last = parts = name.split(".")
    leaf = "weight" if last.endswith("layer_norm") else "kernel"
    if last in ("shared", "embed_tokens", "relative_attention_bias"):
        leaf = "embedding"
    return "/".join([*parts, leaf])


# In order of preference.
_FORMATS = {
    WEIGHTS_FILE: _Format(open_safetensors, _torch_name, (1, 0)),
    "pytorch_model.bin": _Format(open_pytorch, _torch_name, (1, 0)),
    "flax_model.msgpack": _Format(open_msgpack_tree, _flax_name, (), "/"),
}


def hf_name_map(*, gated: bool, kind: str = WEIGHTS_FILE, prefix: str = "") -> NameMap:
    """Return the names of all parameters, without aliases of the embedding.

    Args:
      gated: whether to write gated feed-forward layers.
      kind: file name of the format, such as "model.safetensors".
      prefix: prefix of every name.
    Returns:
      The name map.
    """
    return NameMap(_rules(_FORMATS[kind], gated=gated, prefix=prefix))


def _rules(form: _Format, *, gated: bool, prefix: str) -> Iterator[NameRule]:
    def rule(ours: str, theirs: str, axes: tuple[int, ...] = ()) -> NameRule:
        return NameRule(ours, prefix + form.spell(theirs), axes)

    inner = [("wi", "wi_0"), ("wi_linear", "wi_1"), ("wi", "wi")]
    for stack, attentions in ATTENTIONS.items():
        layers, block = f"{stack}/layers", f"{stack}.block.{{}}.layer"
        for i, (ours, theirs) in enumerate(attentions.items()):
            for name, letter in KERNELS.items():
                yield rule(f"{layers}/{ours}/{name}", f"{block}.{i}.{theirs}.{letter}", form.linear)
            yield rule(f"{layers}/{ours}_norm/scale", f"{block}.{i}.layer_norm")
        i = len(attentions)
        for ours, theirs in [*(inner if gated else inner[::-1]), ("wo", "wo")]:
            yield rule(f"{layers}/mlp/{ours}", f"{block}.{i}.DenseReluDense.{theirs}", form.linear)
        yield rule(f"{layers}/mlp_norm/scale", f"{block}.{i}.layer_norm")
        bias = "0.SelfAttention.relative_attention_bias"
        yield rule(f"{layers}/relative_bias/embedding", f"{block}.{bias}")
        yield rule(f"{stack}/relative_bias/embedding", f"{stack}.block.0.layer.{bias}")
        yield rule(f"{stack}/final_norm/scale", f"{stack}.final_layer_norm")
    yield rule(OUTPUT_PATH, "lm_head", form.linear)
    yield rule(EMBEDDING_PATH, _EMBEDDINGS[0])
    yield NameRule(PROJECTION_PATH, PROJECTION_TENSOR, (1, 0))


# Formats of files that are opened by their path.
_KIND_OF = {
    ".safetensors": WEIGHTS_FILE,
    **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt"), "pytorch_model.bin"),
}


def holds_hf_model(path: Path) -> bool:
    """Return whether `open_hf` opens a file or folder."""
    if path.is_file():
        return path.suffix in _KIND_OF
    path = transformer_folder(path)
    return (path / CONFIG_FILE).is_file() and _weights_file(path) is not None


def open_hf(path: Path, *, encoder_only: bool = False) -> CheckpointSource:
    """Open a folder or a single safetensors or torch file without reading its tensors.

    Args:
      path: path of the folder or file; the config of a file without a config.json next to it is
        inferred from its tensors.
      encoder_only: whether to omit the decoder.
    Raises:
      ValueError: the files are damaged, the model is not a supported T5, or the weights do not
        match the config; the message names the file, and the first wrong tensor with both shapes.
    """
    folder = transformer_folder(path) if path.is_dir() else path.parent
    config_file = folder / CONFIG_FILE
    has_config = path.is_dir() or config_file.is_file()
    family = check_family(config_file) if has_config else "t5"
    weights = _weights_file(folder) if path.is_dir() else None
    file, kind = weights or (path, _KIND_OF.get(path.suffix, WEIGHTS_FILE))
    arrays = _open_arrays(file, _FORMATS[kind])
    if arrays and not any(math.prod(array.shape) for array in arrays.values()):
        raise ValueError(
            f"{file} must contain tensors with values, got {len(arrays)} empty ones, as DeepSpeed "
            "ZeRO-3 leaves them; run its zero_to_fp32.py, or train with "
            "stage3_gather_16bit_weights_on_model_save."
        )
    name_map, layout, ignored, unknown = _match_arrays(arrays, file, kind)
    table = layout[EMBEDDING_PATH].names[0]
    if path.is_dir() and (projection := open_projection(path)) is not None:
        arrays[PROJECTION_TENSOR] = projection
        layout |= name_map.match([PROJECTION_TENSOR], source=path)[0]
    if encoder_only:
        drop_decoder(layout, ignored)
    elif OUTPUT_PATH in layout and _is_tied(arrays, layout[OUTPUT_PATH], table):
        ignored[layout.pop(OUTPUT_PATH).names[0]] = f"same as {table}"
    mark_shared_bias(layout, keep=family == "umt5")
    shapes = infer_shapes(layout, arrays)
    heads = [name for name in ignored if name.startswith(_HEADS)]
    notes = [f"{name} belongs to a head for another task and is ignored." for name in heads[:1]]
    if has_config:
        config = read_hf_config(config_file, shapes, notes=notes)
    else:
        config = T5Config(**infer_fields(shapes, source=file))
        notes.append("there is no config.json; sizes and activation were inferred.")
    source = CheckpointSource(
        path=file,
        format=f"Hugging Face, {file.name}",
        config=config,
        arrays=arrays,
        layout=layout,
        ignored=ignored,
        notes=tuple(notes),
    )
    return checked_source(source, name_map, unknown=unknown)


def _match_arrays(
    arrays: Mapping[str, LazyArray], file: Path, kind: str
) -> tuple[NameMap, dict[str, Leaf], dict[str, str], list[str]]:
    """Return the name map, the layout, ignored names with reasons, and unknown names."""
    form = _FORMATS[kind]
    prefix = _wrapper(arrays, form, file)
    ignored: dict[str, str] = {}
    table = _embedding_name(
        arrays, [prefix + form.spell(name) for name in _EMBEDDINGS], ignored, file
    )
    name_map = hf_name_map(gated=any("wi_0" in name for name in arrays), kind=kind, prefix=prefix)
    names = [name for name in arrays if name not in ignored and name != table]
    layout, rest = name_map.match(names, source=file)
    layout[EMBEDDING_PATH] = Leaf((table,), (), False)
    for name in rest:
        if name == prefix + form.spell(_UNUSED):
            ignored[name] = "unused cross-attention bias"
        elif name.removeprefix(prefix).startswith(_HEADS) or name.startswith(_HEADS):
            ignored[name] = "head for another task"
        elif name.endswith(_BUFFERS):
            ignored[name] = "buffer without learned values"
        elif name == _VOCABULARY:
            ignored[name] = "SentencePiece model"
    return name_map, layout, ignored, [name for name in rest if name not in ignored]


def _wrapper(arrays: Mapping[str, LazyArray], form: _Format, file: Path) -> str:
    """Return the prefix that wrappers of the model gave to every name."""
    anchor = form.spell(_ANCHOR)
    prefixes = {name.removesuffix(anchor) for name in arrays if name.endswith(anchor)}
    if len(prefixes) > 1:
        raise ValueError(
            f"{file} must contain one T5, got several with the prefixes "
            f"{', '.join(map(repr, sorted(prefixes)))}; save one of them."
        )
    prefix = prefixes.pop() if prefixes else ""
    if not {*prefix.split(form.separator)} <= {*_WRAPPERS, ""}:
        what = recognize_tensors(arrays) or "save the T5 without the prefix"
        raise ValueError(
            f"{file} must contain a T5 alone, got one with the prefix {prefix!r:.80}: {what}."
        )
    return prefix


def _weights_file(path: Path) -> tuple[Path, str] | None:
    """Find the preferred weights in a folder: the file or index, and the name of its format."""
    for kind in _FORMATS:
        for file in (path / kind, path / f"{kind}{INDEX_SUFFIX}"):
            if file.is_file():
                return file, kind
    return None


def _open_arrays(file: Path, form: _Format) -> dict[str, LazyArray]:
    """Open the arrays of a file, or of all files in an index.

    An index may list the aliases of tied tensors, which are stored once.
    """
    opener = form.open
    aliases = tuple(form.spell(name) for name in (*_EMBEDDINGS, "lm_head"))
    if file.name.endswith(INDEX_SUFFIX):
        files = read_shard_index(file)
        opened = {shard: opener(shard) for shard in dict.fromkeys(files.values())}
    else:
        opened = {file: opener(file)}
        files = dict.fromkeys(opened[file], file)
    arrays = {}
    for tensor, holder in files.items():
        value = opened[holder].get(tensor)
        if value is None and tensor.endswith(aliases):
            continue
        if not hasattr(value, "blocks"):
            raise ValueError(
                f"{holder} must contain the tensor {shorten(tensor)}, which {file.name} lists; "
                "download both again."
            )
        arrays[tensor] = value
    return arrays


def _embedding_name(
    arrays: Mapping[str, LazyArray], aliases: list[str], ignored: dict[str, str], file: Path
) -> str:
    """Return the name of the embedding, and add its aliases to `ignored`."""
    present = [name for name in aliases if name in arrays]
    if not present:
        first = ", ".join(shorten(name) for name in [*arrays][:3]) or "no tensors"
        what = recognize_tensors(arrays)
        raise ValueError(
            f"{file} must contain the embedding {aliases[0]}, got {first}, ...; "
            + (f"it is {what}." if what else "it is not a T5, or has other names.")
        )
    first, *others = present
    for other in others:
        if not arrays_equal(arrays[first], arrays[other]):
            raise ValueError(
                f"{file}: {other} must equal {first}; T5 shares one embedding between encoder and "
                "decoder."
            )
        ignored[other] = f"same as {first}"
    return first


def _is_tied(arrays: Mapping[str, LazyArray], output: Leaf, table: str) -> bool:
    """Return whether the output layer equals the embedding bit for bit."""
    array = arrays[output.names[0]]
    if not output.axes:
        # Otherwise comparing each column would read every block of the other array.
        array = InMemoryArray(array.file, read_array(array).T)
    return arrays_equal(arrays[table], array)
