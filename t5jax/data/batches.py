"""Batches for training and evaluation.

Example `i` of epoch `e` depends only on (seed, e, i), so a run can stop and resume anywhere.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from t5jax.fileio import JsonObject

if TYPE_CHECKING:
    import grain

Batch = dict[str, np.ndarray]
"""A batch, or an example if the axis B is missing; names and meanings are T5X's.

    encoder_input_tokens   [B, S] int32
    decoder_input_tokens   [B, T] int32, the targets shifted right after the start id
    decoder_target_tokens  [B, T] int32
    decoder_loss_weights   [B, T] float32, 0 on padding
    encoder_segment_ids    [B, S] int32, only if packed: pair number from 1, 0 on padding
    decoder_segment_ids    [B, T] int32, only if packed
"""


@runtime_checkable
class ExampleSource(Protocol):
    """Protocol of an indexed sequence of raw examples, such as a list or `Chunks`.

    Examples:
      >>> isinstance(["one", "two"], t5jax.data.ExampleSource)
      True
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@runtime_checkable
class BatchIterator(Protocol):
    """Protocol of an iterator over batches that can be moved to an earlier position.

    Examples:
      >>> batches = t5jax.data.training_batches(
      ...     ["a", "b"], lambda text, rng: {"x": np.ones(1)}, batch_size=2, seed=0
      ... )
      >>> isinstance(batches, t5jax.data.BatchIterator)
      True
    """

    def __next__(self) -> Batch:
        """Return the next batch."""
        ...

    def get_state(self) -> JsonObject:
        """Return the position, for a checkpoint."""
        ...

    def set_state(self, state: JsonObject) -> None:
        """Move to a position.

        Args:
          state: result of `get_state`.
        """
        ...


def stack_examples(examples: Sequence[Batch]) -> Batch:
    """Stack examples of equal shapes into a batch."""
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def shift_right(targets: Int[np.ndarray, "*B T"], *, start_id: int) -> Int[np.ndarray, "*B T"]:
    """Shift targets right to make the decoder inputs.

    Args:
      targets: [..., T] target ids.
      start_id: decoder start id.
    Returns:
      [..., T] ids, the start id and then all targets except the last.

    Examples:
      >>> t5jax.data.shift_right(np.array([5, 6, 1]), start_id=0).tolist()
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

    The iterator's `get_state` and `set_state` save and restore its position, which counts global
    batches and does not depend on the number of processes.

    Args:
      chunks: raw examples.
      make_example: function that makes an example from a chunk and a random generator.
      batch_size: global batch size.
      seed: random seed for the order and the examples.
      rows: rows of each global batch to make in this process; None makes all.
    Returns:
      A grain iterator over batches of `len(rows)` examples.

    Examples:
      >>> def make_example(chunk, rng):
      ...     return {"decoder_target_tokens": chunk}
      >>> chunks = np.array([[5, 1], [6, 1]])
      >>> batches = t5jax.data.training_batches(chunks, make_example, batch_size=2, seed=0)
      >>> sorted(next(batches)["decoder_target_tokens"].tolist())
      [[5, 1], [6, 1]]
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
    # One thread keeps ahead of the training step and leaves it the other cores.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)
    return iter(dataset.to_iter_dataset(options))


def batch_chunks(count: int, number: int, *, batch_size: int, seed: int) -> list[int]:
    """Return the indices of the chunks in one batch of `training_batches`.

    Args:
      count: number of chunks.
      number: index of the batch, from 0.
      batch_size: global batch size.
      seed: random seed for the order, as in `training_batches`.
    Returns:
      `batch_size` indices, each in [0, count).
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
    """Iterate once over the examples in order, with the same batches every time.

    The last batch is padded with copies of its first example whose loss weights are 0.

    Args:
      chunks: raw examples.
      make_example: function that makes an example from a chunk and a random generator.
      batch_size: global batch size.
      seed: random seed for the examples.
      max_examples: maximum number of examples, counted from the first.
      rows: rows of each global batch to make in this process; None makes all.
    Yields:
      Batches of `len(rows)` examples.

    Examples:
      >>> def make_example(chunk, rng):
      ...     return {"decoder_loss_weights": np.ones(1, np.float32)}
      >>> batches = t5jax.data.evaluation_batches(
      ...     [3, 4, 5], make_example, batch_size=2, seed=0, max_examples=100
      ... )
      >>> [batch["decoder_loss_weights"].tolist() for batch in batches]
      [[[1.0], [1.0]], [[1.0], [0.0]]]
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
