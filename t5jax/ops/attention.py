"""Attention in blocks: the portable loop, or the kernel where a TPU can run it.

The two differ in speed, and in the last bits of what they compute:
- blockwise: `t5jax.ops.blockwise_attention`, on every device.
- pallas: `t5jax.ops.pallas_attention`, one kernel on TPU.

`t5jax.ops.masks.attention_mask` chooses between these and plain attention.

Shape letters: B batch, N heads, T query length, S key length, H head size.
"""

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from t5jax.ops import blockwise_attention
from t5jax.ops.masks import AttentionKind, Segments
from t5jax.parallel import BATCH_AXES, BATCH_SPEC, Sharder

_NO_MESH = Sharder()
# The axis of a mesh that divides heads.
_HEADS_AXIS = "tensor"


def attend(
    queries: Float[Array, "B N T H"],
    keys: Float[Array, "B N S H"],
    values: Float[Array, "B N S H"],
    *,
    segments: Segments,
    bias: Float[Array, "N offsets"] | None,
    kind: AttentionKind,
    sharder: Sharder = _NO_MESH,
) -> Float[Array, "B N T H"]:
    """Compute `blockwise_attend`, or the same by the TPU's kernel.

    Args:
      kind: "pallas" asks for the kernel, "auto" for it on a TPU that can run it; otherwise none.
    Raises:
      ValueError: the kernel is asked for, and this is no TPU or the mesh cannot divide the heads.
    """
    why_not = (
        "not asked" if kind == "blockwise" else _no_kernel(len(queries), queries.shape[1], sharder)
    )
    if kind == "pallas" and why_not:
        raise ValueError(f'attention="pallas" {why_not}; use "auto", which takes it where it can.')
    if why_not:
        return blockwise_attention.blockwise_attend(
            queries, keys, values, segments=segments, bias=bias, sharder=sharder
        )
    # Imported here, since Pallas takes longer to import than the rest of the package.
    from t5jax.ops import pallas_attention

    kernel = pallas_attention.pallas_attend
    if sharder.mesh is None:
        return kernel(queries, keys, values, segments=segments, bias=bias)
    return shard_kernel(
        kernel, queries, keys, values, segments=segments, bias=bias, sharder=sharder
    )


def shard_kernel(
    kernel,
    queries: Float[Array, "B N T H"],
    keys: Float[Array, "B N S H"],
    values: Float[Array, "B N S H"],
    *,
    segments: Segments,
    bias: Float[Array, "N offsets"] | None,
    sharder: Sharder,
) -> Float[Array, "B N T H"]:
    """Run a kernel that no partitioner can divide on every device's examples and heads.

    The mesh has the axes data, fsdp and tensor.
    """
    batch, _, query_len, _ = queries.shape
    query_ids, key_ids = segments.ids(batch, query_len, keys.shape[2])

    def part(queries, keys, values, bias, query_ids, key_ids):
        mine = Segments(query_ids, key_ids, segments.causal)
        return kernel(queries, keys, values, segments=mine, bias=bias)

    heads, examples = P(BATCH_AXES, _HEADS_AXIS), BATCH_SPEC
    bias_spec = None if bias is None else P(_HEADS_AXIS)
    return jax.shard_map(
        part,
        mesh=sharder.mesh,
        in_specs=(heads, heads, heads, bias_spec, examples, examples),
        out_specs=heads,
        check_vma=False,
    )(queries, keys, values, bias, query_ids, key_ids)


def _no_kernel(batch: int, num_heads: int, sharder: Sharder) -> str | None:
    """Return the reason why the TPU's kernel cannot run here; None if it can."""
    if sharder.platform != "tpu":
        return f"must be computed on a TPU, got {sharder.platform}"
    mesh = sharder.mesh
    if mesh is None:
        if jax.device_count() > 1:
            return "must run under jax.set_mesh where there are several devices, got no mesh"
        return None
    if not {*BATCH_AXES, _HEADS_AXIS} <= set(mesh.axis_names):
        return f"must run on a mesh with axes data, fsdp and tensor, got {mesh.axis_names}"
    num_shards = sharder.num_shards()
    if batch % num_shards or num_heads % mesh.shape[_HEADS_AXIS]:
        return (
            f"must divide examples by data x fsdp = {num_shards} and heads by tensor = "
            f"{mesh.shape[_HEADS_AXIS]}, got {batch} and {num_heads}"
        )
    return None
