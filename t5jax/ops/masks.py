"""Masks of attention, in the form that each way to compute it takes.

Shape letters: B batch, T query length, S key length.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

AttentionKind = Literal["auto", "plain", "blockwise", "pallas"]
# Pairs of query and key above which "auto" computes in blocks: below, all scores of a layer are
# small next to its other activations, and plain attention is as fast or faster.
MANY_PAIRS = 512 * 512


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segments:
    """A query looks at the keys of its own segment; if causal, at none that comes after it.

    Attributes:
      queries: the segment of every query, at least 1; None puts all of them in segment 1.
      keys: the segment of every key; nobody looks at 0.  None puts all of them in segment 1.
      causal: whether a query sees no key of a later position.
    """

    queries: Int[Array, "B T"] | None
    keys: Int[Array, "B S"] | None
    causal: bool = dataclasses.field(metadata={"static": True})

    def ids(
        self, batch: int, query_len: int, key_len: int
    ) -> tuple[Int[Array, "B T"], Int[Array, "B S"]]:
        """Segments of queries and keys, written out."""
        queries = jnp.ones((batch, query_len), jnp.int32) if self.queries is None else self.queries
        keys = jnp.ones((batch, key_len), jnp.int32) if self.keys is None else self.keys
        return queries, keys

    def dense(self, query_len: int, key_len: int) -> Bool[Array, "#B 1 #T S"]:
        """True for every query (third axis) that may look at a key (fourth)."""
        mask = jnp.ones((1, 1, 1, key_len), bool)
        if self.keys is not None:
            mask = self.keys[:, None, None, :] > 0 if self.queries is None else mask
        if self.queries is not None:
            keys = self.ids(len(self.queries), query_len, key_len)[1]
            mask = (self.queries[:, :, None] == keys[:, None, :])[:, None]
        if self.causal:
            mask = mask & jnp.tri(query_len, key_len, dtype=bool)[None, None]
        return mask


def segments_from_ids(
    queries: Int[Array, "B T"] | None,
    keys: Int[Array, "B S"] | None,
    *,
    key_mask: Bool[Array, "B S"] | None,
    causal: bool,
) -> Segments:
    """From segment ids as batches have them, where padding is a segment 0 of its own.

    Args:
      queries: ids of the queries, at least 0; None for a single segment, then of keys too.
      keys: ids of the keys.
      key_mask: True on keys that are there; None if all are.
      causal: as in `Segments`.
    """
    if queries is None or keys is None:
        return Segments(None, None if key_mask is None else key_mask.astype(jnp.int32), causal)
    # From 1, since 0 is what nobody looks at, and padding may look at padding that is not masked.
    segments = keys.astype(jnp.int32) + 1
    if key_mask is not None:
        segments = jnp.where(key_mask, segments, 0)
    return Segments(queries.astype(jnp.int32) + 1, segments, causal)


def attention_mask(
    segments: Segments, query_len: int, key_len: int, *, kind: AttentionKind
) -> Bool[Array, "#B 1 #T S"] | Segments:
    """Return the mask that attention of this kind takes.

    Args:
      segments: of queries and keys.
      query_len: number of queries.
      key_len: number of keys.
      kind: "auto" is plain up to `MANY_PAIRS` pairs of query and key.
    Returns:
      Segments if attention is computed in blocks, else a dense mask.
    """
    many = query_len * key_len > MANY_PAIRS
    in_blocks = many if kind == "auto" else kind != "plain"
    return segments if in_blocks else segments.dense(query_len, key_len)
