"""Mesh TensorFlow's T5 checkpoints, the form in which Google first published T5.

(https://github.com/google-research/text-to-text-transfer-transformer)  Kernels are [in, out], bias
tables [N, R]; every layer has variables of its own.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from t5jax.pretrained import infer_config
from t5jax.pretrained.formats import newest_prefix, open_tf_bundle
from t5jax.pretrained.name_map import ATTENTIONS, KERNELS, NameMap, NameRule
from t5jax.pretrained.source import CheckpointSource, checked_source
from t5jax.pretrained.t5x import read_t5x_config

_OPTIMIZER = re.compile(r".*_slot_(v|vr|vc|m)|global_step|.*/Adam(_1)?|beta[12]_power")


def mesh_tf_name_map() -> NameMap:
    """Names of all parameters; a norm has one of two, by the age of the program."""
    return NameMap(_rules(), digits=3)


def _rules() -> Iterator[NameRule]:
    yield NameRule("token_embedder/embedding", "shared/embedding")
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
    yield NameRule("output/kernel", "decoder/logits/kernel")


def find_mesh_tf(path: Path) -> Path | None:
    """The prefix of the checkpoint's files, by that prefix, one of them, or their folder."""
    if path.is_dir():
        return newest_prefix(path)
    prefix = re.sub(r"\.(index|meta|data-[0-9]{5}-of-[0-9]{5})$", "", str(path))
    return Path(prefix) if Path(f"{prefix}.index").is_file() else None


def open_mesh_tf(path: Path, *, encoder_only: bool = False) -> CheckpointSource:
    """What the checkpoint with this prefix holds; its config is found as T5X's is.

    Raises:
      ValueError: not a T5's checkpoint, or a damaged one.
    """
    found = open_tf_bundle(path)
    file = Path(f"{path}.index")
    ignored = {name: "not of the model" for name in found if _OPTIMIZER.fullmatch(name)}
    old_bias = "decoder/block_000/layer_001/EncDecAttention/relative_attention_bias"
    if old_bias in found:
        ignored[old_bias] = "of a bias that cross-attention does not have"
    names = mesh_tf_name_map()
    layout, unknown = names.match([n for n in found if n not in ignored], source=file)
    if "token_embedder/embedding" not in layout:
        raise ValueError(
            f"{file} must hold shared/embedding, which every encoder-decoder T5 has; it holds "
            f"{len(found)} variables, first {min(found, default='none')!r:.80}."
        )
    infer_config.split_bias_rules(layout, keep=False)
    if encoder_only:
        infer_config.drop_decoder(layout, ignored)
    notes: list[str] = []
    shapes = infer_config.infer_shapes(layout, found)
    config = read_t5x_config([path.parent], shapes, source=file, notes=notes)
    if encoder_only:
        config = config.replace(num_decoder_layers=0)
    return checked_source(
        CheckpointSource(
            path=file,
            format="Mesh TensorFlow",
            config=config,
            arrays=found,
            layout=layout,
            ignored=ignored,
            notes=tuple(notes),
        ),
        names,
        unknown=unknown,
    )
