"""Text-to-text tasks: sources, templates and metrics."""

import dataclasses
import datetime
import decimal
import glob
import hashlib
import math
import string
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from t5jax.data import corpus, text_files
from t5jax.errors import suggest
from t5jax.evaluation.metrics import MetricOptions, check_metrics
from t5jax.fileio import JsonObject, read_json

_NAME = string.ascii_letters + string.digits + "-_."
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Row = Mapping[str, object]
Source = str | Sequence[str] | Sequence[Row]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Text-to-text task: data, templates and metrics.

    A source is a list of rows, each a dict from column to text; a .jsonl, .json, .csv, .tsv or
    .parquet file, a folder, a glob or a list of them; a folder of `datasets.save_to_disk`; or a
    Hugging Face Hub dataset, 'owner/name' or 'owner/name:split'. Numbers and dates are converted to
    text, true and false to "True" and "False", and null to the empty string.

    Attributes:
      name: unique name, used in logs and file names.
      train: source of the training split.
      validation: source of the validation split, evaluated during training; or the fraction of the
        training inputs to hold out for it, selected by a hash of their text.
      test: source of the test split, evaluated once at the end.
      input: template of the model's input, such as 'translate English to German: {en}'; a nested
        field is written with dots, {translation.en}.
      target: template of the target; if it is a single column, that column may hold a list of
        correct targets, and training uses the first.
      metrics: names of the metrics, keys of `METRICS`.
      metric_options: options for metrics that take any.
      weight: relative weight in a mixture; defaults to the number of examples.
      several_targets: merge validation and test rows with the same input into one example with
        several references.
      subset: configuration of the Hub dataset.
      preprocess: function applied to each row before the templates; if it returns None, the row is
        skipped.
      postprocess: function applied to predictions and references before they are compared and
        written.

    Examples:
      >>> rows = [{"en": "yes", "de": "ja"}]
      >>> task = t5jax.data.Task(
      ...     name="ende", train=rows, validation=rows, input="translate: {en}", target="{de}"
      ... )
      >>> task.metrics
      ('exact_match',)
    """

    name: str
    train: Source
    validation: Source | float
    test: Source | None = None
    input: str = "{input}"
    target: str = "{target}"
    metrics: tuple[str, ...] = ("exact_match",)
    metric_options: MetricOptions = MetricOptions()
    weight: float | None = None
    several_targets: bool = False
    subset: str | None = None
    preprocess: Callable[[JsonObject], Row | None] | None = None
    postprocess: Callable[[str], str] | None = None

    def __post_init__(self):
        if not self.name or not set(self.name) <= set(_NAME):
            raise ValueError(
                f"name must consist of letters, digits and -_., got {self.name!r}, as it is part "
                "of file names."
            )
        if self.weight is not None and not 0 < self.weight < math.inf:
            raise ValueError(
                f"weight of task {self.name!r} must be > 0 and finite, got {self.weight}."
            )
        if isinstance(self.validation, int | float) and not 0 < self.validation < 1:
            raise ValueError(
                f"validation of task {self.name!r} must be a source or a fraction in (0, 1), got "
                f"{self.validation}."
            )
        check_metrics(self.metrics, self.metric_options)
        for template in (self.input, self.target):
            _parts(template, task=self.name)

    def source(self, split: Split) -> Source | None:
        """Return the source of a split.

        Args:
          split: "train", "validation" or "test".
        Returns:
          The source, or None if the task has no such split; that of the training split for a
          validation split held out from it.
        """
        source = getattr(self, split)
        return self.train if isinstance(source, int | float) else source


class Example(NamedTuple):
    """Input text and its correct targets.

    Attributes:
      input: text from the input template.
      references: correct targets, at least one.

    Examples:
      >>> t5jax.data.Example("translate: yes", ["ja"]).references
      ['ja']
    """

    input: str
    references: list[str]


def load_tasks(path: str | Path) -> list[Task]:
    """Load tasks from a JSON file: a list of objects with the fields of `Task`, or one object.

    Relative paths in the file are resolved from its folder.

    Args:
      path: JSON file.
    Returns:
      The tasks in the order of the file.
    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file does not hold tasks, or a field is unknown or has the wrong type.

    Examples:
      >>> import json, pathlib
      >>> fields = {"name": "copy", "train": "train.tsv", "validation": "validation.tsv"}
      >>> _ = pathlib.Path("tasks.json").write_text(json.dumps(fields))
      >>> [task.name for task in t5jax.data.load_tasks("tasks.json")]
      ['copy']
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"tasks must be a JSON file, got {path}, which does not exist.")
    content = read_json(path)
    objects = content if isinstance(content, list) else [content]
    if not objects:
        raise ValueError(f"{path} must hold at least one task, got an empty list.")
    return [_task(path, number, fields) for number, fields in enumerate(objects, start=1)]


