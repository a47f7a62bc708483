"""From documents to batches: tokens on disk, equal chunks, shuffled, corrupted and stacked.

Example `i` of epoch `e` depends on (seed, e, i) alone, so a run can stop anywhere and go on.
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
    """Endless shuffled batches; `get_state` and `set_state` of the iterator save its position.

    A position counts whole batches, so it is the same in every process, however many there are.

    Args:
      chunks: raw examples.
      make_example: makes one example of a chunk, with that example's own generator.
      batch_size: examples in a batch.
      seed: of the order and of the examples.
      rows: which examples of each batch to make; all, unless given.
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
    """Which of `count` chunks the examples of batch `number` of `training_batches` are made of."""
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
    """The same batches every time, each example once.

    The last batch is filled up with copies of its first example whose loss weights are 0.
    `rows` are the examples of each batch to make; all, unless given.
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
