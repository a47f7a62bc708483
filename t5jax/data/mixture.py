"""Mixtures of tasks: pairs sampled from several tasks, in batches of fixed shape.

Example `i` of a mixture depends only on (seed, i), so a run can stop and resume anywhere.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5jax.data.batches import Batch
from t5jax.data.packing import Pair, PairLimits, Pairs, pack_pairs, stack_rows


def mixing_rates(
    sizes: Mapping[str, int], weights: Mapping[str, float | None], *, size_limit: int
) -> dict[str, float]:
    """Compute the mixing rate of each task; the rates sum to 1.

    With weights, rates are proportional to them. Without, they are proportional to
    min(size, size_limit), so large tasks do not crowd out small ones (arXiv:1910.10683,
    section 3.5.2).

    Args:
      sizes: number of examples of each task.
      weights: weight of each task; either all or none are None.
      size_limit: artificial limit on the size of a task, K in the paper.
    Returns:
      The rate of each task, by name.
    Raises:
      ValueError: only some tasks have a weight.

    Examples:
      >>> t5jax.data.mixing_rates({"a": 300, "b": 900}, {"a": None, "b": None}, size_limit=700)
      {'a': 0.3, 'b': 0.7}
    """
    if len({weight is None for weight in weights.values()}) > 1:
        without = [name for name, weight in weights.items() if weight is None]
        raise ValueError(
            f"all tasks must have a weight, or none, got no weight for {', '.join(without)}; set "
            "theirs, or remove the others."
        )
    rates = {
        name: float(min(size, size_limit)) if weights[name] is None else float(weights[name] or 0)
        for name, size in sizes.items()
    }
    total = sum(rates.values())
    return {name: rate / total for name, rate in rates.items()}


def mixture_stream(tasks: Sequence[Pairs], rates: Sequence[float], *, seed: int) -> Any:
    """Create the endless, indexed sequence of examples of a mixture.

    Each task is reshuffled every epoch.

    Args:
      tasks: pairs of each task.
      rates: mixing rate of each task, from `mixing_rates`.
      seed: random seed for the order.
    Returns:
      A grain `MapDataset` of (index of the task, `Pair`).

    Examples:
      >>> pairs = t5jax.data.Pairs([t5jax.data.Pair([5, 1], [6, 1])])
      >>> stream = t5jax.data.mixture_stream([pairs], [1.0], seed=0)
      >>> index, pair = stream[1000]
      >>> index, pair.input.tolist()
      (0, [5, 1])
    """
    import grain

    streams = []
    for index, pairs in enumerate(tasks):
        order: Any = grain.MapDataset.range(len(pairs)).shuffle(seed=seed + index).repeat()
        streams.append(order.map(lambda i, index=index, pairs=pairs: (index, pairs[int(i)])))
    return grain.MapDataset.mix(streams, weights=list(rates)) if len(streams) > 1 else streams[0]


class MixtureBatches:
    """Endless iterator over batches of a mixture, with a position to save and restore.

    Packed rows hold as many pairs as fit, numbered from 1 by `encoder_segment_ids` and
    `decoder_segment_ids`; a batch ends before the first pair that fits in none of its rows.
    The position counts examples, so it is the same in every process.

    Args:
      examples: examples from `mixture_stream`.
      batch_size: global batch size, in rows.
      limits: maximum lengths of the input and target in a row.
      pack: pack several pairs into a row.
      pad_id: id of padding.
      decoder_start_id: decoder start id.
      rows: rows of each global batch to make in this process; None makes all.

    Examples:
      >>> pairs = t5jax.data.Pairs([t5jax.data.Pair([5, 1], [6, 1])])
      >>> batches = t5jax.data.MixtureBatches(
      ...     t5jax.data.mixture_stream([pairs], [1.0], seed=0),
      ...     batch_size=1,
      ...     limits=t5jax.data.PairLimits(input_length=5, target_length=5),
      ...     pack=True,
      ...     pad_id=0,
      ...     decoder_start_id=0,
      ... )
      >>> next(batches)["encoder_input_tokens"].tolist(), batches.get_state()
      ([[5, 1, 5, 1, 0]], {'next_example': 2})
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
        """Return the position of the next batch, for `set_state`."""
        return {"next_example": self._next}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Restore a position.

        Args:
          state: position from `get_state`.
        """
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
    """Iterate once over the pairs in order, one per row; the last batch is padded.

    Args:
      pairs: examples.
      batch_size: global batch size.
      lengths: encoder and decoder length of a row, in tokens.
      pad_id: id of padding.
      decoder_start_id: decoder start id.
      rows: rows of each global batch to make in this process; None makes all.
    Yields:
      Batches of `len(rows)` rows.
    """
    numbers = range(batch_size) if rows is None else [int(row) for row in rows]
    for start in range(0, len(pairs), batch_size):
        batch = [[pairs[start + i]] if start + i < len(pairs) else [] for i in numbers]
        yield stack_rows(
            batch, lengths=lengths, pad_id=pad_id, decoder_start_id=decoder_start_id, packed=False
        )