def read_split(task: Task, split: Split) -> list[Example]:
    """Read the examples of a split.

    Args:
      task: task with sources and templates.
      split: "train", "validation" or "test".
    Returns:
      The examples in the order of the source; empty if the task has no such split.
    Raises:
      FileNotFoundError: the source is neither on this machine nor on the Hub.
      ValueError: the source cannot be read or is empty, or lacks a column used in a template.

    Examples:
      >>> rows = [{"en": "yes", "de": "ja"}]
      >>> task = t5jax.data.Task(
      ...     name="ende", train=rows, validation=rows, input="translate: {en}", target="{de}"
      ... )
      >>> t5jax.data.read_split(task, "train")
      [Example(input='translate: yes', references=['ja'])]
    """
    source = task.source(split)
    if source is None:
        return []
    examples = list(_examples(task, split, source))
    if isinstance(task.validation, int | float) and split != "test":
        heldout = [_is_held_out(one.input, task.validation) for one in examples]
        wanted = split == "validation"
        examples = [one for one, held in zip(examples, heldout, strict=True) if held == wanted]
    if not examples:
        raise ValueError(f"{split} of task {task.name!r} must have at least one row, got none.")
    if split == "train" or not task.several_targets:
        return examples
    joined: dict[str, dict[str, None]] = {}
    for example in examples:
        joined.setdefault(example.input, {}).update(dict.fromkeys(example.references))
    return [Example(text, list(references)) for text, references in joined.items()]


