"""Batches of examples for training and evaluation: shuffled, made by an objective, stacked.

Example `i` of epoch `e` depends on (seed, e, i) alone, so a run can stop and resume anywhere.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import grain
from t5jax.data.batch import Batch, stack_examples
from t5jax.data.token_stream import ExampleSource


def training_batches(
    chunks: ExampleSource,
    make_example: Callable[[np.ndarray, np.random.Generator], Batch],
    *,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | np.ndarray | None = None,
) -> "grain.DatasetIterator[Batch]":
    """Iterate over endless shuffled batches.

    The iterator's `get_state` and `set_state` save its position.  It counts whole batches, so it is
    the same in every process, however many there are.

    Args:
      chunks: raw examples.
      make_example: makes an example from a chunk and a random generator of its own.
      batch_size: global batch size.
      seed: random seed of the order and of the examples.
      rows: examples of each batch to make, those of this process; all if None.
    """
    import grain

    count = len(chunks)
    rows = range(batch_size) if rows is None else [int(row) for row in rows]

    def example(index: int, chunk: np.ndarray) -> Batch:
        epoch, position = divmod(index, count)
        return make_example(chunk, np.random.default_rng([seed, epoch, position]))

    examples: Any = grain.MapDataset.source(chunks).shuffle(seed=seed).repeat()
    examples = examples.map_with_index(example)

    def batch(number: int) -> Batch:
        return stack_examples([examples[number * batch_size + row] for row in rows])

    dataset = grain.MapDataset.range(sys.maxsize // batch_size).map(batch)
    # One reading thread keeps ahead of the training step, which owns the other cores.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)
    return iter(dataset.to_iter_dataset(options))


def batch_chunks(count: int, number: int, *, batch_size: int, seed: int) -> list[int]:
    """Return the indices of the chunks in one batch of `training_batches`.

    Args:
      count: number of chunks.
      number: number of the batch, from 0.
      batch_size: global batch size.
      seed: random seed of the order.
    """
    import grain

    order: Any = grain.MapDataset.range(count).shuffle(seed=seed).repeat()
    return [int(order[number * batch_size + row]) for row in range(batch_size)]


def evaluation_batches(
    chunks: ExampleSource,
    make_example: Callable[[np.ndarray, np.random.Generator], Batch],
    *,
    batch_size: int,
    seed: int,
    max_examples: int,
    rows: Sequence[int] | np.ndarray | None = None,
) -> Iterator[Batch]:
    """Iterate once over batches that are the same every time.

    The last batch is filled up with copies of its first example whose loss weights are 0.

    Args:
      chunks: raw examples.
      make_example: makes an example from a chunk and a random generator of its own.
      batch_size: global batch size.
      seed: random seed of the examples.
      max_examples: maximum number of examples, from the beginning.
      rows: examples of each batch to make, those of this process; all if None.
    """
    count = min(len(chunks), max_examples)
    rows = range(batch_size) if rows is None else [int(row) for row in rows]

    def example(i: int) -> Batch:
        return make_example(chunks[i], np.random.default_rng([seed, i]))

    for start in range(0, count, batch_size):
        first = example(start)
        unweighted = {**first, "decoder_loss_weights": first["decoder_loss_weights"] * 0}
        yield stack_examples(
            [example(start + i) if start + i < count else unweighted for i in rows]
        )
