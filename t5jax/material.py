"""What a run learns from and is judged by: the texts of tasks, read, counted and made ids."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from t5jax import mixture
from t5jax import tasks as tasking
from t5jax.mixture import Counts, PairLimits, Pairs
from t5jax.tasks import Example, Split, Task
from t5jax.tokenizer import Tokenizer
from t5jax.trial import Trial

Say = Callable[[str], None]
_HELDOUT: tuple[Split, ...] = ("validation", "test")


class Texts(NamedTuple):
    """The examples of tasks, by name, and by name and split."""

    train: dict[str, list[Example]]
    heldout: dict[tuple[str, Split], list[Example]]

    def documents(self) -> Iterator[str]:
        """All that training reads and writes, for a tokenizer to learn from."""
        for examples in self.train.values():
            for one in examples:
                yield one.input
                yield from one.references


def read(tasks: Sequence[Task], *, say: Say) -> Texts:
    """Reads all splits of tasks; `say` is told of held-out inputs that training has, too.

    Raises:
      FileNotFoundError, ValueError: as from `tasks.read`.
    """
    found = Texts({}, {})
    for task in tasks:
        found.train[task.name] = tasking.read(task, "train")
        for split in _HELDOUT:
            examples = tasking.read(task, split)
            if not examples:
                continue
            found.heldout[task.name, split] = examples
            shared = tasking.overlap(found.train[task.name], examples)
            if shared.inputs:
                say(
                    f"warning: {shared.inputs} of {len(examples)} inputs in {split} of task "
                    f"{task.name!r} are in its training data too, {shared.pairs} of them with the "
                    "same target; scores may flatter."
                )
    return found


def pairs(texts: Texts, *, tokenizer: Tokenizer, limits: PairLimits, say: Say) -> dict[str, Pairs]:
    """Training examples of each task as ids; `say` is told what did not keep the limits.

    Raises:
      ValueError: as from `mixture.limit`.
    """
    found = {}
    for name, examples in texts.train.items():
        found[name], counts = mixture.limit(
            [encode(tokenizer, one.input) for one in examples],
            [encode(tokenizer, one.references[0]) for one in examples],
            limits=limits,
            name=name,
        )
        for line in _account(counts, limits):
            say(f"task {name!r}: {line}")
    return found


def trials(
    tasks: Sequence[Task], texts: Texts, *, tokenizer: Tokenizer, limits: PairLimits, say: Say
) -> list[Trial]:
    """Held-out examples of each task, in order; inputs that are too long are cut, or refused.

    Raises:
      ValueError: inputs are too long, and that is to be an error.
    """
    found = []
    for task in tasks:
        for split in _HELDOUT:
            if (task.name, split) not in texts.heldout:
                continue
            examples = texts.heldout[task.name, split]
            inputs = [encode(tokenizer, one.input) for one in examples]
            _check_inputs(inputs, limits, f"{split} of task {task.name!r}", say)
            cut = [mixture.cut(ids, limits.input_length).tolist() for ids in inputs]
            found.append(Trial(task, split, examples, cut))
    return found


def digest(pairs: Mapping[str, Pairs], trials: Sequence[Trial]) -> str:
    """What tells the data of one run from another's: training and validation, not the test."""
    found = hashlib.sha256(mixture.digest(pairs).encode())
    for one in trials:
        if one.split == "validation":
            found.update(f"{one.task.name} {list(one.examples)!r}\n".encode())
    return found.hexdigest()


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text, EOS at the end."""
    return [*tokenizer.encode(text), tokenizer.eos_id]


def _check_inputs(inputs: Sequence[list[int]], limits: PairLimits, where: str, say: Say) -> None:
    long = [len(ids) for ids in inputs if len(ids) > limits.input_length]
    if long and limits.too_long == "error":
        raise ValueError(
            f"inputs in {where} must have at most {limits.input_length} tokens, got {len(long)} of "
            f"{len(inputs)} with more, the longest {max(long)}; raise input_length, or set "
            "too_long to drop or truncate."
        )
    if long:
        say(f"{where}: {len(long)} inputs are too long, and truncated")


def _account(counts: Counts, limits: PairLimits) -> Iterator[str]:
    """What was not as it should be, and what became of it."""
    done = {"drop": "dropped", "truncate": "truncated", "keep": "kept", "error": "refused"}
    for count, what, policy in (
        (counts.long_inputs, "inputs are too long", limits.too_long),
        (counts.long_targets, "targets are too long", limits.too_long),
        (counts.empty_targets, "targets are empty", limits.empty_targets),
    ):
        if count:
            yield f"{count} {what}, and {done[policy]}"
