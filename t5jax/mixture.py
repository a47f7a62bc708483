"""Pairs of ids drawn from several tasks, in batches of fixed shape, several pairs in a row.

Example `i` of a mixture depends on (seed, i) alone, so a run can stop anywhere and go on.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from t5jax import batches
from t5jax.batches import Batch

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


class Counts(NamedTuple):
    """What `limit` found."""

    long_inputs: int
    long_targets: int
    empty_targets: int
    dropped: int


def limit(
    inputs: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    *,
    limits: PairLimits,
    name: str,
) -> tuple[Pairs, Counts]:
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
    counts = Counts(*(int(x.sum()) for x in (*long, empty, gone)))
    if gone.all():
        raise ValueError(
            f"task {name!r} must have an example within its limits, got {len(gone)} of which "
            f"{counts.long_inputs} have too long inputs, {counts.long_targets} too long targets, "
            f"{counts.empty_targets} empty targets; raise the lengths, or mend the data."
        )
    kept = [
        Pair(cut(inputs[i], most[0]), cut(targets[i], most[1]))
        for i in range(len(gone))
        if not gone[i]
    ]
    return Pairs(kept), counts


def rates(
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


def stream(tasks: Sequence[Pairs], shares: Sequence[float], *, seed: int) -> Any:
    """The endless sequence of examples of a mixture, by number: (place of the task, `Pair`).

    Each task is shuffled anew in each of its epochs.
    """
    import grain

    parts = []
    for place, pairs in enumerate(tasks):
        part: Any = grain.MapDataset.range(len(pairs)).shuffle(seed=seed + place).repeat()
        parts.append(part.map(lambda i, place=place, pairs=pairs: (place, pairs[int(i)])))
    return grain.MapDataset.mix(parts, weights=list(shares)) if len(parts) > 1 else parts[0]


class Batches:
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
        filled = fill(
            self._upcoming(), batch_size=self._batch_size, lengths=self._lengths, most=self._most
        )
        self._next += sum(map(len, filled))
        return stack(
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


def fill(
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


def stack(
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
            shifted[row, write] = batches.shift_right(
                np.asarray(pair.target), start_id=decoder_start_id
            )
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


def heldout(
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
        yield stack(
            chosen, lengths=lengths, pad_id=pad_id, decoder_start_id=decoder_start_id, packed=False
        )


def cut(ids: Sequence[int], length: int) -> Ids:
    """Ids as int32, at most `length` ids, EOS still the last."""
    kept = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
    return np.array(kept, np.int32)


def digest(tasks: Mapping[str, Pairs]) -> str:
    """What tells the training data of one run from another's."""
    found = hashlib.sha256()
    for name, pairs in tasks.items():
        found.update(f"{name} {len(pairs)}\n".encode())
        pairs.update(found)
    return found.hexdigest()
