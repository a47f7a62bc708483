"""Training and validation data of fine-tuning: tasks are read, checked, counted and tokenized."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from t5jax.data import (
    Example,
    LimitCounts,
    MixtureBatches,
    PairLimits,
    Pairs,
    Split,
    Task,
    apply_limits,
    mixing_rates,
    mixture_stream,
    pairs_digest,
    read_split,
    split_overlap,
    truncate_ids,
)
from t5jax.models import T5Config
from t5jax.parallel import local_rows, log_once
from t5jax.recipes.finetune_config import FinetuneConfig
from t5jax.recipes.validation import EvalSplit
from t5jax.tokenizers import Tokenizer, encode_with_eos

Say = Callable[[str], None]
_HELDOUT: tuple[Split, ...] = ("validation", "test")


def recorded_task_options(tasks: Sequence[Task]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of tasks that a run records, by dotted name.

    Returns:
      All of them, and those of them that older runs do not record.
    """
    options, unrecorded = {}, {}
    for task in tasks:
        options[f"tasks.{task.name}.weight"] = task.weight
        options[f"tasks.{task.name}.metrics"] = list(task.metrics)
        unrecorded |= {
            f"tasks.{task.name}.metric_options.{name}": value
            for name, value in dataclasses.asdict(task.metric_options).items()
        }
    return options | unrecorded, unrecorded


class TaskTexts(NamedTuple):
    """The examples of tasks, by name, and by name and split."""

    train: dict[str, list[Example]]
    heldout: dict[tuple[str, Split], list[Example]]

    def documents(self) -> Iterator[str]:
        """All that training reads and writes, for a tokenizer to learn from."""
        for examples in self.train.values():
            for one in examples:
                yield one.input
                yield from one.references


def read_task_texts(tasks: Sequence[Task], *, say: Say) -> TaskTexts:
    """Reads all splits of tasks; `say` is told of held-out inputs that training has, too, that of
    any task.

    Raises:
      FileNotFoundError, ValueError: as from `read_split`.
    """
    texts = TaskTexts({task.name: read_split(task, "train") for task in tasks}, {})
    for task in tasks:
        for split in _HELDOUT:
            examples = read_split(task, split)
            if examples:
                texts.heldout[task.name, split] = examples
                for line in _shared(texts.train, examples, task.name, split):
                    say(line)
    return texts


def _shared(
    train: Mapping[str, Sequence[Example]], examples: Sequence[Example], name: str, split: Split
) -> Iterator[str]:
    """Warnings of examples to judge by that a task has to learn from, its own task first."""
    for other in sorted(train, key=lambda other: other != name):
        shared = split_overlap(train[other], examples)
        if shared.inputs:
            whose = "its training data" if other == name else f"the training data of {other!r}"
            yield (
                f"warning: {shared.inputs} of {len(examples)} inputs in {split} of task {name!r} "
                f"are in {whose} too, {shared.pairs} of them with the same target; scores may "
                "flatter."
            )


def tokenize_pairs(
    texts: TaskTexts, *, tokenizer: Tokenizer, limits: PairLimits, say: Say
) -> dict[str, Pairs]:
    """Training examples of each task as ids; `say` is told what did not keep the limits.

    Raises:
      ValueError: as from `apply_limits`.
    """
    pairs = {}
    for name, examples in texts.train.items():
        pairs[name], counts = apply_limits(
            [encode_with_eos(tokenizer, one.input) for one in examples],
            [encode_with_eos(tokenizer, one.references[0]) for one in examples],
            limits=limits,
            name=name,
        )
        for line in _account(counts, limits):
            say(f"task {name!r}: {line}")
    return pairs


def validation_splits(
    tasks: Sequence[Task], texts: TaskTexts, *, tokenizer: Tokenizer, limits: PairLimits, say: Say
) -> list[EvalSplit]:
    """Return the held-out examples of each task, in order, checked and tokenized.

    Inputs that are too long are truncated, or an error. References stay as they are.

    Args:
      tasks: tasks of the run.
      texts: as from `read_task_texts`.
      tokenizer: of the run.
      limits: lengths, and policies for examples that exceed them.
      say: receives a sentence about references that are empty or too long to be generated.
    Raises:
      ValueError: a metric cannot take the references; or inputs, or all references of one, are too
        long, or all references of a split are empty, and the policy is `error`.
    """
    splits = []
    for task in tasks:
        for split in _HELDOUT:
            if (task.name, split) not in texts.heldout:
                continue
            examples = texts.heldout[task.name, split]
            inputs = [encode_with_eos(tokenizer, one.input) for one in examples]
            where = f"{split} of task {task.name!r}"
            _check_inputs(inputs, limits, where, say)
            _check_references(examples, limits, where, tokenizer, say)
            cut = [truncate_ids(ids, limits.input_length).tolist() for ids in inputs]
            splits.append(EvalSplit(task, split, examples, cut))
    for one in splits:
        one.check()
    return splits


