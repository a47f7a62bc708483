"""Segments against the masks that loops over all pairs make."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from t5jax.ops.masks import Segments, attention_mask, segments_from_ids

B, T, S = 3, 5, 7
RNG = np.random.default_rng(0)
QUERIES, KEYS = RNG.integers(0, 3, (B, T)), RNG.integers(0, 3, (B, S))
KEPT = RNG.integers(0, 2, (B, S)) > 0


@pytest.mark.parametrize(
    ("segmented", "padded", "causal"), list(itertools.product([False, True], repeat=3))
)
def test_of_batch_ids_means_same_segment_and_not_masked(segmented, padded, causal):
    found = segments_from_ids(
        jnp.asarray(QUERIES, jnp.int32) if segmented else None,
        jnp.asarray(KEYS, jnp.int32) if segmented else None,
        key_mask=jnp.asarray(KEPT) if padded else None,
        causal=causal,
    )
    expected = np.ones((B, 1, T, S), bool)
    for b, t, s in np.ndindex(B, T, S):
        same = QUERIES[b, t] == KEYS[b, s] or not segmented
        expected[b, 0, t, s] = same and (KEPT[b, s] or not padded) and not (causal and s > t)
    dense = found.dense(T, S)
    np.testing.assert_array_equal(np.broadcast_to(dense, expected.shape), expected)
    # What is the same for all queries or examples is not repeated: plain attention is faster so.
    assert dense.shape == (B if segmented or padded else 1, 1, T if segmented or causal else 1, S)
    queries, keys = found.ids(B, T, S)
    same = np.asarray(queries)[:, :, None] == np.asarray(keys)[:, None]
    later = np.tri(T, S, dtype=bool) if causal else True
    np.testing.assert_array_equal(same & later, expected[:, 0])


@pytest.mark.parametrize(
    ("kind", "lengths", "expected"),
    [
        ("auto", (512, 512), False),
        ("auto", (513, 512), True),
        ("auto", (1, 4096), False),
        ("plain", (513, 999), False),
        ("blockwise", (3, 3), True),
        ("pallas", (3, 3), True),
    ],
)
def test_in_blocks_is_for_long_sequences_or_on_demand(kind, lengths, expected):
    segments = Segments(None, None, causal=True)
    mask = attention_mask(segments, *lengths, kind=kind)
    assert (mask is segments) == expected
    assert expected or mask.shape == (1, 1, *lengths)
