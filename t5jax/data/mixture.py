"""Mixtures of tasks: pairs drawn from several tasks, in batches of fixed shape.

Example `i` of a mixture depends on (seed, i) alone, so a run can stop and resume anywhere.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5jax.data.batches import Batch
from t5jax.data.packing import Pair, PairLimits, Pairs, pack_pairs, stack_rows


def mixing_rates(
    sizes: Mapping[str, int], weights: Mapping[str, float | None], *, size_limit: int
) -> dict[str, float]:
    """Compute the rates of tasks in a mixture, which add up to 1.

    Without weights, a task's rate is proportional to its number of examples, at most `size_limit`,
    so that large tasks do not crowd out small ones.  (arXiv:1910.10683, section 3.5.2)

    Args:
      sizes: number of examples of each task.
      weights: weight of each task, or None for all.
      size_limit: artificial limit on the size of a task, K in the paper.
    Raises:
      ValueError: some tasks have a weight, but not all.
    """
    if len({weight is None for weight in weights.values()}) > 1:
        without = [name for name, weight in weights.items() if weight is None]
        raise ValueError(
            f"all tasks must have a weight, or none, got none for {', '.join(without)}."
        )
    rates = {
        name: float(min(size, size_limit)) if weights[name] is None else float(weights[name] or 0)
        for name, size in sizes.items()
    }
    total = sum(rates.values())
    return {name: rate / total for name, rate in rates.items()}


def mixture_stream(tasks: Sequence[Pairs], rates: Sequence[float], *, seed: int) -> Any:
    """Make the endless, indexed sequence of examples of a mixture.

    Each task is shuffled in another order in each of its epochs.

    Args:
      tasks: pairs of each task.
      rates: rate of each task, as `mixing_rates` returns them.
      seed: random seed of the orders.
    Returns:
      A grain `MapDataset` of (index of the task, `Pair`).
    """
    import grain

    streams = []
    for index, pairs in enumerate(tasks):
        order: Any = grain.MapDataset.range(len(pairs)).shuffle(seed=seed + index).repeat()
        streams.append(order.map(lambda i, index=index, pairs=pairs: (index, pairs[int(i)])))
    return grain.MapDataset.mix(streams, weights=list(rates)) if len(streams) > 1 else streams[0]


class MixtureBatches:
    """An endless iterator of batches of a mixture, with a position to save and restore.

    Packed rows hold as many pairs as fit, numbered from 1 by `encoder_segment_ids` and
    `decoder_segment_ids`; a batch ends with the first pair that fits in none of its rows.
    The position counts examples, so that it is the same in every process.
    """

    def __init__(
        self,
        examples: Any,
        *,
        batch_size: int,
        limits: PairLimits,
        pack: bool,
        pad_id: int,
        decoder_start_id: int,
        rows: Sequence[int] | np.ndarray | None = None,
    ):
        """Create an iterator at the start of a mixture.

        Args:
          examples: examples as `mixture_stream` makes them.
          batch_size: rows in a batch.
          limits: lengths of a row.
          pack: put several pairs in a row.
          pad_id: id of padding.
          decoder_start_id: id that the decoder reads first.
          rows: rows of each batch to make, those of this process; all if None.
        """
        self._examples = examples
        self._batch_size = batch_size
        self._lengths = limits.lengths
        self._max_pairs = None if pack else 1
        self._pad_id, self._start_id = pad_id, decoder_start_id
        self._rows = range(batch_size) if rows is None else [int(row) for row in rows]
        self._next = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows = pack_pairs(
            self._upcoming(),
            batch_size=self._batch_size,
            lengths=self._lengths,
            max_pairs=self._max_pairs,
        )
        self._next += sum(map(len, rows))
        return stack_rows(
            [rows[row] for row in self._rows],
            lengths=self._lengths,
            pad_id=self._pad_id,
            decoder_start_id=self._start_id,
            packed=self._max_pairs is None,
        )

    def _upcoming(self) -> Iterator[Pair]:
        number = self._next
        while True:
            yield self._examples[number][1]
            number += 1

    def get_state(self) -> dict[str, int]:
        """Return the position of the next batch."""
        return {"next_example": self._next}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Move to a position that `get_state` returned."""
        self._next = int(state["next_example"])


def heldout_batches(
    pairs: Pairs,
    *,
    batch_size: int,
    lengths: tuple[int, int],
    pad_id: int,
    decoder_start_id: int,
    rows: Sequence[int] | np.ndarray | None = None,
) -> Iterator[Batch]:
    """Batch all pairs once, in order, the last batch filled up with padding.

    Args:
      pairs: the examples.
      batch_size: rows in a batch, each with one pair.
      lengths: lengths of the encoder's and of the decoder's rows.
      pad_id: id of padding.
      decoder_start_id: id that the decoder reads first.
      rows: rows of each batch to make, those of this process; all if None.
    """
    numbers = range(batch_size) if rows is None else [int(row) for row in rows]
    for start in range(0, len(pairs), batch_size):
        batch = [[pairs[start + i]] if start + i < len(pairs) else [] for i in numbers]
        yield stack_rows(
            batch, lengths=lengths, pad_id=pad_id, decoder_start_id=decoder_start_id, packed=False
        )
