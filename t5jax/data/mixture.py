"""Pairs of ids drawn from several tasks, in batches of fixed shape, several pairs in a row.

Example `i` of a mixture depends on (seed, i) alone, so a run can stop anywhere and go on.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5jax.data.batch import Batch
from t5jax.data.packing import Pair, PairLimits, Pairs, pack_pairs, stack_rows


def mixing_rates(
    sizes: Mapping[str, int], weights: Mapping[str, float | None], *, size_limit: int
) -> dict[str, float]:
    """Shares of tasks in a mixture, which add up to 1.

    A task without a weight has its number of examples for one, at most `size_limit`, so that large
    tasks do not crowd out small ones.  (arXiv:1910.10683, section 3.5.2)

    Args:
      sizes: examples of each task.
      weights: of each task, or None.
      size_limit: the artificial limit on the size of a task, K in the paper.
    """
    if len({weight is None for weight in weights.values()}) > 1:
        without = [name for name, weight in weights.items() if weight is None]
        raise ValueError(
            f"all tasks must have a weight, or none, got none for {', '.join(without)}."
        )
    found = {
        name: float(min(size, size_limit)) if weights[name] is None else float(weights[name] or 0)
        for name, size in sizes.items()
    }
    total = sum(found.values())
    return {name: rate / total for name, rate in found.items()}


def mixture_stream(tasks: Sequence[Pairs], shares: Sequence[float], *, seed: int) -> Any:
    """The endless sequence of examples of a mixture, by number: (place of the task, `Pair`).

    Each task is shuffled anew in each of its epochs.
    """
    import grain

    parts = []
    for place, pairs in enumerate(tasks):
        part: Any = grain.MapDataset.range(len(pairs)).shuffle(seed=seed + place).repeat()
        parts.append(part.map(lambda i, place=place, pairs=pairs: (place, pairs[int(i)])))
    return grain.MapDataset.mix(parts, weights=list(shares)) if len(parts) > 1 else parts[0]


class MixtureBatches:
    """Endless batches of a mixture; `get_state` and `set_state` save the position.

    Packed, a row holds as many pairs as fit, numbered by `encoder_segment_ids` and
    `decoder_segment_ids` from 1; a batch ends with the first pair that fits in none of its rows.
    The position counts examples, so it is the same in every process.
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
        """`rows` of the `batch_size` rows are those to make; all, unless given."""
        self._examples = examples
        self._batch_size = batch_size
        self._lengths = limits.lengths
        self._most = None if pack else 1
        self._pad_id, self._start_id = pad_id, decoder_start_id
        self._rows = range(batch_size) if rows is None else [int(row) for row in rows]
        self._next = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        filled = pack_pairs(
            self._upcoming(), batch_size=self._batch_size, lengths=self._lengths, most=self._most
        )
        self._next += sum(map(len, filled))
        return stack_rows(
            [filled[row] for row in self._rows],
            lengths=self._lengths,
            pad_id=self._pad_id,
            decoder_start_id=self._start_id,
            packed=self._most is None,
        )

    def _upcoming(self) -> Iterator[Pair]:
        number = self._next
        while True:
            yield self._examples[number][1]
            number += 1

    def get_state(self) -> dict[str, int]:
        """Where the next batch begins."""
        return {"next_example": self._next}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes where `get_state` was called."""
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
    """All pairs once, in order, in batches of one shape, the last filled up with padding.

    `rows` are those of each batch to make; all, unless given.
    """
    numbers = range(batch_size) if rows is None else [int(row) for row in rows]
    for start in range(0, len(pairs), batch_size):
        chosen = [[pairs[start + i]] if start + i < len(pairs) else [] for i in numbers]
        yield stack_rows(
            chosen, lengths=lengths, pad_id=pad_id, decoder_start_id=decoder_start_id, packed=False
        )
