"""Pairs of ids drawn from several tasks, in batches of fixed shape, several pairs in a row.

Example `i` of a mixture depends on (seed, i) alone, so a run can stop anywhere and go on.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from t5jax.data.batch import Batch, shift_right

Ids = Int[np.ndarray, " _"]


TooLong = Literal["error", "drop", "truncate"]


Empty = Literal["error", "drop", "keep"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairLimits:
    """What pairs of ids may be, and what to do with others."""

    input_length: int
    """Most tokens of an input, EOS included."""
    target_length: int
    """Most tokens of a target, EOS included."""
    too_long: TooLong = "error"
    """What becomes of pairs with more tokens."""
    empty_targets: Empty = "error"
    """What becomes of pairs whose target is EOS alone."""

    def __post_init__(self):
        for name in ("input_length", "target_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")

    @property
    def lengths(self) -> tuple[int, int]:
        """Most tokens of an input, and of a target."""
        return self.input_length, self.target_length


class Pair(NamedTuple):
    """One example as ids, EOS included."""

    input: Ids | Sequence[int]
    target: Ids | Sequence[int]


class Pairs:
    """Many pairs, their ids in two arrays."""

    def __init__(self, pairs: Sequence[Pair]):
        self._ids, self._ends = [], []
        for side in (0, 1):
            found = [np.asarray(pair[side], np.int32) for pair in pairs]
            self._ids.append(np.concatenate([np.zeros(0, np.int32), *found]))
            self._ends.append(np.cumsum([0, *map(len, found)], dtype=np.int64))

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

    def update(self, digest: Any) -> None:
        """Feeds all ids and lengths to a hash."""
        for array in (*self._ids, *self._ends):
            digest.update(np.ascontiguousarray(array).data)

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of all inputs, and of all targets."""
        return len(self._ids[0]), len(self._ids[1])


class LimitCounts(NamedTuple):
    """What `apply_limits` found."""

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
    """Pairs that keep the limits, and how many there were that do not.

    Args:
      inputs: ids of each input, EOS at the end.
      targets: ids of each target, EOS at the end.
      limits: of both.
      name: of the task, for messages.
    Raises:
      ValueError: some do not, and are to be an error; or none is left.
    """
    most = limits.lengths
    sides = ([len(ids) for ids in inputs], [len(ids) for ids in targets])
    long = [np.array(lengths) > limit for lengths, limit in zip(sides, most, strict=True)]
    empty = np.array(sides[1]) <= 1
    if limits.too_long == "error":
        for what, lengths, over, limit in zip(("input", "target"), sides, long, most, strict=True):
            if over.any():
                raise ValueError(
                    f"{what}s of task {name!r} must have at most {limit} tokens, got "
                    f"{over.sum()} of {len(over)} with more, the longest {max(lengths)}; raise "
                    f"{what}_length, or set too_long to drop or truncate."
                )
    if limits.empty_targets == "error" and empty.any():
        raise ValueError(
            f"targets of task {name!r} must not be empty, got {empty.sum()} empty of {len(empty)}; "
            "mend the data, or set empty_targets to drop or keep."
        )
    gone = np.zeros(len(empty), bool)
    if limits.too_long == "drop":
        gone |= long[0] | long[1]
    if limits.empty_targets == "drop":
        gone |= empty
    counts = LimitCounts(*(int(x.sum()) for x in (*long, empty, gone)))
    if gone.all():
        raise ValueError(
            f"task {name!r} must have an example within its limits, got {len(gone)} of which "
            f"{counts.long_inputs} have too long inputs, {counts.long_targets} too long targets, "
            f"{counts.empty_targets} empty targets; raise the lengths, or mend the data."
        )
    kept = [
        Pair(truncate_ids(inputs[i], most[0]), truncate_ids(targets[i], most[1]))
        for i in range(len(gone))
        if not gone[i]
    ]
    return Pairs(kept), counts


def pack_pairs(
    pairs: Iterator[Pair], *, batch_size: int, lengths: tuple[int, int], most: int | None
) -> list[list[Pair]]:
    """Puts pairs into rows, each in the first where it fits, until one fits in none.

    Args:
      pairs: each at most as long as a row.
      batch_size: rows.
      lengths: of the inputs of a row, and of its targets.
      most: pairs in a row; any number if None.
    """
    rows: list[list[Pair]] = [[] for _ in range(batch_size)]
    room = np.tile(np.array(lengths), (batch_size, 1))
    if most is not None:
        taken = [next(pairs, None) for _ in range(batch_size * most)]
        for number, pair in enumerate(pair for pair in taken if pair is not None):
            rows[number // most].append(pair)
        return rows
    for pair in pairs:
        needed = (len(pair.input), len(pair.target))
        fits = (room[:, 0] >= needed[0]) & (room[:, 1] >= needed[1])
        row = int(fits.argmax())
        if not fits[row]:
            break
        rows[row].append(pair)
        room[row] -= needed
    return rows


def stack_rows(
    rows: Sequence[Sequence[Pair]],
    *,
    lengths: tuple[int, int],
    pad_id: int,
    decoder_start_id: int,
    packed: bool,
) -> Batch:
    """Rows of pairs as one batch with T5X's keys; an empty row is padding that does not count."""
    size, (input_length, target_length) = len(rows), lengths
    inputs = np.full((size, input_length), pad_id, np.int32)
    targets = np.full((size, target_length), pad_id, np.int32)
    shifted = np.full((size, target_length), pad_id, np.int32)
    segments = [np.zeros((size, length), np.int32) for length in lengths]
    for row, pairs in enumerate(rows):
        at = [0, 0]
        for number, pair in enumerate(pairs, start=1):
            read = slice(at[0], at[0] + len(pair.input))
            write = slice(at[1], at[1] + len(pair.target))
            inputs[row, read], targets[row, write] = pair.input, pair.target
            shifted[row, write] = shift_right(np.asarray(pair.target), start_id=decoder_start_id)
            segments[0][row, read] = segments[1][row, write] = number
            at = [read.stop, write.stop]
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
    """Ids as int32, at most `length` ids, EOS still the last."""
    kept = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
    return np.array(kept, np.int32)


def pairs_digest(tasks: Mapping[str, Pairs]) -> str:
    """What tells the training data of one run from another's."""
    found = hashlib.sha256()
    for name, pairs in tasks.items():
        found.update(f"{name} {len(pairs)}\n".encode())
        pairs.update(found)
    return found.hexdigest()
