"""Memory-efficient attention: a portable blockwise loop, or a Pallas kernel on TPU.

The two differ in speed and rounding:
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
# The mesh axis that shards heads.
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
    """Compute attention blockwise, or with the Pallas kernel on TPU.

    Args:
      queries: [B, N, T, H], unscaled.
      keys: [B, N, S, H].
      values: [B, N, S, H].
      segments: segments of queries and keys.
      bias: [N, offsets] float32, as in `blockwise_attend`; None adds nothing.
      kind: "pallas" requires the kernel, "auto" uses it where it can run.
      sharder: sharder of the model.
    Returns:
      [B, N, T, H] in the dtype of `values`.
    Raises:
      ValueError: `kind` is "pallas", but this is not a TPU or the mesh does not divide the work.
    """
    why_not = (
        "not asked" if kind == "blockwise" else _no_kernel(len(queries), queries.shape[1], sharder)
    )
    if kind == "pallas" and why_not:
        raise ValueError(f'attention="pallas" {why_not}; use "auto" to fall back to blockwise.')
    if why_not:
        return blockwise_attention.blockwise_attend(
            queries, keys, values, segments=segments, bias=bias, sharder=sharder
        )
    # Imported here: Pallas takes longer to import than the rest of the package.
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
    """Run a kernel that XLA cannot partition on each device's examples and heads.

    Args:
      kernel: function such as `pallas_attend`.
      queries: [B, N, T, H].
      keys: [B, N, S, H].
      values: [B, N, S, H].
      segments: segments of queries and keys.
      bias: [N, offsets] float32, or None.
      sharder: sharder whose mesh has the axes data, fsdp and tensor.
    Returns:
      [B, N, T, H], sharded like `queries`.
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
    """Return the reason why the Pallas kernel cannot run here; None if it can."""
    if sharder.platform != "tpu":
        return f"requires a TPU, got {sharder.platform}"
    mesh = sharder.mesh
    if mesh is None:
        if jax.device_count() > 1:
            return "requires jax.set_mesh with several devices, got no mesh"
        return None
    if not {*BATCH_AXES, _HEADS_AXIS} <= set(mesh.axis_names):
        return f"requires mesh axes data, fsdp and tensor, got {mesh.axis_names}"
    num_shards = sharder.num_shards()
    if batch % num_shards or num_heads % mesh.shape[_HEADS_AXIS]:
        return (
            f"requires a batch size divisible by data x fsdp = {num_shards} and heads divisible by "
            f"tensor = {mesh.shape[_HEADS_AXIS]}, got {batch} and {num_heads}"
        )
    return None
