"""Batches in a few fixed shapes: lengths are padded to buckets to limit compilation."""

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
    """Inputs of similar length, padded to a bucket of rows and tokens.

    Attributes:
      indices: position of each row's input among all inputs; padding rows follow.
      tokens: input ids.
      mask: True on ids that are not padding.
    """

    indices: list[int]
    tokens: Int[np.ndarray, "B S"]
    mask: Bool[np.ndarray, "B S"]


def length_bucket(length: int) -> int:
    """Return the bucket that `length` is padded to: 16, 24, 32, 48, 64, 96, 128, ...

    Two buckets per doubling limit padding to 50 % and the number of compiled programs.
    """
    size = SMALLEST_BUCKET
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def length_buckets(max_length: int) -> list[int]:
    """Return all length buckets needed for lengths up to `max_length`."""
    sizes = [length_bucket(1)]
    while sizes[-1] < max_length:
        sizes.append(length_bucket(sizes[-1] + 1))
    return sizes


def batch_bucket(count: int) -> int:
    """Return the number of rows that `count` rows are padded to, the next power of two."""
    return 1 << (count - 1).bit_length()


def pad_batch(
    sequences: Sequence[Sequence[int]], *, pad_id: int, num_rows: int | None = None
) -> tuple[Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]]:
    """Pad sequences to the length bucket of the longest.

    Args:
      sequences: ids; a negative id masks its position, even within a sequence.
      pad_id: id of padding.
      num_rows: number of rows, the last ones empty; defaults to the number of sequences.
    Returns:
      [B, S] int32 ids, and a [B, S] mask that is True on ids that are not padding.
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
    """Return the ids of each row without leading and trailing padding.

    Masked positions within a row become -1, which `pad_batch` masks again: relative positions
    must not change.

    Args:
      tokens: [B, S] ids.
      mask: [B, S], True on ids that are not padding.
      vocab_size: size of the vocabulary.
    Returns:
      The ids of each row.
    Raises:
      ValueError: the arrays are not both [B, S], or an id is outside the vocabulary.
    """
    if tokens.ndim != 2 or tokens.shape != mask.shape:
        raise ValueError(
            f"tokens and mask must both have shape [B, S], got {tokens.shape} and {mask.shape}."
        )
    ids = tokens[mask]
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise ValueError(
            f"ids must be in [0, vocab_size = {vocab_size}), got {ids.min()} to {ids.max()}; "
            "use the model's tokenizer."
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
      batch_size: maximum number of rows per batch.
      pad_id: id of padding.
    Yields:
      Batches that together contain every input once.
    """
    order = sorted(range(len(inputs)), key=lambda i: len(inputs[i]))
    for start in range(0, len(inputs), batch_size):
        indices = order[start : start + batch_size]
        num_rows = min(batch_bucket(len(indices)), batch_size)
        tokens, mask = pad_batch([inputs[i] for i in indices], pad_id=pad_id, num_rows=num_rows)
        yield InputBatch(indices, tokens, mask)


class LoopRows(NamedTuple):
    """Rows of a decoding loop; the samples of an input are adjacent.

    Attributes:
      row_ids: number of the input; negative in padding rows.
      sample_ids: number of the sample within its input.
      prefix: ids that the output starts with, padded on the right to a power of two.
      prefix_lens: number of ids of the prefix, without padding.
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
    """Build the rows of a decoding loop for a batch.

    Args:
      batch: inputs.
      prefixes: ids that the output of each input starts with, for all inputs of all batches.
      row_ids: number of each input, for all inputs of all batches.
      pad_id: id of padding.
      num_samples: number of rows per input.
    Returns:
      The rows of the batch, including padding rows.
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
    """Check the lengths of inputs, or truncate them.

    Args:
      inputs: ids of every input, with EOS.
      max_tokens: maximum number of ids per input, EOS included.
      truncate: truncate longer inputs with a warning instead of raising an error.
      eos_id: id appended to a truncated input.
      name: name of the inputs in messages.
    Returns:
      The inputs, each with at most `max_tokens` ids.
    Raises:
      ValueError: an input is too long and `truncate` is False.
    """
    too_long = [i for i, ids in enumerate(inputs) if len(ids) > max_tokens]
    if not too_long:
        return list(inputs)
    if not truncate:
        i = too_long[0]
        raise ValueError(
            f"{name}[{i}] must have at most {max_tokens} tokens, got {len(inputs[i])}; shorten it, "
            "increase max_input_tokens, or pass truncate=True."
        )
    listed = ", ".join(f"{name}[{i}]" for i in too_long[:3])
    _warn_caller(
        f"{len(too_long)} of {len(inputs)} {name} were cut to {max_tokens} tokens: "
        f"{listed}{', ...' * (len(too_long) > 3)}."
    )
    return [[*ids[: max_tokens - 1], eos_id] if len(ids) > max_tokens else ids for ids in inputs]


def _warn_caller(message: str) -> None:
    """Warn at the line of the user's call; on Python 3.11, at a frame near it."""
    if sys.version_info >= (3, 12):
        warnings.warn(message, skip_file_prefixes=(_PACKAGE,), stacklevel=2)
    else:
        warnings.warn(message, stacklevel=5)
