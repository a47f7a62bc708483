"""Attention masks, dense or as segments.

Shape letters: B batch, T query length, S key length.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

AttentionKind = Literal["auto", "plain", "blockwise", "pallas"]
# Query-key pairs above which "auto" is blockwise: below, the scores of a layer are small compared
# to its other activations, and plain attention is as fast or faster.
MANY_PAIRS = 512 * 512


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segments:
    """Segments of queries and keys: a query attends only to keys of its own segment.

    Attributes:
      queries: [B, T] int32, segment of each query, >= 1; None = all in segment 1.
      keys: [B, S] int32, segment of each key, 0 = masked; None = all in segment 1.
      causal: whether to mask keys at later positions than the query.

    Examples:
      >>> t5jax.ops.Segments(None, None, causal=True).dense(3, 3)[0, 0].astype(int).tolist()
      [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """

    queries: Int[Array, "B T"] | None
    keys: Int[Array, "B S"] | None
    causal: bool = dataclasses.field(metadata={"static": True})

    def ids(
        self, batch: int, query_len: int, key_len: int
    ) -> tuple[Int[Array, "B T"], Int[Array, "B S"]]:
        """Return the segments of all queries and keys as arrays.

        Args:
          batch: batch size.
          query_len: number of queries.
          key_len: number of keys.
        Returns:
          [B, T] and [B, S] int32, ones in place of None.
        """
        queries = jnp.ones((batch, query_len), jnp.int32) if self.queries is None else self.queries
        keys = jnp.ones((batch, key_len), jnp.int32) if self.keys is None else self.keys
        return queries, keys

    def dense(self, query_len: int, key_len: int) -> Bool[Array, "#B 1 #T S"]:
        """Return the dense mask.

        Args:
          query_len: number of queries.
          key_len: number of keys.
        Returns:
          [B or 1, 1, T or 1, S] bool, True where a query attends to a key.
        """
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
    """Build segments from the segment ids of a packed batch, where padding has id 0.

    Args:
      queries: [B, T] int, segment id of each query, >= 0; None = a single segment.
      keys: [B, S] int, segment id of each key; None = a single segment.
      key_mask: [B, S] bool, False = masked key; None masks no key.
      causal: whether to mask keys at later positions than the query.
    Returns:
      The segments, numbered from 1.

    Examples:
      >>> ids = jnp.array([[1, 1, 2, 0]])
      >>> segments = t5jax.ops.segments_from_ids(ids, ids, key_mask=ids > 0, causal=False)
      >>> segments.dense(4, 4)[0, 0].astype(int).tolist()
      [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    """
    if queries is None or keys is None:
        return Segments(None, None if key_mask is None else key_mask.astype(jnp.int32), causal)
    # From 1, since 0 is masked: padding may attend to padding that `key_mask` does not mask.
    segments = keys.astype(jnp.int32) + 1
    if key_mask is not None:
        segments = jnp.where(key_mask, segments, 0)
    return Segments(queries.astype(jnp.int32) + 1, segments, causal)


def attention_mask(
    segments: Segments, query_len: int, key_len: int, *, kind: AttentionKind
) -> Bool[Array, "#B 1 #T S"] | Segments:
    """Return the mask in the form that a kind of attention takes.

    Args:
      segments: segments of queries and keys.
      query_len: number of queries.
      key_len: number of keys.
      kind: kind of attention; "auto" is plain up to 512 x 512 query-key pairs.
    Returns:
      A dense mask for plain attention, otherwise the segments.

    Examples:
      >>> segments = t5jax.ops.Segments(None, None, causal=True)
      >>> t5jax.ops.attention_mask(segments, 512, 512, kind="auto").shape
      (1, 1, 512, 512)
      >>> t5jax.ops.attention_mask(segments, 513, 512, kind="auto") is segments
      True
    """
    many = query_len * key_len > MANY_PAIRS
    in_blocks = many if kind == "auto" else kind != "plain"
    return segments if in_blocks else segments.dense(query_len, key_len)
