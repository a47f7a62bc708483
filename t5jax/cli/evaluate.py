"""`t5jax evaluate`: compute metrics of prediction files for one or more tasks."""

import dataclasses
import json as jsons
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, arg

from t5jax.evaluation import EvalTask, evaluate_files
from t5jax.evaluation.metrics import (
    METRICS,
    MetricOptions,
    TextOptions,
    check_metrics,
    used_options,
)
from t5jax.fileio import JsonObject, write_atomically


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Compare predictions with references.

    Supported files: text with one example per line; .jsonl with a prediction and its references or
    target; .tsv with a key and a text, one line per reference.  They may be compressed: .gz, .bz2,
    .xz or .zst.

    For several tasks, write NAME=FILE; NAME=METRIC and NAME=CLASS apply to one task only.

    Attributes:
      predictions: prediction file, one per task; required, except with `--metrics list`.
      references: reference files, each with one reference per prediction; not needed for .jsonl
        files that contain both.
      metrics: metrics such as bleu, chrf, rougeL, squad_f1, accuracy or wer; `list` prints all.
      keyed: read files with any other extension as .tsv.
      text: options of text metrics.
      positive: positive class for F1.
      bootstrap: number of bootstrap resamples for 95% intervals; 1000 is usual, 0 disables them.
      seed: random seed for resampling.
      json: JSON file to write the results to.
    """

    predictions: Annotated[tuple[str, ...], arg(metavar="[NAME=]FILE ...")] = ()
    references: Annotated[tuple[str, ...], arg(metavar="[NAME=]FILE ...")] = ()
    metrics: Annotated[tuple[str, ...], arg(metavar="[NAME=]METRIC ...")]
    keyed: FlagCreatePairsOff[bool] = False
    text: OmitArgPrefixes[FlagCreatePairsOff[TextOptions]] = TextOptions()
    positive: Annotated[tuple[str, ...], arg(metavar="[NAME=]CLASS ...")] = ()
    bootstrap: Annotated[int, arg(metavar="N")] = 0
    seed: int = 0
    json: Annotated[Path | None, arg(metavar="FILE")] = None


def evaluate(options: Evaluate) -> None:
    """Print the metrics of each task, or the list of all metrics.

    Args:
      options: options of the command.
    Raises:
      ValueError: names, files or metrics do not match, or a library is missing.
      OSError: a file cannot be read or written.
    """
    if options.metrics == ("list",):
        _print_metrics()
        return
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    report = evaluate_files(parse_tasks(options), bootstrap=options.bootstrap, seed=options.seed)
    for name, task in report["tasks"].items():
        _print_task(name, task)
    if "average" in report:
        print(f"average of {len(report['tasks'])} tasks  {report['average']:.2f}")
        scores = [x["score"] for task in report["tasks"].values() for x in task["metrics"].values()]
        if None in scores:
            print("undefined metrics count as 0 in the average")
    if options.bootstrap:
        print(f"intervals: {options.bootstrap} bootstrap resamples, seed {options.seed}")
    if options.json:
        write_atomically(options.json, jsons.dumps(report, indent=1, ensure_ascii=False) + "\n")


def _print_metrics() -> None:
    width = max(map(len, METRICS))
    for name, metric in METRICS.items():
        flags = " ".join(f"--{option.replace('_', '-')}" for option in metric.options)
        notes = ["lower is better"] * metric.is_error + [flags] * bool(flags)
        print(f"{name:{width}}  {metric.summary}" + (f" ({'; '.join(notes)})" if notes else ""))


def _print_task(name: str, report: JsonObject) -> None:
    print(f"{name}: {report['examples']} examples, {report['references']} references")
    width = max(map(len, report["metrics"]))
    for metric, values in report["metrics"].items():
        if values["score"] is None:
            print(f"  {metric:{width}}  undefined")
            continue
        line = f"  {metric:{width}}  {values['score']:7.2f}"
        low, high = values.get("interval", (None, None))
        if low is not None:
            line += f"   95 %: {low:.2f} to {high:.2f}"
        print(line)
    for values in report["metrics"].values():
        if "detail" in values:
            print(f"  {values['detail']}")


def parse_tasks(options: Evaluate) -> dict[str, EvalTask]:
    """Parse [NAME=]FILE, [NAME=]METRIC and [NAME=]CLASS into tasks.

    Args:
      options: options of the command.
    Returns:
      Tasks by name; an unnamed task is named after its prediction file.
    Raises:
      ValueError: names, or metrics and options, do not match.
    """
    if not options.predictions:
        raise ValueError("predictions must name at least one file, got none; add --predictions.")
    files = _files_by_name(options.predictions)
    references = _files_by_name(options.references)
    _check_files(options, files, references)
    metrics = [text.rpartition("=")[::2] for text in options.metrics]
    for name, metric in metrics:
        if name:
            _check_name(name, files, f"metric {metric!r}")
    classes = _classes_by_name(options.positive, files)
    # An option is valid if any task has a metric that takes it.
    check_metrics(
        [metric for _, metric in metrics],
        _metric_options(options, options.positive[0] if options.positive else None),
    )
    tasks = {}
    for name, (file,) in files.items():
        names = list(dict.fromkeys(metric for owner, metric in metrics if owner in ("", name)))
        if not names:
            raise ValueError(f"task {name!r} must have a metric, got none; write {name}=METRIC.")
        if name and name in classes and "f1" not in names:
            raise ValueError(
                f"the class of task {name!r} requires metric f1, got {', '.join(names)}; add "
                f"--metrics {name}=f1."
            )
        positive = classes.get(name, classes.get(""))
        if "f1" in names and positive is None:
            raise ValueError(
                f"f1 of task {name!r} requires a class, got none; add --positive {name}=CLASS."
            )
        tasks[name or file] = EvalTask(
            predictions=Path(file),
            references=[Path(x) for x in references.get(name, [])],
            metrics=names,
            options=used_options(names, _metric_options(options, positive)),
            keyed=options.keyed,
        )
    return tasks


def _metric_options(options: Evaluate, positive: str | None) -> MetricOptions:
    return MetricOptions(**dataclasses.asdict(options.text), positive=positive)


def _files_by_name(texts: tuple[str, ...]) -> dict[str, list[str]]:
    """Group files by task name; "" for files without one."""
    files: dict[str, list[str]] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        # A path may contain "=".
        if not equals or "/" in name or Path(text).exists():
            name, file = "", text
        files.setdefault(name, []).append(file)
    return files


def _check_files(
    options: Evaluate, predictions: dict[str, list[str]], references: dict[str, list[str]]
) -> None:
    if "" in predictions and len(predictions) > 1:
        raise ValueError(
            f"predictions must be one file, or all be written NAME=FILE, got "
            f"{' '.join(options.predictions)}."
        )
    for name, files in predictions.items():
        if len(files) > 1:
            task = f"task {name!r}" if name else "a task"
            raise ValueError(
                f"{task} must have one file of predictions, got {' '.join(files)}; write NAME=FILE "
                "for several tasks."
            )
    if "" in references and "" not in predictions:
        raise ValueError(
            f"references must be written NAME=FILE like the predictions, got "
            f"{' '.join(references[''])}."
        )
    for name in references:
        _check_name(name, predictions, "references")


def _classes_by_name(texts: tuple[str, ...], tasks: Collection[str]) -> dict[str, str]:
    """Map task names to classes; "" stands for all other tasks."""
    classes: dict[str, str] = {}
    for text in texts:
        name, equals, label = text.partition("=")
        # A class may contain "="; if the task is unnamed, the text has no name.
        if not equals or "" in tasks:
            name, label = "", text
        if name:
            _check_name(name, tasks, f"class {label!r}")
        if name in classes:
            raise ValueError(
                f"positive must be one class per task, got {classes[name]!r} and {label!r}; "
                "write NAME=CLASS for several tasks."
            )
        classes[name] = label
    return classes


def _check_name(name: str, tasks: Collection[str], what: str) -> None:
    if name in tasks:
        return
    if "" in tasks:
        raise ValueError(
            f"{what} names task {name!r}, but the task is unnamed; write --predictions {name}=FILE."
        )
    raise ValueError(
        f"{what} must name a known task, got {name!r}; tasks are {', '.join(map(repr, tasks))}."
    )