def _is_held_out(text: str, fraction: float) -> bool:
    """Return whether an input is among a fraction of all, the same for equal inputs."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest) < fraction * 2**64


class Overlap(NamedTuple):
    """Overlap of a held-out split with the training data.

    Attributes:
      inputs: number of examples whose input is in the training data.
      pairs: number of examples whose input and one of whose targets are paired there.
    """

    inputs: int
    pairs: int


def split_overlap(train: Sequence[Example], heldout: Sequence[Example]) -> Overlap:
    """Count the examples of `heldout` that are in `train`."""
    inputs = {example.input for example in heldout}
    targets: dict[str, set[str]] = {}
    for example in train:
        if example.input in inputs:
            targets.setdefault(example.input, set()).update(example.references)
    known = [example for example in heldout if example.input in targets]
    pairs = sum(not targets[example.input].isdisjoint(example.references) for example in known)
    return Overlap(len(known), pairs)


def check_task_names(tasks: Sequence[Task]) -> None:
    """Raise ValueError if there are no tasks, or if two have the same name."""
    if not tasks:
        raise ValueError("there must be at least one task, got none.")
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"task names must be unique, got {name!r} twice; rename one.")


# Fields allowed in JSON, with their types.
_KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "name": ("text", (str,)),
    "train": ("text or a list of rows", (str, list)),
    "validation": ("text, a list of rows or a fraction", (str, list, float, int)),
    "test": ("text or a list of rows", (str, list, type(None))),
    "input": ("text", (str,)),
    "target": ("text", (str,)),
    "metrics": ("a list of names", (list,)),
    "metric_options": ("an object", (dict,)),
    "weight": ("a number", (int, float, type(None))),
    "several_targets": ("true or false", (bool,)),
    "subset": ("text", (str, type(None))),
}


def _task(path: Path, number: int, fields: object) -> Task:
    where = f"{path}: task {number}"
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold objects, got {fields!r:.60} as task {number}.")
    _check_fields(where, fields, _KINDS)
    for name in ("name", "train", "validation"):
        if name not in fields:
            raise ValueError(f"{where} must have the field {name!r}, got {', '.join(fields)}.")
    for name, value in fields.items():
        kind, types = _KINDS[name]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(f"{where} must have {kind} as {name!r}, got {value!r:.60}.")
    options = fields.get("metric_options", {})
    _check_fields(where, options, [field.name for field in dataclasses.fields(MetricOptions)])
    values = fields | {
        name: _resolve_source(path, fields[name]) for name in SPLITS if name in fields
    }
    if "metrics" in fields:
        values["metrics"] = tuple(map(str, fields["metrics"]))
    if fields.get("weight") is not None:
        values["weight"] = _float(fields["weight"])
    try:
        return Task(**{**values, "metric_options": MetricOptions(**options)})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _float(value: int | float) -> float:
    """Convert a JSON number to a float; integers out of range become infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _resolve_source(path: Path, source: Any) -> Any:
    """Resolve the paths of a source relative to the task file."""
    if isinstance(source, list):
        return [_resolve_source(path, item) for item in source]
    if not isinstance(source, str):
        return source
    resolved = path.parent / Path(source).expanduser()
    is_hub_name = corpus.is_hub_name(source.partition(":")[0])
    return source if is_hub_name and not resolved.exists() else str(resolved)


def _check_fields(where: str, fields: Iterable[str], known: Collection[str]) -> None:
    for name in fields:
        if name not in known:
            hint = suggest(name, known, f"fields are {', '.join(known)}.")
            raise ValueError(f"{where} has an unknown field {name!r}; {hint}")


def _examples(task: Task, split: Split, source: Source) -> Iterator[Example]:
    reads, writes = (_parts(x, task=task.name) for x in (task.input, task.target))
    columns = list(dict.fromkeys(name for _, name in (*reads, *writes) if name is not None))
    alone = writes[0][1] if len(writes) == 1 and not writes[0][0] else None
    # `preprocess` may read any column.
    needed = columns if task.preprocess is None else None
    for number, raw in enumerate(_rows(task, split, source, needed), start=1):
        where = f"row {number} of {split} of task {task.name!r}"
        row = _preprocess(task, raw, where, columns)
        if row is None:
            continue
        if alone is not None and isinstance(row[alone], list | tuple | np.ndarray):
            several: Any = row[alone]
            references = [_text(value, alone, where) for value in several]
            if not references:
                raise ValueError(f"{where} must have a target, got an empty list; remove the row.")
        else:
            references = [_fill(writes, row, where)]
        yield Example(_fill(reads, row, where), references)


