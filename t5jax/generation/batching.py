"""Few shapes for many lengths: a program is compiled for each, so lengths are padded to some."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from t5jax.data import pad_sequences

SMALLEST_BUCKET = 16


def length_bucket(length: int) -> int:
    """The length that `length` is padded to: 16, 24, 32, 48, 64, 96, 128, ...

    Two buckets for every doubling bound both the padding, to a half, and the number of programs
    that are compiled.
    """
    size = SMALLEST_BUCKET
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def length_buckets(max_length: int) -> list[int]:
    """All buckets that lengths up to `max_length` fall into."""
    sizes = [length_bucket(1)]
    while sizes[-1] < max_length:
        sizes.append(length_bucket(sizes[-1] + 1))
    return sizes


def pad_batch(
    sequences: Sequence[Sequence[int]], *, pad_id: int, num_rows: int | None = None
) -> tuple[Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]]:
    """Ids and mask, padded to the bucket of the longest sequence and to `num_rows` rows.

    An id below 0 is a position that is masked, in the middle of a sequence too.
    """
    length = length_bucket(max((len(s) for s in sequences), default=1))
    rows = [*sequences, *[[]] * ((num_rows or len(sequences)) - len(sequences))]
    tokens = pad_sequences(rows, length=length, pad_id=-1)
    mask = tokens >= 0
    return np.where(mask, tokens, np.int32(pad_id)), mask


def batch_bucket(count: int) -> int:
    """The number of rows that `count` is padded to, the next power of two."""
    return 1 << (count - 1).bit_length()


def by_length(
    encoded: Sequence[Sequence[int]],
    run: Callable[[np.ndarray, np.ndarray, np.ndarray], Sequence[Any]],
    *,
    batch_size: int,
    pad_id: int,
) -> list[Any]:
    """Results of `run(rows, tokens, mask)` for each input, in order; computed by length.

    Args:
      encoded: ids of every input.
      run: from the place of every row in `encoded`, -1 for those that fill up a batch, and their
        ids and mask to one result a row.
      batch_size: most rows of a batch.
      pad_id: fills up short rows.
    """
    results: list[Any] = [None] * len(encoded)
    for rows, tokens, mask in batches_by_length(encoded, batch_size=batch_size, pad_id=pad_id):
        group = rows[rows >= 0]
        for i, result in zip(group, run(rows, tokens, mask), strict=False):
            results[i] = result
    return results


def batches_by_length(
    encoded: Sequence[Sequence[int]], *, batch_size: int, pad_id: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows, ids and mask of each batch, as `by_length` runs them; shortest inputs first."""
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    for start in range(0, len(encoded), batch_size):
        group = order[start : start + batch_size]
        num_rows = min(batch_bucket(len(group)), batch_size)
        tokens, mask = pad_batch([encoded[i] for i in group], pad_id=pad_id, num_rows=num_rows)
        yield np.array([*group, *[-1] * (num_rows - len(group))]), tokens, mask
