"""Batches of a few shapes: a program is compiled for each, so lengths are padded to buckets."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

SMALLEST_BUCKET = 16

_PACKAGE = str(Path(__file__).parents[1])


class InputBatch(NamedTuple):
    """Inputs of similar length, padded to a bucket of rows and of tokens.

    Attributes:
      indices: Position of each input among all inputs; the first rows of the arrays, in this
        order.
      tokens: Input ids; the rows after the inputs are padding.
      mask: True on input ids that are not padding.
    """

    indices: list[int]
    tokens: Int[np.ndarray, "B S"]
    mask: Bool[np.ndarray, "B S"]


def length_bucket(length: int) -> int:
    """Return the length that `length` is padded to: 16, 24, 32, 48, 64, 96, 128, ...

    Two buckets for every doubling bound both the padding, to a half, and the number of programs
    that are compiled.
    """
    size = SMALLEST_BUCKET
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def length_buckets(max_length: int) -> list[int]:
    """Return all buckets of lengths up to `max_length`."""
    sizes = [length_bucket(1)]
    while sizes[-1] < max_length:
        sizes.append(length_bucket(sizes[-1] + 1))
    return sizes


def batch_bucket(count: int) -> int:
    """Return the number of rows that `count` is padded to, the next power of two."""
    return 1 << (count - 1).bit_length()


def pad_batch(
    sequences: Sequence[Sequence[int]], *, pad_id: int, num_rows: int | None = None
) -> tuple[Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]]:
    """Pad sequences to the bucket of the longest.

    Args:
      sequences: ids; one below 0 is a position that is masked, in the middle of a sequence too.
      pad_id: id of padding.
      num_rows: number of rows, the last ones empty; defaults to the number of sequences.
    Returns:
      Ids, and a mask that is True on ids that are not padding.
    """
    length = length_bucket(max(map(len, sequences), default=1))
    tokens = np.full((num_rows or len(sequences), length), -1, np.int32)
    for row, ids in zip(tokens, sequences, strict=False):
        row[: len(ids)] = ids
    mask = tokens >= 0
    return np.where(mask, tokens, np.int32(pad_id)), mask


def unpad_batch(
    tokens: Int[np.ndarray, "..."],
    mask: Bool[np.ndarray, "..."],
    *,
    vocab_size: int,
) -> list[list[int]]:
    """Return the ids of each row without the padding at its ends.

    Masked positions in the middle of a row become -1, which `pad_batch` masks again: T5 sees
    distances.

    Args:
      tokens: [B, S] ids.
      mask: [B, S], True on ids that are not padding.
      vocab_size: size of the vocabulary.
    Returns:
      The ids of each row.
    Raises:
      ValueError: arrays of other shapes, or ids outside the vocabulary.
    """
    if tokens.ndim != 2 or tokens.shape != mask.shape:
        raise ValueError(
            f"tokens and mask must both have shape [B, S], got {tokens.shape} and {mask.shape}."
        )
    ids = tokens[mask]
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise ValueError(
            f"ids must be in [0, vocab_size = {vocab_size}), got {ids.min()} to {ids.max()}; "
            "another tokenizer made them."
        )
    rows = []
    for row in np.where(mask, tokens.astype(np.int64), -1):
        (positions,) = np.nonzero(row >= 0)
        rows.append(row[positions[0] : positions[-1] + 1].tolist() if len(positions) else [])
    return rows


def batches_by_length(
    inputs: Sequence[Sequence[int]], *, batch_size: int, pad_id: int
) -> Iterator[InputBatch]:
    """Group inputs of similar length into batches, shortest first.

    Args:
      inputs: ids of every input.
      batch_size: maximum number of rows of a batch.
      pad_id: id of padding.
    Yields:
      Batches that contain every input once.
    """
    order = sorted(range(len(inputs)), key=lambda i: len(inputs[i]))
    for start in range(0, len(inputs), batch_size):
        indices = order[start : start + batch_size]
        num_rows = min(batch_bucket(len(indices)), batch_size)
        tokens, mask = pad_batch([inputs[i] for i in indices], pad_id=pad_id, num_rows=num_rows)
        yield InputBatch(indices, tokens, mask)


class LoopRows(NamedTuple):
    """Rows of a decoding loop; the samples of an input are next to one another.

    Attributes:
      row_ids: Number of the input; negative in rows that fill up a batch.
      sample_ids: Number of the sample of its input.
      prefix: Ids that the output starts with, padded on the right to a power of two.
      prefix_lens: Number of ids of the prefix, without padding.
    """

    row_ids: Int[np.ndarray, " B"]
    sample_ids: Int[np.ndarray, " B"]
    prefix: Int[np.ndarray, "B P"]
    prefix_lens: Int[np.ndarray, " B"]


def loop_rows(
    batch: InputBatch,
    prefixes: Sequence[Sequence[int]],
    row_ids: Sequence[int],
    *,
    pad_id: int,
    num_samples: int,
) -> LoopRows:
    """Lay out the rows of a decoding loop.

    Args:
      batch: inputs.
      prefixes: ids that every output starts with, of all inputs.
      row_ids: number of every input.
      pad_id: id of padding.
      num_samples: number of rows of each input.
    Returns:
      The rows, of every input of the batch and of those that fill it up.
    """
    num_rows = len(batch.tokens)
    ids = np.full(num_rows, -1, np.int32)
    ids[: len(batch.indices)] = [row_ids[index] for index in batch.indices]
    lens = np.zeros(num_rows, np.int32)
    lens[: len(batch.indices)] = [len(prefixes[index]) for index in batch.indices]
    longest = int(lens.max())
    width = 1 << (longest - 1).bit_length() if longest else 0
    prefix = np.full((num_rows, width), pad_id, np.int32)
    for row, index in zip(prefix, batch.indices, strict=False):
        row[: len(prefixes[index])] = prefixes[index]
    return LoopRows(
        row_ids=np.repeat(ids, num_samples),
        sample_ids=np.tile(np.arange(num_samples, dtype=np.int32), num_rows),
        prefix=np.repeat(prefix, num_samples, axis=0),
        prefix_lens=np.repeat(lens, num_samples),
    )


def limit_lengths(
    inputs: Sequence[list[int]], max_tokens: int, *, truncate: bool, eos_id: int, name: str
) -> list[list[int]]:
    """Refuse inputs of too many tokens, or cut them.

    Args:
      inputs: ids of every input, with EOS.
      max_tokens: maximum number of ids of an input, EOS included.
      truncate: cut longer inputs, with a warning, instead of refusing them.
      eos_id: ends an input that is cut.
      name: name of the inputs in messages.
    Returns:
      The inputs, each of at most `max_tokens` ids.
    Raises:
      ValueError: an input is too long and may not be cut.
    """
    too_long = [i for i, ids in enumerate(inputs) if len(ids) > max_tokens]
    if not too_long:
        return list(inputs)
    if not truncate:
        i = too_long[0]
        raise ValueError(
            f"{name}[{i}] must have at most {max_tokens} tokens, got {len(inputs[i])}; shorten it, "
            "raise max_input_tokens, or cut it with truncate=True."
        )
    listed = ", ".join(f"{name}[{i}]" for i in too_long[:3])
    _warn_caller(
        f"{len(too_long)} of {len(inputs)} {name} were cut to {max_tokens} tokens: "
        f"{listed}{', ...' * (len(too_long) > 3)}."
    )
    return [[*ids[: max_tokens - 1], eos_id] if len(ids) > max_tokens else ids for ids in inputs]


def _warn_caller(message: str) -> None:
    """Warn with the place of the user's call, or on Python 3.11 with a place near it."""
    if sys.version_info >= (3, 12):
        warnings.warn(message, skip_file_prefixes=(_PACKAGE,), stacklevel=2)
    else:
        warnings.warn(message, stacklevel=5)
