"""Hugging Face folders: T5, mT5 and umT5 as transformers, its Flax classes and diffusers save them.

Linear weights are [out, in] in torch's files and [in, out] in Flax's and here; layers are separate
there and stacked here.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from t5jax.models import T5Config
from t5jax.pretrained.formats import (
    InMemoryArray,
    LazyArray,
    arrays_equal,
    open_pytorch,
    open_safetensors,
    read_array,
    read_msgpack_tree,
    read_shard_index,
)
from t5jax.pretrained.hf import sentence_transformers
from t5jax.pretrained.hf.config import HF_CONFIG_FILE, check_family, read_hf_config
from t5jax.pretrained.infer_config import drop_decoder, infer_fields, infer_shapes, split_bias_rules
from t5jax.pretrained.name_map import ATTENTIONS, KERNELS, Leaf, NameMap, NameRule, shorten
from t5jax.pretrained.source import CheckpointSource, checked_source

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = ".index.json"
_EMBEDDING = "token_embedder/embedding"
_OUTPUT = "output/kernel"
_EMBEDDINGS = ("shared", "encoder.embed_tokens", "decoder.embed_tokens")

# Written by old versions for a bias that cross-attention does not have.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias"

# Single files for image models have their tokenizer in them.
_VOCABULARY = "spiece_model"
_HEADS = ("classification_head.", "qa_outputs.", "classifier.")


class _Format(NamedTuple):
    """A kind of file that holds weights."""

    open: Callable[[Path], Mapping[str, Any]]
    spell: Callable[[str], str]
    """From torch's name without its last part to the name in the file."""
    linear: tuple[int, ...]
    """Axes of linear weights."""
    wrapper: str = "transformer."
    """Before every name where a class with a head of its own holds the model."""


def _torch_name(name: str) -> str:
    return f"{name}.weight"


def _flax_name(name: str) -> str:
    *_, last = parts = name.split(".")
    leaf = "weight" if last.endswith("layer_norm") else "kernel"
    if last in ("shared", "embed_tokens", "relative_attention_bias"):
        leaf = "embedding"
    return "/".join([*parts, leaf])


# Best first.
_FORMATS = {
    WEIGHTS_FILE: _Format(open_safetensors, _torch_name, (1, 0)),
    "pytorch_model.bin": _Format(open_pytorch, _torch_name, (1, 0)),
    "flax_model.msgpack": _Format(read_msgpack_tree, _flax_name, (), "transformer/"),
}


