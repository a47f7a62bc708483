"""Tasks as pairs of texts: where they come from, how they are worded, how answers are judged."""

import dataclasses
import difflib
import json
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from t5jax import corpus, metrics, textfiles
from t5jax.metrics import MetricOptions

_NAME = string.ascii_letters + string.digits + "-_."

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Row = Mapping[str, str | Sequence[str]]
Source = str | Sequence[Row]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Texts in, texts out, and the metrics of what is written.

    A source is a list of rows, each a dict from column to text; or a .jsonl, .json, .csv, .tsv or
    .parquet file; or a data set on the Hugging Face hub, 'owner/name' or 'owner/name:split'.
    """

    name: str
    """Told apart from other tasks by it, in logs and in names of files."""
    train: Source
    """To learn from."""
    validation: Source
    """To look at while training, and to choose by."""
    test: Source | None = None
    """To measure once, at the end."""
    input: str = "{input}"
    """What the model reads: a template over the columns, such as 'translate English to German:
    {en}'."""
    target: str = "{target}"
    """What it is to write.  A column alone may hold a list: all of it is right, and training takes
    the first."""
    metrics: tuple[str, ...] = ("exact_match",)
    """Keys of `metrics.KNOWN`."""
    metric_options: MetricOptions = MetricOptions()
    """Of those that take any."""
    weight: float | None = None
    """Share of this task's examples in training, relative to other tasks'; without it, its size."""
    several_targets: bool = False
    """Rows of one input are right answers to it, each; in validation and test they become one
    example with several references."""
    subset: str | None = None
    """Configuration of the data set on the hub."""
    postprocess: Callable[[str], str] | None = None
    """Changes predictions and references before they are compared and written."""

    def __post_init__(self):
        if not self.name or not set(self.name) <= set(_NAME):
            raise ValueError(
                f"name must be letters, digits and -_., got {self.name!r}; it names files."
            )
        if self.weight is not None and not self.weight > 0:
            raise ValueError(f"weight of task {self.name!r} must be > 0, got {self.weight}.")
        metrics.check(self.metrics, self.metric_options)
        for template in (self.input, self.target):
            _parts(template, task=self.name)

    def source(self, split: Split) -> Source | None:
        """Where a split comes from."""
        return getattr(self, split)


class Example(NamedTuple):
    """One text to read, and what may be written."""

    input: str
    references: list[str]


def load(path: str | Path) -> list[Task]:
    """Tasks from a JSON file: a list of objects with the fields of `Task`, or one object.

    Paths in it are relative to the file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is not such a file, or has an unknown field.
    """
    path = Path(path).expanduser()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON, got an error: {error}.") from None
    listed = found if isinstance(found, list) else [found]
    if not listed:
        raise ValueError(f"{path} must hold at least one task, got an empty list.")
    return [_task(path, number, one) for number, one in enumerate(listed, start=1)]


def read(task: Task, split: Split) -> list[Example]:
    """The examples of a split; none if the task has no such split.

    Raises:
      FileNotFoundError: a source is neither here nor on the hub.
      ValueError: a source cannot be read or is empty, or lacks what a template names.
    """
    source = task.source(split)
    if source is None:
        return []
    found = list(_examples(task, split, source))
    if not found:
        raise ValueError(f"{split} of task {task.name!r} must have at least one row, got none.")
    if split == "train" or not task.several_targets:
        return found
    joined: dict[str, list[str]] = {}
    for one in found:
        known = joined.setdefault(one.input, [])
        known.extend(text for text in one.references if text not in known)
    return [Example(*item) for item in joined.items()]


class Overlap(NamedTuple):
    """How much of a held-out split is training data."""

    inputs: int
    """Examples whose input is one of training's."""
    pairs: int
    """Those of them whose target is that of training, too."""


def overlap(train: Sequence[Example], heldout: Sequence[Example]) -> Overlap:
    """Counts the examples of `heldout` that are in `train`."""
    targets: dict[str, set[str]] = {}
    for one in train:
        targets.setdefault(one.input, set()).update(one.references)
    known = [one for one in heldout if one.input in targets]
    pairs = sum(not targets[one.input].isdisjoint(one.references) for one in known)
    return Overlap(len(known), pairs)


def check_names(tasks: Sequence[Task]) -> None:
    """Raises ValueError unless there are tasks, each with a name of its own."""
    if not tasks:
        raise ValueError("there must be at least one task, got none.")
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"tasks must have names of their own, got {name!r} twice.")


