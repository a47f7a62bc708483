"""Mesh TensorFlow checkpoints, the format in which Google first published T5.

(https://github.com/google-research/text-to-text-transfer-transformer)  Kernels are [in, out], bias
tables [N, R]; every layer has separate variables.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from t5jax.pretrained.formats import newest_prefix, open_tf_bundle
from t5jax.pretrained.gin_config import read_gin_config
from t5jax.pretrained.infer_config import drop_decoder, infer_shapes, mark_shared_bias
from t5jax.pretrained.name_map import (
    ATTENTIONS,
    EMBEDDING_PATH,
    KERNELS,
    OUTPUT_PATH,
    NameMap,
    NameRule,
)
from t5jax.pretrained.source import CheckpointSource, checked_source

_OPTIMIZER = re.compile(r".*_slot_(v|vr|vc|m)|global_step|.*/Adam(_1)?|beta[12]_power")


def mesh_tf_name_map() -> NameMap:
    """Return the names of all parameters; norms are named differently by old and new versions."""
    return NameMap(_rules(), digits=3)


def _rules() -> Iterator[NameRule]:
    yield NameRule(EMBEDDING_PATH, "shared/embedding")
    for stack, attentions in ATTENTIONS.items():
        layers, block = f"{stack}/layers", f"{stack}/block_{{}}"
        for i, (ours, theirs) in enumerate(attentions.items()):
            for name, letter in KERNELS.items():
                yield NameRule(f"{layers}/{ours}/{name}", f"{block}/layer_{i:03}/{theirs}/{letter}")
            for norm in ("layer_norm", "rms_norm"):
                yield NameRule(f"{layers}/{ours}_norm/scale", f"{block}/layer_{i:03}/{norm}/scale")
        i = len(attentions)
        for ours, theirs in (("wi", "wi"), ("wi", "wi_0"), ("wi_linear", "wi_1"), ("wo", "wo")):
            for kernel in ("/kernel", ""):
                name = f"{block}/layer_{i:03}/DenseReluDense/{theirs}{kernel}"
                yield NameRule(f"{layers}/mlp/{ours}", name)
        bias = f"{block}/layer_000/SelfAttention/relative_attention_bias"
        yield NameRule(f"{layers}/relative_bias/embedding", bias, (1, 0))
        for norm in ("layer_norm", "rms_norm"):
            yield NameRule(f"{layers}/mlp_norm/scale", f"{block}/layer_{i:03}/{norm}/scale")
            yield NameRule(f"{stack}/final_norm/scale", f"{stack}/{norm}/scale")
            yield NameRule(f"{stack}/final_norm/scale", f"{stack}/final_{norm}/scale")
        shared = bias.replace("{}", "000")
        yield NameRule(f"{stack}/relative_bias/embedding", shared, (1, 0))
    yield NameRule(OUTPUT_PATH, "decoder/logits/kernel")


def find_mesh_tf(path: Path) -> Path | None:
    """Find the prefix of a checkpoint's files.

    Args:
      path: the prefix itself, one of the files, or their folder.
    Returns:
      The prefix, or that of the newest checkpoint in a folder; None if there is no checkpoint.
    """
    if path.is_dir():
        return newest_prefix(path)
    prefix = re.sub(r"\.(index|meta|data-[0-9]{5}-of-[0-9]{5})$", "", str(path))
    return Path(prefix) if Path(f"{prefix}.index").is_file() else None


def open_mesh_tf(path: Path, *, encoder_only: bool = False) -> CheckpointSource:
    """Open a checkpoint without reading its arrays.

    Args:
      path: prefix returned by `find_mesh_tf`.
      encoder_only: whether to omit the decoder.
    Raises:
      ValueError: the checkpoint is damaged or not a T5.
    """
    arrays = open_tf_bundle(path)
    file = Path(f"{path}.index")
    ignored = {name: "not a model parameter" for name in arrays if _OPTIMIZER.fullmatch(name)}
    old_bias = "decoder/block_000/layer_001/EncDecAttention/relative_attention_bias"
    if old_bias in arrays:
        ignored[old_bias] = "unused cross-attention bias"
    name_map = mesh_tf_name_map()
    layout, unknown = name_map.match([n for n in arrays if n not in ignored], source=file)
    if EMBEDDING_PATH not in layout:
        raise ValueError(
            f"{file} must contain shared/embedding, as every encoder-decoder T5 does; got "
            f"{len(arrays)} variables, first {min(arrays, default='none')!r:.80}."
        )
    mark_shared_bias(layout, keep=False)
    if encoder_only:
        drop_decoder(layout, ignored)
    notes: list[str] = []
    shapes = infer_shapes(layout, arrays)
    config = read_gin_config([path.parent], shapes, source=file, notes=notes)
    if encoder_only:
        config = config.replace(num_decoder_layers=0)
    return checked_source(
        CheckpointSource(
            path=file,
            format="Mesh TensorFlow",
            config=config,
            arrays=arrays,
            layout=layout,
            ignored=ignored,
            notes=tuple(notes),
        ),
        name_map,
        unknown=unknown,
    )