def hf_name_map(*, gated: bool, kind: str = WEIGHTS_FILE, prefix: str = "") -> NameMap:
    """Names of all parameters but the embedding's aliases.

    Args:
      gated: which feed-forward layer is written.
      kind: name of the file.
      prefix: before every name.
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
    yield rule(_OUTPUT, "lm_head", form.linear)
    yield rule(_EMBEDDING, _EMBEDDINGS[0])
    yield NameRule(
        sentence_transformers.PROJECTION_PATH, sentence_transformers.PROJECTION_TENSOR, (1, 0)
    )


def holds_hf_model(path: Path) -> bool:
    """Whether `open_hf` is the reader for this file or folder."""
    if path.is_file():
        return path.suffix == ".safetensors"
    path = sentence_transformers.transformer_folder(path)
    return (path / HF_CONFIG_FILE).is_file() and _weights(path) is not None


def open_hf(path: Path, *, encoder_only: bool = False) -> CheckpointSource:
    """What a folder holds, or a single safetensors file.

    Without a config.json beside it, the tensors of a single file tell its sizes.

    Raises:
      ValueError: not a T5 that can be read here, damaged files, or weights that do not fit the
        config; the message names the file, and the first tensor at fault with both shapes.
    """
    folder = sentence_transformers.transformer_folder(path) if path.is_dir() else path.parent
    config_file = folder / HF_CONFIG_FILE
    given = path.is_dir() or config_file.is_file()
    family = check_family(config_file) if given else "t5"
    file, kind = (_weights(folder) if path.is_dir() else None) or (path, WEIGHTS_FILE)
    found = _open(file, _FORMATS[kind].open)
    names, layout, ignored, unknown = _layout(found, file, kind)
    table = layout[_EMBEDDING].names[0]
    if path.is_dir() and (projection := sentence_transformers.open_projection(path)) is not None:
        found[sentence_transformers.PROJECTION_TENSOR] = projection
        layout |= names.match([sentence_transformers.PROJECTION_TENSOR], source=path)[0]
    if encoder_only:
        drop_decoder(layout, ignored)
    elif _OUTPUT in layout and _equal(found, layout[_OUTPUT], table):
        ignored[layout.pop(_OUTPUT).names[0]] = f"the same as {table}"
    split_bias_rules(layout, keep=family == "umt5")
    shapes = infer_shapes(layout, found)
    heads = [name for name in ignored if name.startswith(_HEADS)]
    notes = [f"{name} is of a head for another task, which is left out." for name in heads[:1]]
    if given:
        config = read_hf_config(config_file, shapes, notes=notes)
    else:
        config = T5Config(**infer_fields(shapes, source=file))
        notes.append("there is no config.json; sizes and activation follow from the tensors.")
    source = CheckpointSource(
        path=file,
        format=f"Hugging Face, {file.name}",
        config=config,
        arrays=found,
        layout=layout,
        ignored=ignored,
        notes=tuple(notes),
    )
    return checked_source(source, names, unknown=unknown)


def _layout(
    found: Mapping[str, LazyArray], file: Path, kind: str
) -> tuple[NameMap, dict[str, Leaf], dict[str, str], list[str]]:
    """The names of a file, what lies where, what is not read and why, and what is not known."""
    form = _FORMATS[kind]
    wrapped = any(name.startswith(form.wrapper) for name in found)
    prefix = form.wrapper if wrapped else ""
    ignored: dict[str, str] = {}
    table = _table(found, [prefix + form.spell(name) for name in _EMBEDDINGS], ignored, file)
    names = hf_name_map(gated=any("wi_0" in name for name in found), kind=kind, prefix=prefix)
    layout, rest = names.match([n for n in found if n not in ignored and n != table], source=file)
    layout[_EMBEDDING] = Leaf((table,), (), False)
    for name in rest:
        if name == prefix + form.spell(_UNUSED):
            ignored[name] = "of a bias that cross-attention does not have"
        elif name.startswith(_HEADS):
            ignored[name] = "of a head for another task"
        elif name == _VOCABULARY:
            ignored[name] = "a SentencePiece model"
    return names, layout, ignored, [name for name in rest if name not in ignored]


def _weights(path: Path) -> tuple[Path, str] | None:
    for kind in _FORMATS:
        for file in (path / kind, path / f"{kind}{INDEX_FILE}"):
            if file.is_file():
                return file, kind
    return None


def _open(file: Path, opener: Callable[[Path], Mapping[str, Any]]) -> dict[str, LazyArray]:
    """The arrays of a file, or of all the files that an index names."""
    if file.name.endswith(INDEX_FILE):
        files = read_shard_index(file)
        opened = {shard: opener(shard) for shard in dict.fromkeys(files.values())}
    else:
        opened = {file: opener(file)}
        files = dict.fromkeys(opened[file], file)
    found = {}
    for tensor, holder in files.items():
        value = opened[holder].get(tensor)
        if not hasattr(value, "blocks"):
            raise ValueError(
                f"{holder} must hold the tensor {shorten(tensor)}, as {file.name} says; it lacks "
                "it. Download both again."
            )
        found[tensor] = value
    return found


def _table(
    found: Mapping[str, LazyArray], aliases: list[str], ignored: dict[str, str], file: Path
) -> str:
    """The name of the embedding; its other names become `ignored`."""
    present = [name for name in aliases if name in found]
    if not present:
        raise ValueError(f"{file} must hold {aliases[0]}; it has no embedding at all.")
    first, *others = present
    for other in others:
        if not arrays_equal(found[first], found[other]):
            raise ValueError(
                f"{file}: {other} must equal {first}; T5 shares one embedding between encoder and "
                "decoder."
            )
        ignored[other] = f"the same as {first}"
    return first


def _equal(found: Mapping[str, LazyArray], output: Leaf, table: str) -> bool:
    """Whether the output layer is the embedding."""
    array = found[output.names[0]]
    if not output.axes:
        # Piece by piece, every one of the other's would be read for each column.
        array = InMemoryArray(array.file, read_array(array).T)
    return arrays_equal(found[table], array)
