"""Data of fine-tuning: read, check, count and tokenize the examples of tasks."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

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
from t5jax.fileio import JsonObject
from t5jax.models import T5Config
from t5jax.parallel import local_rows, log_once
from t5jax.recipes.finetune_config import FinetuneConfig
from t5jax.recipes.validation import EvalSplit
from t5jax.tokenizers import Tokenizer, UnknownCounts, count_unknown, encode_with_eos

Say = Callable[[str], None]
# Fraction of texts with unknown tokens from which on they are reported.
_REPORTED_UNKNOWN = 0.01
_HELDOUT: tuple[Split, ...] = ("validation", "test")


def recorded_task_options(tasks: Sequence[Task]) -> tuple[JsonObject, JsonObject]:
    """Return the options of tasks that a run records.

    Returns:
      Two dicts from dotted name to value: all options, and the subset that older runs do not
      record.
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
    """Examples of all tasks.

    Attributes:
      train: task name -> training examples.
      heldout: (task name, split) -> validation or test examples.
    """

    train: dict[str, list[Example]]
    heldout: dict[tuple[str, Split], list[Example]]

    def documents(self) -> Iterator[str]:
        """Yield every training input and reference, as text to train a tokenizer on."""
        for examples in self.train.values():
            for one in examples:
                yield one.input
                yield from one.references


def read_task_texts(tasks: Sequence[Task], *, say: Say) -> TaskTexts:
    """Read all splits of tasks, and warn if a held-out input is in any task's training data.

    Args:
      tasks: tasks of the run.
      say: called with each warning.
    Raises:
      FileNotFoundError: a source is neither on this machine nor on the hub.
      ValueError: a source cannot be read or is empty, or lacks a column of a template.
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
    """Yield a warning per task whose training data has inputs of `examples`, own task first."""
    for other in sorted(train, key=lambda other: other != name):
        shared = split_overlap(train[other], examples)
        if shared.inputs:
            whose = "its training data" if other == name else f"the training data of {other!r}"
            yield (
                f"warning: {shared.inputs} of {len(examples)} inputs in {split} of task {name!r} "
                f"are also in {whose}, {shared.pairs} with the same target; scores may be inflated."
            )


def tokenize_pairs(
    texts: TaskTexts, *, tokenizer: Tokenizer, limits: PairLimits, max_unknown: float, say: Say
) -> dict[str, Pairs]:
    """Tokenize the training examples of each task, and apply the limits.

    Args:
      texts: examples of all tasks; the first reference is the target.
      tokenizer: tokenizer of the run.
      limits: length limits, and policies for examples that exceed them.
      max_unknown: maximum fraction of targets with unknown tokens.
      say: called with the number of examples over each limit, if any.
    Returns:
      Task name -> pairs of ids, EOS included.
    Raises:
      ValueError: an example is over a limit whose policy is "error", no example remains, or too
        many targets have unknown tokens.
    """
    pairs = {}
    for name, examples in texts.train.items():
        inputs = [encode_with_eos(tokenizer, one.input) for one in examples]
        targets = [encode_with_eos(tokenizer, one.references[0]) for one in examples]
        where = f"training examples of task {name!r}"
        counts = count_unknown([one.input for one in examples], inputs, tokenizer=tokenizer)
        _report_unknown(counts, f"inputs in {where}", say)
        counts = count_unknown(
            [one.references[0] for one in examples], targets, tokenizer=tokenizer
        )
        _report_unknown(counts, f"targets in {where}", say, max_unknown=max_unknown)
        pairs[name], counts = apply_limits(inputs, targets, limits=limits, name=name)
        for line in _account(counts, limits):
            say(f"task {name!r}: {line}")
    return pairs


def _report_unknown(
    counts: UnknownCounts, where: str, say: Say, *, max_unknown: float | None = None
) -> None:
    """Report what a vocabulary cannot spell, or reject it beyond a limit."""
    if max_unknown is not None and counts.unknown_texts > max_unknown * counts.texts:
        raise ValueError(
            f"at most {max_unknown:.0%} of the {where} may have unknown tokens, got {counts}; "
            "replace these characters, train a tokenizer on the data, use bytes or a ByT5, or "
            "raise max_unknown_targets."
        )
    if counts.unknown_texts > _REPORTED_UNKNOWN * counts.texts:
        say(f"warning: {where}: {counts}")
    if counts.lost_whitespace:
        say(
            f"warning: {where}: {counts.lost_whitespace} of {counts.texts} have line breaks or "
            "tabs, which the tokenizer turns into spaces"
        )


def validation_splits(
    tasks: Sequence[Task],
    texts: TaskTexts,
    *,
    tokenizer: Tokenizer,
    limits: PairLimits,
    max_unknown: float,
    say: Say,
) -> list[EvalSplit]:
    """Check and tokenize the held-out examples of each task, in order.

    Inputs over the limit are truncated unless the policy is "error"; references are kept whole.

    Args:
      tasks: tasks of the run.
      texts: examples of all tasks.
      tokenizer: tokenizer of the run.
      limits: length limits, and policies for examples that exceed them.
      max_unknown: maximum fraction of references with unknown tokens.
      say: called with a message about truncated inputs and about references that are empty or too
        long to be generated.
    Raises:
      ValueError: a metric does not accept the references, or too many have unknown tokens; or the
        policy is "error", and an input or every reference of an example is too long, or all
        references of a split are empty.
    """
    splits = []
    for task in tasks:
        for split in _HELDOUT:
            if (task.name, split) not in texts.heldout:
                continue
            examples = texts.heldout[task.name, split]
            inputs = [encode_with_eos(tokenizer, one.input) for one in examples]
            where = f"{split} of task {task.name!r}"
            counts = count_unknown([one.input for one in examples], inputs, tokenizer=tokenizer)
            _report_unknown(counts, f"inputs in {where}", say)
            references = [text for one in examples for text in one.references]
            ids = [tokenizer.encode(text) for text in references]
            counts = count_unknown(references, ids, tokenizer=tokenizer)
            _report_unknown(counts, f"references in {where}", say, max_unknown=max_unknown)
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
    """Return the fraction of each task in the mixture.  (arXiv:1910.10683, section 3.5.2)

    Args:
      tasks: tasks of the run, with a weight each or none.
      pairs: task name -> training examples.
      size_limit: maximum number of examples per task that counts, if there are no weights.
    Returns:
      Task name -> fraction; they add up to 1.
    Raises:
      ValueError: some tasks have a weight, but not all.
    """
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
    """Return an infinite iterator over batches of a mixture of tasks.

    Args:
      config: options of the run.
      model: source of `pad_id` and `decoder_start_id`.
      pairs: task name -> training examples.
      shares: task name -> fraction of the mixture, in the same order.
      mesh: device mesh over which the rows of a batch are sharded.
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
    """Log the size of each task and its share of the mixture."""
    for name, examples in pairs.items():
        inputs, targets = examples.tokens
        log_once(
            f"task {name!r}: {len(examples)} examples, {inputs / len(examples):.1f} tokens/input, "
            f"{targets / len(examples):.1f} tokens/target, share {shares[name]:.1%}"
        )


