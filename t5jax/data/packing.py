"""Pairs of input and target ids: length limits, packing into rows, and batches.

Packing is first fit. Unlike in grain's `FirstFitPackIterDataset`, a batch ends before the first
pair that fits in none of its rows. A batch is thus a run of consecutive examples, and a position
in a mixture is a single count of examples.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from t5jax.data.batches import Batch, shift_right
from t5jax.errors import check_at_least

Ids = Int[np.ndarray, " _"]
TooLong = Literal["error", "drop", "truncate"]
Empty = Literal["error", "drop", "keep"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairLimits:
    """Length limits for pairs of ids, and policies for pairs that break them.

    Attributes:
      input_length: maximum number of input tokens, EOS included.
      target_length: maximum number of target tokens, EOS included.
      too_long: policy for pairs over a limit: "error", "drop" or "truncate".
      empty_targets: policy for pairs whose target is only EOS: "error", "drop" or "keep".

    Examples:
      >>> t5jax.data.PairLimits(input_length=512, target_length=114).lengths
      (512, 114)
    """

    input_length: int
    target_length: int
    too_long: TooLong = "error"
    empty_targets: Empty = "error"

    def __post_init__(self):
        check_at_least(1, input_length=self.input_length, target_length=self.target_length)

    @property
    def lengths(self) -> tuple[int, int]:
        """Maximum number of input tokens and of target tokens."""
        return self.input_length, self.target_length


class Pair(NamedTuple):
    """Input and target ids of an example, EOS included.

    Attributes:
      input: [S] ids.
      target: [T] ids.

    Examples:
      >>> t5jax.data.Pair(input=[5, 6, 1], target=[7, 1]).target
      [7, 1]
    """

    input: Ids | Sequence[int]
    target: Ids | Sequence[int]


class Pairs:
    """Sequence of pairs, stored as one int32 array of inputs and one of targets.

    Args:
      pairs: the pairs to copy.

    Examples:
      >>> pairs = t5jax.data.Pairs([t5jax.data.Pair([5, 6, 1], [7, 1])])
      >>> pairs[0].input.tolist(), pairs.tokens
      ([5, 6, 1], (3, 2))
    """

    def __init__(self, pairs: Sequence[Pair]):
        self._ids, self._ends = [], []
        for side in (0, 1):
            arrays = [np.asarray(pair[side], np.int32) for pair in pairs]
            self._ids.append(np.concatenate([np.zeros(0, np.int32), *arrays]))
            self._ends.append(np.cumsum([0, *map(len, arrays)], dtype=np.int64))

    def __len__(self) -> int:
        return len(self._ends[0]) - 1

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(index)
        parts = (
            ids[ends[index] : ends[index + 1]]
            for ids, ends in zip(self._ids, self._ends, strict=True)
        )
        return Pair(*parts)

    def update(self, digest: "hashlib._Hash") -> None:
        """Update a hash with all ids and lengths.

        Args:
          digest: hash object of `hashlib`.
        """
        for array in (*self._ids, *self._ends):
            digest.update(np.ascontiguousarray(array).data)

    @property
    def tokens(self) -> tuple[int, int]:
        """Total number of input tokens and of target tokens."""
        return len(self._ids[0]), len(self._ids[1])


class LimitCounts(NamedTuple):
    """Number of pairs over each limit, and number of dropped pairs."""

    long_inputs: int
    long_targets: int
    empty_targets: int
    dropped: int


def apply_limits(
    inputs: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    *,
    limits: PairLimits,
    name: str,
) -> tuple[Pairs, LimitCounts]:
    """Drop or truncate pairs over the limits.

    Args:
      inputs: ids of each input, ending in EOS.
      targets: ids of each target, ending in EOS.
      limits: limits and policies.
      name: name of the task, for error messages.
    Returns:
      The pairs within the limits, and the number of pairs over each limit.
    Raises:
      ValueError: a pair breaks a limit whose policy is "error", or no pair remains.
    """
    max_lengths = limits.lengths
    lengths = ([len(ids) for ids in inputs], [len(ids) for ids in targets])
    too_long = [np.array(x) > maximum for x, maximum in zip(lengths, max_lengths, strict=True)]
    empty = np.array(lengths[1]) <= 1
    if limits.too_long == "error":
        for what, numbers, over, maximum in zip(
            ("input", "target"), lengths, too_long, max_lengths, strict=True
        ):
            if over.any():
                raise ValueError(
                    f"{what}s of task {name!r} must have at most {maximum} tokens, got "
                    f"{over.sum()} of {len(over)} with more, the longest {max(numbers)}; raise "
                    f"{what}_length, or set too_long to drop or truncate."
                )
    if limits.empty_targets == "error" and empty.any():
        raise ValueError(
            f"targets of task {name!r} must not be empty, got {empty.sum()} empty of {len(empty)}; "
            "correct the data, or set empty_targets to drop or keep."
        )
    dropped = np.zeros(len(empty), bool)
    if limits.too_long == "drop":
        dropped |= too_long[0] | too_long[1]
    if limits.empty_targets == "drop":
        dropped |= empty
    counts = LimitCounts(*(int(x.sum()) for x in (*too_long, empty, dropped)))
    if dropped.all():
        raise ValueError(
            f"task {name!r} must have an example within its limits, got {len(dropped)} examples: "
            f"{counts.long_inputs} with inputs too long, {counts.long_targets} with targets too "
            f"long, {counts.empty_targets} with empty targets; raise the lengths, or correct the "
            "data."
        )
    pairs = [
        Pair(truncate_ids(inputs[i], max_lengths[0]), truncate_ids(targets[i], max_lengths[1]))
        for i in map(int, np.flatnonzero(~dropped))
    ]
    return Pairs(pairs), counts


def pack_pairs(
    pairs: Iterator[Pair], *, batch_size: int, lengths: tuple[int, int], max_pairs: int | None
) -> list[list[Pair]]:
    """Pack each pair into the first row with room for it, until a pair fits in no row.

    Args:
      pairs: pairs, each no longer than a row; the pair that fits in no row is consumed.
      batch_size: number of rows.
      lengths: number of input tokens and of target tokens that a row holds.
      max_pairs: maximum number of pairs in a row; None for no limit.
    Returns:
      The pairs of each row.
    """
    rows: list[list[Pair]] = [[] for _ in range(batch_size)]
    if max_pairs is not None:
        upcoming = [next(pairs, None) for _ in range(batch_size * max_pairs)]
        for number, pair in enumerate(pair for pair in upcoming if pair is not None):
            rows[number // max_pairs].append(pair)
        return rows
    free = np.tile(np.array(lengths), (batch_size, 1))
    for pair in pairs:
        needed = (len(pair.input), len(pair.target))
        fits = (free[:, 0] >= needed[0]) & (free[:, 1] >= needed[1])
        row = int(fits.argmax())
        if not fits[row]:
            break
        rows[row].append(pair)
        free[row] -= needed
    return rows


def stack_rows(
    rows: Sequence[Sequence[Pair]],
    *,
    lengths: tuple[int, int],
    pad_id: int,
    decoder_start_id: int,
    packed: bool,
) -> Batch:
    """Stack rows of pairs into a batch.

    Args:
      rows: pairs of each row; an empty row becomes padding with loss weight 0.
      lengths: encoder and decoder length of a row, in tokens.
      pad_id: id of padding.
      decoder_start_id: decoder start id, placed before each target.
      packed: add encoder and decoder segment ids, which number the pairs of a row from 1.
    Returns:
      A batch with T5X's keys; see `Batch`.
    """
    size, (input_length, target_length) = len(rows), lengths
    inputs = np.full((size, input_length), pad_id, np.int32)
    targets = np.full((size, target_length), pad_id, np.int32)
    shifted = np.full((size, target_length), pad_id, np.int32)
    segments = [np.zeros((size, length), np.int32) for length in lengths]
    for row, pairs in enumerate(rows):
        ends = [0, 0]
        for number, pair in enumerate(pairs, start=1):
            source = slice(ends[0], ends[0] + len(pair.input))
            target = slice(ends[1], ends[1] + len(pair.target))
            inputs[row, source], targets[row, target] = pair.input, pair.target
            shifted[row, target] = shift_right(np.asarray(pair.target), start_id=decoder_start_id)
            segments[0][row, source] = segments[1][row, target] = number
            ends = [source.stop, target.stop]
    batch = {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": shifted,
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (segments[1] > 0).astype(np.float32),
    }
    if packed:
        batch["encoder_segment_ids"], batch["decoder_segment_ids"] = segments
    return batch


def truncate_ids(ids: Sequence[int], length: int) -> Ids:
    """Truncate ids to at most `length`, int32, keeping the last one, EOS."""
    truncated = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
    return np.array(truncated, np.int32)


def pairs_digest(tasks: Mapping[str, Pairs]) -> str:
    """Return the SHA-256 digest of the training pairs of all tasks."""
    digest = hashlib.sha256()
    for name, pairs in tasks.items():
        digest.update(f"{name} {len(pairs)}\n".encode())
        pairs.update(digest)
    return digest.hexdigest()
