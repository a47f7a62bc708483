"""From documents to batches: tokens on disk, equal chunks, shuffled, corrupted and stacked.

Example `i` of epoch `e` depends on (seed, e, i) alone, so a run can stop anywhere and go on.
"""

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from t5jax import denoise
from t5jax.tokenizers import Tokenizer

if TYPE_CHECKING:
    import datasets
    import grain

# Names and meanings are T5X's:
#   encoder_input_tokens   [B, S] int32
#   decoder_input_tokens   [B, T] int32, the targets shifted right behind the start id
#   decoder_target_tokens  [B, T] int32
#   decoder_loss_weights   [B, T] float32, 0 on padding
Batch = dict[str, np.ndarray]


@runtime_checkable
class Source(Protocol):
    """Raw examples, by their number; lists and `Chunks` are sources."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class TokenStream:
    """All documents of a data set as one sequence of ids, an EOS behind each, read from disk."""

    def __init__(self, documents: "datasets.Dataset"):
        """`documents` has the column `ids`, as `tokenize` makes it."""
        column = documents.with_format("arrow").data.column("ids")
        # Arrow holds the ids of many documents in one buffer: views of it, no copies.
        self._pieces = [chunk.flatten().to_numpy() for chunk in column.chunks]
        self._ends = np.cumsum([len(piece) for piece in self._pieces], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def slice(self, start: int, stop: int) -> Int[np.ndarray, " S"]:
        """Ids from `start` up to `stop`, int32."""
        parts = []
        for i in range(int(np.searchsorted(self._ends, start, side="right")), len(self._pieces)):
            begin = int(self._ends[i]) - len(self._pieces[i])
            if begin >= stop:
                break
            parts.append(self._pieces[i][max(start - begin, 0) : stop - begin])
        return np.concatenate(parts).astype(np.int32)


class Chunks:
    """A token stream cut into pieces of equal length; an incomplete last piece is left out."""

    def __init__(self, stream: TokenStream, length: int, *, name: str = "text"):
        if len(stream) < length:
            raise ValueError(
                f"the {name} must have at least one chunk of {length} tokens, got {len(stream)} "
                "tokens in all; use more text or a shorter input length."
            )
        self._stream = stream
        self._length = length

    def __len__(self) -> int:
        return len(self._stream) // self._length

    def __getitem__(self, index: int) -> Int[np.ndarray, " S"]:
        return self._stream.slice(index * self._length, (index + 1) * self._length)


def tokenize(documents: "datasets.Dataset", tokenizer: Tokenizer) -> "datasets.Dataset":
    """Turns the column `text` into the column `ids`, each document ended by EOS.

    The result lies in the cache of `datasets`, memory-mapped, and is found there the next time.
    """
    import datasets

    def encode(texts: list[str]) -> dict[str, list[list[int]]]:
        return {"ids": [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]}

    identity = hashlib.sha256(f"{documents._fingerprint} {tokenizer.fingerprint}".encode())
    return documents.map(
        encode,
        input_columns="text",
        batched=True,
        remove_columns=documents.column_names,
        features=datasets.Features({"ids": datasets.List(datasets.Value("int32"))}),
        new_fingerprint=identity.hexdigest()[:32],
        desc="tokenizing",
    )


def span_corruption_example(
    tokens: Int[np.ndarray, " S"],
    *,
    tokenizer: Tokenizer,
    corruption: denoise.SpanCorruption,
    decoder_start_id: int,
    rng: np.random.Generator,
) -> Batch:
    """One corrupted chunk with T5X's keys, without a batch axis."""
    sentinels = np.array([tokenizer.sentinel_id(k) for k in range(tokenizer.num_sentinels)])
    mask = denoise.noise_mask(len(tokens), corruption=corruption, rng=rng)
    inputs, targets = denoise.corrupt(tokens, mask, sentinels=sentinels, eos_id=tokenizer.eos_id)
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": shift_right(targets, start_id=decoder_start_id),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": np.ones(targets.shape, np.float32),
    }


def training(
    chunks: Source,
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
        return _stack([examples[number * batch_size + row] for row in rows])

    dataset = grain.MapDataset.range(sys.maxsize // batch_size).map(batch)
    # One reading thread keeps ahead of the training step, which owns the other cores.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)
    return iter(dataset.to_iter_dataset(options))


def chunk_numbers(count: int, number: int, *, batch_size: int, seed: int) -> list[int]:
    """Which of `count` chunks the examples of batch `number` of `training` are made of."""
    import grain

    order: Any = grain.MapDataset.range(count).shuffle(seed=seed).repeat()
    return [int(order[number * batch_size + row]) for row in range(batch_size)]


def evaluation(
    chunks: Source,
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
        yield _stack([example(start + i) if start + i < count else unweighted for i in rows])


def _stack(examples: Sequence[Batch]) -> Batch:
    return {name: np.stack([e[name] for e in examples]) for name in examples[0]}


def shift_right(targets: Int[np.ndarray, "*B T"], *, start_id: int) -> Int[np.ndarray, "*B T"]:
    """What the decoder reads while it is to write `targets`: the start id, then all but one."""
    shifted = np.roll(targets, 1, axis=-1)
    shifted[..., 0] = start_id
    return shifted


def pad(
    sequences: Sequence[Sequence[int]], *, length: int, pad_id: int
) -> Int[np.ndarray, "B length"]:
    """Stacks id sequences, filled up on the right to `length`.

    Raises:
      ValueError: a sequence is longer than `length`; the message says which.
    """
    rows = np.full((len(sequences), length), pad_id, np.int32)
    for i, sequence in enumerate(sequences):
        if len(sequence) > length:
            raise ValueError(
                f"sequence {i} must have at most {length} tokens, got {len(sequence)}; "
                "shorten it or raise the limit."
            )
        rows[i, : len(sequence)] = sequence
    return rows