def _task(path: Path, number: int, fields: Any) -> Task:
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold objects, got {fields!r:.60} as task {number}.")
    known = [field.name for field in dataclasses.fields(Task) if field.name != "postprocess"]
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
            raise ValueError(f"{path}: task {number} has an unknown field {name!r}; {hint}")
    for name in ("name", "train", "validation"):
        if name not in fields:
            raise ValueError(f"{path}: task {number} must have the field {name!r}; it lacks it.")
    fields = dict(fields)
    for split in SPLITS:
        source = fields.get(split)
        if isinstance(source, str):
            here = path.parent / source
            fields[split] = str(here) if here.exists() else source
    if "metrics" in fields:
        fields["metrics"] = tuple(fields["metrics"])
    try:
        if "metric_options" in fields:
            fields["metric_options"] = MetricOptions(**fields["metric_options"])
        return Task(**fields)
    except TypeError as error:
        raise ValueError(f"{path}: task {number} has a field of a wrong kind: {error}.") from None


def _examples(task: Task, split: Split, source: Source) -> Iterator[Example]:
    reads, writes = (_parts(x, task=task.name) for x in (task.input, task.target))
    columns = list(dict.fromkeys(name for _, name in (*reads, *writes) if name is not None))
    alone = len(writes) == 1 and writes[0][0] == ""
    for number, row in enumerate(_rows(task, split, source, columns), start=1):
        where = f"row {number} of {split} of task {task.name!r}"
        if alone and not isinstance(row[columns[-1]], str):
            name = writes[0][1]
            assert name is not None
            references = [str(text) for text in row[name]]
            if not references:
                raise ValueError(f"{where} must have a target, got an empty list; leave it out.")
        else:
            references = [_fill(writes, row, where)]
        yield Example(_fill(reads, row, where), references)


def _rows(task: Task, split: Split, source: Source, columns: list[str]) -> Iterator[Row]:
    if not isinstance(source, str):
        for row in source:
            _check_columns(f"{split} of task {task.name!r}", columns, row)
            yield row
        return
    path = str(Path(source).expanduser())
    if Path(path).exists():
        yield from _file_rows(path, columns)
        return
    name, _, wanted = source.partition(":")
    if not corpus.is_hub_name(name):
        raise FileNotFoundError(
            f"{split} of task {task.name!r} must be a file or a hub name 'owner/name', got "
            f"{source!r}, which does not exist in {Path.cwd()}; correct it."
        )
    data = corpus.hub_rows(name, task.subset, split=wanted or split)
    _check_columns(f"data set {source!r}", columns, dict.fromkeys(data.column_names))
    features = data.features or {}
    labels = {name: getattr(features.get(name), "names", None) for name in columns}
    row: Any
    for row in data.select_columns(columns):
        # Classes are stored as numbers; their names are what a model can write.
        yield {
            name: labels[name][value] if labels[name] and isinstance(value, int) else value
            for name, value in row.items()
        }


def _file_rows(path: str, columns: list[str]) -> Iterator[Row]:
    if not textfiles.ending(path) or textfiles.ending(path) == ".txt":
        raise ValueError(
            f"{path} must have columns, as .jsonl, .json, .csv, .tsv and .parquet files have; "
            "write it in one of these."
        )
    # The file is read once for each column, so that a reader knows of no more than one.
    read = [textfiles.rows(path, column) for column in columns]
    for texts in zip(*read, strict=True):
        yield dict(zip(columns, texts, strict=True))


def _check_columns(where: str, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    for column in columns:
        if column not in row:
            near = difflib.get_close_matches(column, list(row), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else "correct the template or the data."
            raise ValueError(
                f"{where} must have the column {column!r}, which a template names, got "
                f"{', '.join(row)}; {hint}"
            )


def _parts(template: str, *, task: str) -> list[tuple[str, str | None]]:
    """A template as literal texts, each with the column behind it, if there is one."""
    try:
        found = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"a template of task {task!r} must have its columns in braces, got {template!r}: "
            f"{error}; write {{{{ and }}}} for braces themselves."
        ) from None
    if not any(name for _, name, _, _ in found):
        raise ValueError(
            f"a template of task {task!r} must name a column, got {template!r}; write it in "
            "braces, as in 'summarize: {text}'."
        )
    for _, name, form, conversion in found:
        if name == "" or form or conversion:
            raise ValueError(
                f"a template of task {task!r} must have plain names of columns in braces, got "
                f"{template!r}."
            )
    return [(literal, name) for literal, name, _, _ in found]


def _fill(parts: Sequence[tuple[str, str | None]], row: Row, where: str) -> str:
    texts = []
    for literal, name in parts:
        texts.append(literal)
        if name is None:
            continue
        value = row[name]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"column {name!r} must hold text, got {value!r:.60} in {where}.")
        texts.append(str(value))
    return "".join(texts)