def mixing_shares(
    tasks: Sequence[Task], pairs: Mapping[str, Pairs], *, size_limit: int
) -> dict[str, float]:
    """Return the share of each task in the mixture; see `mixing_rates`."""
    return mixing_rates(
        {name: len(examples) for name, examples in pairs.items()},
        {task.name: task.weight for task in tasks},
        size_limit=size_limit,
    )


def mixture_batches(
    config: FinetuneConfig,
    model: T5Config,
    pairs: Mapping[str, Pairs],
    shares: Mapping[str, float],
    mesh: Mesh,
) -> MixtureBatches:
    """Return endless batches of a mixture of tasks.

    Args:
      config: options of the run.
      model: has the ids of padding and of the start of the decoder.
      pairs: examples of each task.
      shares: share of each task, in the same order.
      mesh: mesh that the rows of a batch are divided over.
    """
    return MixtureBatches(
        mixture_stream(list(pairs.values()), list(shares.values()), seed=config.seed),
        batch_size=config.batch_size,
        limits=config.limits,
        pack=config.pack,
        pad_id=model.pad_id,
        decoder_start_id=model.decoder_start_id,
        rows=local_rows(config.batch_size, mesh=mesh),
    )


def log_mixture(pairs: Mapping[str, Pairs], shares: Mapping[str, float]) -> None:
    """Print the size and the share of each task."""
    for name, examples in pairs.items():
        inputs, targets = examples.tokens
        log_once(
            f"task {name!r}: {len(examples)} examples, {inputs / len(examples):.1f} tokens an "
            f"input, {targets / len(examples):.1f} a target, share {shares[name]:.1%}"
        )


def data_digest(pairs: Mapping[str, Pairs], trials: Sequence[EvalSplit]) -> str:
    """Return a hash of the training and validation data, without the test data."""
    digest = hashlib.sha256(pairs_digest(pairs).encode())
    for one in trials:
        if one.split == "validation":
            digest.update(f"{one.task.name} {list(one.examples)!r}\n".encode())
    return digest.hexdigest()


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


def _check_references(
    examples: Sequence[Example],
    limits: PairLimits,
    where: str,
    tokenizer: Tokenizer,
    say: Say,
) -> None:
    """Tells of what no model can write, or refuses it."""
    lengths = [
        [len(encode_with_eos(tokenizer, text)) for text in one.references] for one in examples
    ]
    total = sum(map(len, lengths))
    empty = sum(row.count(1) for row in lengths)
    if empty == total and limits.empty_targets == "error":
        raise ValueError(
            f"{where} has no answers, all {total} references are empty; use data that have them, "
            "or set empty_targets to drop or keep."
        )
    if empty:
        say(f"{where}: {empty} of {total} references are empty")
    # One reference that can be written is enough.
    long = [min(row) for row in lengths if min(row) > limits.target_length]
    if long and limits.too_long == "error":
        raise ValueError(
            f"references in {where} must have at most {limits.target_length} tokens, got "
            f"{len(long)} of {len(lengths)} examples whose shortest has more, {max(long)} at most; "
            "raise target_length, or set too_long to drop or truncate."
        )
    if long:
        say(
            f"{where}: references of {len(long)} of {len(lengths)} examples are all longer than "
            f"{limits.target_length} tokens and cannot be written whole; raise target_length"
        )


def _account(counts: LimitCounts, limits: PairLimits) -> Iterator[str]:
    """What was not as it should be, and what became of it."""
    done = {"drop": "dropped", "truncate": "truncated", "keep": "kept", "error": "refused"}
    for count, what, policy in (
        (counts.long_inputs, "inputs are too long", limits.too_long),
        (counts.long_targets, "targets are too long", limits.too_long),
        (counts.empty_targets, "targets are empty", limits.empty_targets),
    ):
        if count:
            yield f"{count} {what}, and {done[policy]}"
