"""The keys of a batch, and the batches of training and evaluation.

Example `i` of epoch `e` depends on (seed, e, i) alone, so a run can stop and resume anywhere.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    import grain

Batch = dict[str, np.ndarray]
"""A batch, or without the axis B an example; names and meanings are T5X's.

    encoder_input_tokens   [B, S] int32
    decoder_input_tokens   [B, T] int32, the targets shifted right after the start id
    decoder_target_tokens  [B, T] int32
    decoder_loss_weights   [B, T] float32, 0 on padding
    encoder_segment_ids    [B, S] int32, only if packed: numbers of pairs, 0 on padding
    decoder_segment_ids    [B, T] int32, only if packed
"""


@runtime_checkable
class ExampleSource(Protocol):
    """Protocol of indexed raw examples, such as a list or `Chunks`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


def stack_examples(examples: Sequence[Batch]) -> Batch:
    """Stack examples of equal shapes into a batch."""
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def shift_right(targets: Int[np.ndarray, "*B T"], *, start_id: int) -> Int[np.ndarray, "*B T"]:
    """Return the decoder's input for targets: the start id, then all targets but the last.

    Example:
      >>> shift_right(np.array([5, 6, 1]), start_id=0).tolist()
      [0, 5, 6]
    """
    shifted = np.roll(targets, 1, axis=-1)
    shifted[..., 0] = start_id
    return shifted


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
