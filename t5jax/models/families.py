"""Families of models: the blocks that their stacks are made of, and how parameters are sharded.

A family needs its fields in `T5Config`, blocks, and a row in `FAMILIES`; names of its parameters in
other formats are in `t5jax.pretrained`.
"""

import dataclasses

from jax.sharding import PartitionSpec as P

from t5jax.errors import suggest
from t5jax.models.config import T5Config
from t5jax.models.transformer import DecoderBlock, EncoderBlock
from t5jax.parallel import PartitionRules


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Blocks and sharding of a family.

    Attributes:
      encoder_blocks: block classes of one period of the encoder, repeated to its depth; several if
        blocks alternate.
      decoder_blocks: likewise for the decoder.
      partition_rules: path pattern and mesh axes of every parameter.  Blocks are stacked, so the
        first axis of their parameters is the layer.
    """

    encoder_blocks: tuple[type[EncoderBlock], ...]
    decoder_blocks: tuple[type[DecoderBlock], ...]
    partition_rules: PartitionRules


FAMILIES = {
    # T5, v1.1, mT5, ByT5, umT5, UL2 and their kin differ in switches of T5Config alone.
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
    """Return the family of a model.

    Args:
      config: names the family.
    Returns:
      Its row of `FAMILIES`.
    Raises:
      ValueError: no family has this name; the message suggests the nearest.
    """
    if config.family not in FAMILIES:
        hint = suggest(config.family, tuple(FAMILIES), f"use one of {', '.join(FAMILIES)}.")
        raise ValueError(f"unknown family {config.family!r}; {hint}")
    return FAMILIES[config.family]
