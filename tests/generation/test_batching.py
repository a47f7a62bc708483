"""Few shapes: what lengths are padded to, and how inputs are put together into batches."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from t5jax.generation.batching import (
    batch_bucket,
    batches_by_length,
    length_bucket,
    length_buckets,
    pad_batch,
)


def test_bucket_sequence_has_two_sizes_for_every_doubling():
    expected = [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]
    assert length_buckets(2048) == expected
    assert length_buckets(2049) == [*expected, 3072]


@pytest.mark.parametrize(
    ("length", "size"),
    [(0, 16), (1, 16), (16, 16), (17, 24), (24, 24), (25, 32), (33, 48), (97, 128), (400, 512)],
)
def test_bucket_is_the_next_size(length, size):
    assert length_bucket(length) == size


@given(length=st.integers(1, 100_000))
def test_bucket_pads_by_less_than_a_half(length):
    size = length_bucket(length)
    assert length <= size
    assert size <= 16 or size < length * 3 / 2


def test_buckets_are_those_that_lengths_fall_into():
    assert length_buckets(400) == sorted({length_bucket(n) for n in range(1, 401)})
    assert length_buckets(1) == [16]


def test_pad_batch_pads_to_the_bucket_of_the_longest():
    sequences = [[5, 6, 7], [], list(range(20))]
    tokens, mask = pad_batch(sequences, pad_id=9)
    assert tokens.shape == mask.shape == (3, 24)
    assert (tokens.dtype, mask.dtype) == (np.int32, np.bool_)
    for row, row_mask, sequence in zip(tokens, mask, sequences, strict=True):
        assert row.tolist() == sequence + [9] * (24 - len(sequence))
        assert row_mask.tolist() == [True] * len(sequence) + [False] * (24 - len(sequence))


def test_pad_batch_fills_up_with_rows_that_have_no_tokens():
    tokens, mask = pad_batch([[3, 3], [4]], pad_id=0, num_rows=5)
    assert tokens.shape == mask.shape == (5, 16)
    assert mask.sum(axis=1).tolist() == [2, 1, 0, 0, 0]
    assert not tokens[2:].any()


def test_pad_batch_of_padding_ids_masks_by_length_not_by_id():
    """MADLAD and others have words where T5 has padding."""
    _, mask = pad_batch([[0, 0, 0], [1]], pad_id=0)
    assert mask.sum(axis=1).tolist() == [3, 1]


def test_pad_batch_of_nothing_is_empty():
    tokens, mask = pad_batch([], pad_id=0)
    assert tokens.shape == mask.shape == (0, 16)


@given(count=st.integers(1, 100_000))
def test_rows_bucket_is_the_next_power_of_two(count):
    size = batch_bucket(count)
    assert size >= count
    assert size.bit_count() == 1
    assert size < 2 * count


LENGTHS = [5, 20, 1, 40, 0, 17, 5, 33, 2]
ENCODED = [[10 + i] * length for i, length in enumerate(LENGTHS)]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 9, 32])
def test_batches_hold_every_input_once_shortest_first(batch_size):
    seen = []
    for indices, tokens, mask in batches_by_length(ENCODED, batch_size=batch_size, pad_id=7):
        assert len(indices) <= len(tokens) == len(mask) <= batch_size
        assert len(tokens) in (batch_size, 1, 2, 4, 8, 16)
        # Rows that fill up the batch come last.
        inputs = [ENCODED[i] for i in indices] + [[]] * (len(tokens) - len(indices))
        for row, ids, kept in zip(inputs, tokens, mask, strict=True):
            assert ids.tolist() == row + [7] * (tokens.shape[1] - len(row))
            assert kept.sum() == len(row)
        assert tokens.shape[1] == length_bucket(max(LENGTHS[i] for i in indices))
        seen += indices
    assert sorted(seen) == list(range(len(ENCODED)))
    assert [LENGTHS[i] for i in seen] == sorted(LENGTHS)


def test_batches_of_nothing_are_none():
    assert [*batches_by_length([], batch_size=4, pad_id=0)] == []