def data_digest(pairs: Mapping[str, Pairs], trials: Sequence[EvalSplit]) -> str:
    """Return a hash of the training and validation data, excluding test data."""
    digest = hashlib.sha256(pairs_digest(pairs).encode())
    for one in trials:
        if one.split == "validation":
            digest.update(f"{one.task.name} {list(one.examples)!r}\n".encode())
    return digest.hexdigest()


def _check_inputs(inputs: Sequence[list[int]], limits: PairLimits, where: str, say: Say) -> None:
    long = [len(ids) for ids in inputs if len(ids) > limits.input_length]
    if long and limits.too_long == "error":
        raise ValueError(
            f"inputs in {where} must have at most input_length={limits.input_length} tokens, got "
            f"{len(long)} of {len(inputs)} longer inputs (longest {max(long)}); raise "
            "input_length, or set too_long to drop or truncate."
        )
    if long:
        say(f"{where}: truncated {len(long)} inputs to {limits.input_length} tokens")


def _check_references(
    examples: Sequence[Example],
    limits: PairLimits,
    where: str,
    tokenizer: Tokenizer,
    say: Say,
) -> None:
    """Report or reject references that are empty or too long to be generated."""
    lengths = [
        [len(encode_with_eos(tokenizer, text)) for text in one.references] for one in examples
    ]
    total = sum(map(len, lengths))
    empty = sum(row.count(1) for row in lengths)
    if empty == total and limits.empty_targets == "error":
        raise ValueError(
            f"{where} must have a non-empty reference, got {total} references that are all empty; "
            "fix the data, or set empty_targets to drop or keep."
        )
    if empty:
        say(f"{where}: {empty} of {total} references are empty")
    # One reference within the limit is enough.
    long = [min(row) for row in lengths if min(row) > limits.target_length]
    if long and limits.too_long == "error":
        raise ValueError(
            f"in {len(long)} of {len(lengths)} examples of {where}, every reference exceeds "
            f"target_length={limits.target_length} tokens (longest {max(long)}); raise "
            "target_length, or set too_long to drop or truncate."
        )
    if long:
        say(
            f"{where}: in {len(long)} of {len(lengths)} examples every reference exceeds "
            f"target_length={limits.target_length} tokens; raise target_length to generate them"
        )


def _account(counts: LimitCounts, limits: PairLimits) -> Iterator[str]:
    """Yield the number of examples over each limit, and how they were handled."""
    done = {"drop": "dropped", "truncate": "truncated", "keep": "kept", "error": "rejected"}
    long_inputs = f"inputs with more than {limits.input_length} tokens"
    long_targets = f"targets with more than {limits.target_length} tokens"
    for count, what, policy in (
        (counts.long_inputs, long_inputs, limits.too_long),
        (counts.long_targets, long_targets, limits.too_long),
        (counts.empty_targets, "empty targets", limits.empty_targets),
    ):
        if count:
            yield f"{done[policy]} {count} {what}"
