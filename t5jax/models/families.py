"""Model families: the blocks of their stacks and the sharding of their parameters.

To add a family, add its fields to `T5Config`, its blocks, a row to `FAMILIES`, and its parameter
names in other formats to `t5jax.pretrained`.
"""

import dataclasses

from jax.sharding import PartitionSpec as P

from t5jax.errors import suggest
from t5jax.models.config import T5Config
from t5jax.models.transformer import DecoderBlock, EncoderBlock
from t5jax.parallel import PartitionRules


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Blocks and partition rules of a model family.

    Attributes:
      encoder_blocks: block classes of one encoder period, repeated up to its depth; more than one
        if blocks alternate.
      decoder_blocks: the same for the decoder.
      partition_rules: (path pattern, mesh axes) pairs that cover every parameter.  Blocks are
        stacked, so the first axis of their parameters is the layer.

    Examples:
      >>> [block.__name__ for block in t5jax.models.FAMILIES["t5"].decoder_blocks]
      ['DecoderBlock']
    """

    encoder_blocks: tuple[type[EncoderBlock], ...]
    decoder_blocks: tuple[type[DecoderBlock], ...]
    partition_rules: PartitionRules


FAMILIES = {
    # T5, v1.1, mT5, ByT5, umT5, UL2 and their variants differ only in fields of T5Config.
    "t5": Family(
        encoder_blocks=(EncoderBlock,),
        decoder_blocks=(DecoderBlock,),
        partition_rules=(
            ("token_embedder/embedding", P("tensor", "fsdp")),
            ("(self_|cross_)?attention/(query|key|value)", P(None, "fsdp", "tensor")),
            ("(self_|cross_)?attention/out", P(None, "tensor", "fsdp")),
            ("mlp/(wi|wi_linear)", P(None, "fsdp", "tensor")),
            ("mlp/wo", P(None, "tensor", "fsdp")),
            ("output/kernel", P("fsdp", "tensor")),
            ("projection/kernel", P("fsdp", None)),
            ("relative_bias/embedding", P()),
            ("[a-z_]*norm/scale", P()),
        ),
    ),
}


def get_family(config: T5Config) -> Family:
    """Return the family of a config.

    Args:
      config: its `family` is looked up.
    Returns:
      The value in `FAMILIES`.
    Raises:
      ValueError: unknown family; the message suggests the nearest.

    Examples:
      >>> t5jax.models.get_family(config) is t5jax.models.FAMILIES["t5"]
      True
    """
    if config.family not in FAMILIES:
        hint = suggest(config.family, tuple(FAMILIES), f"use one of {', '.join(FAMILIES)}.")
        raise ValueError(f"unknown family {config.family!r}; {hint}")
    return FAMILIES[config.family]