def _preprocess(task: Task, row: object, where: str, columns: Sequence[str]) -> Row | None:
    """Preprocess a row and check that it has all columns; return None to skip it."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} must be a dict from column to text, got {row!r:.60}.")
    if task.preprocess is not None:
        row = task.preprocess(dict(row))  # a copy, as it may modify the row
        if row is None:
            return None
        if not isinstance(row, Mapping):
            raise ValueError(
                f"preprocess of task {task.name!r} must return a dict from column to text, or "
                f"None, got {row!r:.60} for {where}."
            )
    _check_columns(where, columns, row)
    nested = {x: text_files.nested_value(row, x) for x in columns if x not in row}
    return {**row, **nested} if nested else row  # pyright: ignore[reportReturnType]


def _rows(task: Task, split: Split, source: Source, columns: list[str] | None) -> Iterator[Any]:
    """Read the rows of a source; from a file or dataset, only these columns, or all if None."""
    if not isinstance(source, str):
        for item in source:
            if isinstance(item, str):
                yield from _rows(task, split, item, columns)
            else:
                yield item
        return
    path, (name, _, wanted) = str(Path(source).expanduser()), source.partition(":")
    if corpus.is_saved_dataset(path):
        data = corpus.saved_rows(path, split=split)
    elif not Path(path).exists() and corpus.is_hub_name(name):
        data = corpus.hub_rows(name, task.subset, split=wanted or split)
    elif Path(path).exists() or glob.has_magic(path):
        for file in corpus.find_files(path):
            yield from _file_rows(file, columns)
        return
    else:
        raise FileNotFoundError(
            f"{split} of task {task.name!r} must be a file, a folder, a glob or a Hub name "
            f"'owner/name', got {source!r}; {Path(path).absolute()} does not exist."
        )
    if columns is not None:
        tops = text_files.top_columns(columns, data.column_names)
        _check_columns(f"dataset {source!r}", tops, dict.fromkeys(data.column_names))
        data = data.select_columns(tops)
    features = data.features or {}
    labels = {name: getattr(feature, "names", None) for name, feature in features.items()}
    row: Any
    for row in data:
        yield {name: _class_name(value, labels.get(name)) for name, value in row.items()}


def _class_name(value: Any, names: Sequence[str] | None) -> Any:
    """Return the name of a class stored as an integer; None for -1, no class."""
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def _file_rows(path: str, columns: list[str] | None) -> Iterator[Row]:
    if not text_files.file_ending(path) or text_files.file_ending(path) == ".txt":
        raise ValueError(
            f"{path} must have columns; convert it to .jsonl, .json, .csv, .tsv or .parquet."
        )
    yield from text_files.read_records(path, columns)


def _check_columns(where: str, columns: Sequence[str], row: Mapping[str, object]) -> None:
    for column in columns:
        if not text_files.has_column(row, column):
            hint = suggest(column, row, "correct the template or the data.")
            raise ValueError(
                f"{where} must have the column {column!r} used in a template, got "
                f"{', '.join(row)}; {hint}"
            )


def _parts(template: str, *, task: str) -> list[tuple[str, str | None]]:
    """Split a template into literals, each with the column that follows; None at the end."""
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"a template of task {task!r} must have its columns in braces, got {template!r}: "
            f"{error}; write {{{{ and }}}} for literal braces."
        ) from None
    if not any(name for _, name, _, _ in fields):
        raise ValueError(
            f"a template of task {task!r} must name a column, got {template!r}; write it in "
            "braces, as in 'summarize: {text}'."
        )
    for _, name, form, conversion in fields:
        if name == "" or form or conversion:
            raise ValueError(
                f"a template of task {task!r} must have plain names of columns in braces, got "
                f"{template!r}; remove positions, formats and conversions."
            )
    return [(literal, name) for literal, name, _, _ in fields]


def _fill(parts: Sequence[tuple[str, str | None]], row: Row, where: str) -> str:
    texts = []
    for literal, name in parts:
        texts.append(literal)
        if name is None:
            continue
        value = row[name]
        texts.append("" if value is None else _text(value, name, where))
    return "".join(texts)


def _text(value: object, column: str, where: str) -> str:
    """Convert a string, number or boolean to text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple | np.ndarray):
        raise ValueError(
            f"column {column!r} must hold one text, got {value!r:.60} in {where}; only a target "
            "that is a single column may be a list."
        )
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(
            f"column {column!r} must hold text or numbers, got {value!r:.60} in {where}; convert "
            "it to text."
        )
    if isinstance(value, float):
        # 2.6 stored as float32, as scores often are, is 2.5999999046325684 as float64.
        with np.errstate(over="ignore"):
            short = np.float32(value)
        return str(float(str(short)) if float(short) == value else value)
    return str(value)
