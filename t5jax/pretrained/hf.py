"""Hugging Face folders: T5, mT5 and umT5 as transformers, its Flax classes and diffusers save them.

Linear weights are [out, in] in torch's files and [in, out] in Flax's and here; layers are separate
there and stacked here.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from t5jax.models import T5Config
from t5jax.pretrained import (
    arrays,
    evidence,
    hf_config,
    msgpack_file,
    safetensors_file,
    sentence,
    shards,
    torch_file,
)
from t5jax.pretrained.arrays import Array
from t5jax.pretrained.names import ATTENTIONS, KERNELS, Leaf, Naming, Rule, shown
from t5jax.pretrained.source import Source, checked

WEIGHTS = "model.safetensors"
INDEX = ".index.json"
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
    WEIGHTS: _Format(safetensors_file.open_file, _torch_name, (1, 0)),
    "pytorch_model.bin": _Format(torch_file.open_file, _torch_name, (1, 0)),
    "flax_model.msgpack": _Format(msgpack_file.read_tree, _flax_name, (), "transformer/"),
}


def naming(*, gated: bool, kind: str = WEIGHTS, prefix: str = "") -> Naming:
    """Names of all parameters but the embedding's aliases.

    Args:
      gated: which feed-forward layer is written.
      kind: name of the file.
      prefix: before every name.
    """
    return Naming(_rules(_FORMATS[kind], gated=gated, prefix=prefix))


def _rules(form: _Format, *, gated: bool, prefix: str) -> Iterator[Rule]:
    def rule(ours: str, theirs: str, axes: tuple[int, ...] = ()) -> Rule:
        return Rule(ours, prefix + form.spell(theirs), axes)

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
    yield Rule(sentence.PATH, sentence.TENSOR, (1, 0))


def holds_model(path: Path) -> bool:
    """Whether `open_source` is the reader for this file or folder."""
    if path.is_file():
        return path.suffix == ".safetensors"
    path = sentence.transformer(path)
    return (path / hf_config.FILE).is_file() and _weights(path) is not None


def open_source(path: Path, *, encoder_only: bool = False) -> Source:
    """What a folder holds, or a single safetensors file.

    Without a config.json beside it, the tensors of a single file tell its sizes.

    Raises:
      ValueError: not a T5 that can be read here, damaged files, or weights that do not fit the
        config; the message names the file, and the first tensor at fault with both shapes.
    """
    folder = sentence.transformer(path) if path.is_dir() else path.parent
    config_file = folder / hf_config.FILE
    given = path.is_dir() or config_file.is_file()
    family = hf_config.check_family(config_file) if given else "t5"
    file, kind = (_weights(folder) if path.is_dir() else None) or (path, WEIGHTS)
    found = _open(file, _FORMATS[kind].open)
    names, layout, ignored, unknown = _layout(found, file, kind)
    table = layout[_EMBEDDING].names[0]
    if path.is_dir() and (projection := sentence.open_projection(path)) is not None:
        found[sentence.TENSOR] = projection
        layout |= names.match([sentence.TENSOR], source=path)[0]
    if encoder_only:
        evidence.keep_encoder(layout, ignored)
    elif _OUTPUT in layout and _equal(found, layout[_OUTPUT], table):
        ignored[layout.pop(_OUTPUT).names[0]] = f"the same as {table}"
    evidence.share_bias(layout, keep=family == "umt5")
    shapes = evidence.shapes(layout, found)
    heads = [name for name in ignored if name.startswith(_HEADS)]
    notes = [f"{name} is of a head for another task, which is left out." for name in heads[:1]]
    if given:
        config = hf_config.read(config_file, shapes, notes=notes)
    else:
        config = T5Config(**evidence.fields(shapes, source=file))
        notes.append("there is no config.json; sizes and activation follow from the tensors.")
    source = Source(
        path=file,
        format=f"Hugging Face, {file.name}",
        config=config,
        arrays=found,
        layout=layout,
        ignored=ignored,
        notes=tuple(notes),
    )
    return checked(source, names, unknown=unknown)


def _layout(
    found: Mapping[str, Array], file: Path, kind: str
) -> tuple[Naming, dict[str, Leaf], dict[str, str], list[str]]:
    """The names of a file, what lies where, what is not read and why, and what is not known."""
    form = _FORMATS[kind]
    wrapped = any(name.startswith(form.wrapper) for name in found)
    prefix = form.wrapper if wrapped else ""
    ignored: dict[str, str] = {}
    table = _table(found, [prefix + form.spell(name) for name in _EMBEDDINGS], ignored, file)
    names = naming(gated=any("wi_0" in name for name in found), kind=kind, prefix=prefix)
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
        for file in (path / kind, path / f"{kind}{INDEX}"):
            if file.is_file():
                return file, kind
    return None


def _open(file: Path, opener: Callable[[Path], Mapping[str, Any]]) -> dict[str, Array]:
    """The arrays of a file, or of all the files that an index names."""
    if file.name.endswith(INDEX):
        files = shards.shard_files(file)
        opened = {shard: opener(shard) for shard in dict.fromkeys(files.values())}
    else:
        opened = {file: opener(file)}
        files = dict.fromkeys(opened[file], file)
    found = {}
    for tensor, holder in files.items():
        value = opened[holder].get(tensor)
        if not hasattr(value, "blocks"):
            raise ValueError(
                f"{holder} must hold the tensor {shown(tensor)}, as {file.name} says; it lacks it. "
                "Download both again."
            )
        found[tensor] = value
    return found


def _table(
    found: Mapping[str, Array], aliases: list[str], ignored: dict[str, str], file: Path
) -> str:
    """The name of the embedding; its other names become `ignored`."""
    present = [name for name in aliases if name in found]
    if not present:
        raise ValueError(f"{file} must hold {aliases[0]}; it has no embedding at all.")
    first, *others = present
    for other in others:
        if not arrays.equal(found[first], found[other]):
            raise ValueError(
                f"{file}: {other} must equal {first}; T5 shares one embedding between encoder and "
                "decoder."
            )
        ignored[other] = f"the same as {first}"
    return first


def _equal(found: Mapping[str, Array], output: Leaf, table: str) -> bool:
    """Whether the output layer is the embedding."""
    array = found[output.names[0]]
    if not output.axes:
        # Piece by piece, every one of the other's would be read for each column.
        array = arrays.InMemory(array.file, arrays.read(array).T)
    return arrays.equal(found[table], array)
