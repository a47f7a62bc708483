"""`t5jax evaluate`: metrics of predictions in files, with intervals, for one task or several."""

import dataclasses
import json as jsons
import math
import statistics
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, arg

from t5jax.evaluation.metrics import (
    METRICS,
    MetricOptions,
    Tokenize,
    bootstrap_interval,
    check_metrics,
    compute_metrics,
    used_options,
)
from t5jax.evaluation.predictions import Predictions, read_predictions
from t5jax.fileio import write_atomically

_LEVEL = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Compare predictions with references.

    Files have a line for each example, or are .jsonl with a prediction and its references or
    target, or .tsv with a key, a tab and a text, further references of a key in further lines.

    Several tasks are written NAME=FILE, a metric of only one of them NAME=METRIC, and a class of
    only one NAME=CLASS.
    """

    predictions: Annotated[tuple[str, ...], arg(metavar="[NAME=]FILE ...")]
    """A file of predictions, or one for each task."""
    references: Annotated[tuple[str, ...], arg(metavar="[NAME=]FILE ...")] = ()
    """Files of references, each with one for every prediction; needless for a .jsonl with both."""
    metrics: Annotated[tuple[str, ...], arg(metavar="[NAME=]METRIC ...")]
    """Such as bleu, chrf, rougeL, squad_f1, accuracy, wer; another name lists all."""
    keyed: FlagCreatePairsOff[bool] = False
    """Read files of other endings as .tsv."""
    tokenize: Tokenize = "13a"
    """How BLEU finds words: as WMT does (13a), intl, zh, char, or none, for tokenized text."""
    lowercase: FlagCreatePairsOff[bool] = False
    """Ignore case in BLEU and chrF."""
    use_stemmer: FlagCreatePairsOff[bool] = False
    """Let words of one stem match in ROUGE; English."""
    positive: Annotated[tuple[str, ...], arg(metavar="[NAME=]CLASS ...")] = ()
    """Class whose F1 is measured."""
    bootstrap: Annotated[int, arg(metavar="N")] = 0
    """Draw examples anew so often, for 95 % intervals; 1000 is usual."""
    seed: int = 0
    """Of the draws."""
    json: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write all numbers here, too."""

    def __post_init__(self):
        if self.bootstrap < 0:
            raise ValueError(f"bootstrap must be at least 0, got {self.bootstrap}.")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}.")


def evaluate_files(options: Evaluate) -> dict[str, Any]:
    """Prints a table for each task, and returns its numbers.

    Returns:
      "tasks": name, or the file of predictions -> {"examples", "references", "metrics": name ->
      {"score", "interval", "detail"}}; "average", over tasks of the mean over their metrics, if
      there are several tasks; it is None among error rates; "bootstrap": how intervals were found.
    Raises:
      ValueError: names, files or metrics do not fit together, or a library is missing.
      OSError: a file cannot be read or written.
    """
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    tasks = _tasks(options)
    # An option is right if one task takes it, so all tasks' metrics are checked together.
    check_metrics(
        [name for task in tasks.values() for name in task.metrics],
        _metric_options(options, options.positive[0] if options.positive else None),
    )
    for name, task in tasks.items():
        if "f1" in task.metrics and task.positive is None:
            raise ValueError(
                f"f1 of task {name!r} must know its class, got none; write --positive {name}=CLASS."
            )
    examples = {
        name: read_predictions(task.predictions, task.references, keyed=options.keyed)
        for name, task in tasks.items()
    }
    results: dict[str, Any] = {"tasks": {}}
    for name, task in tasks.items():
        result = _measure(examples[name], task, options)
        results["tasks"][name] = result
        _print(name, result)
    if len(tasks) > 1:
        results["average"] = _average(tasks, results["tasks"])
    if options.bootstrap:
        results["bootstrap"] = {
            "resamples": options.bootstrap,
            "seed": options.seed,
            "level": _LEVEL,
        }
        print(f"intervals: {options.bootstrap} draws of examples, seed {options.seed}")
    if options.json:
        write_atomically(options.json, jsons.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return results


@dataclasses.dataclass(frozen=True)
class _Task:
    predictions: Path
    references: list[Path]
    metrics: list[str]
    positive: str | None


def _tasks(options: Evaluate) -> dict[str, _Task]:
    found = _by_name(options.predictions)
    references = _by_name(options.references)
    if "" in found and len(found) > 1:
        raise ValueError(
            f"predictions must be one file, or all be written NAME=FILE, got "
            f"{' '.join(options.predictions)}."
        )
    for name, listed in found.items():
        if len(listed) > 1:
            task = f"task {name!r}" if name else "a task"
            raise ValueError(
                f"{task} must have one file of predictions, got {' '.join(listed)}; write "
                "NAME=FILE for several tasks."
            )
    if "" in references and "" not in found:
        raise ValueError(
            f"references must be written NAME=FILE, as predictions are, got "
            f"{' '.join(references[''])}."
        )
    for name in references:
        _check_name(name, found, "references")
    named = [text.rpartition("=")[::2] for text in options.metrics]
    for name, metric in named:
        if name:
            _check_name(name, found, f"metric {metric!r}")
    classes = _classes(options.positive, found)
    tasks = {}
    for name, (file,) in found.items():
        listed = list(dict.fromkeys(metric for owner, metric in named if owner in ("", name)))
        if not listed:
            raise ValueError(f"task {name!r} must have a metric, got none; write {name}=METRIC.")
        if name and name in classes and "f1" not in listed:
            raise ValueError(
                f"the class of task {name!r} must go with f1, got {', '.join(listed)}; write "
                f"--metrics {name}=f1, too."
            )
        tasks[name or file] = _Task(
            predictions=Path(file),
            references=[Path(x) for x in references.get(name, [])],
            metrics=listed,
            positive=classes.get(name, classes.get("")) if "f1" in listed else None,
        )
    return tasks


def _classes(texts: tuple[str, ...], tasks: Collection[str]) -> dict[str, str]:
    """Class by name of its task; by "" that of all others."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, label = text.partition("=")
        # A class may hold "=", too, and no name is meant where no task has one.
        if not equals or "" in tasks:
            name, label = "", text
        if name:
            _check_name(name, tasks, f"class {label!r}")
        if name in found:
            raise ValueError(
                f"positive must be one class for a task, got {found[name]!r} and {label!r}; write "
                "NAME=CLASS for several tasks."
            )
        found[name] = label
    return found


def _check_name(name: str, tasks: Collection[str], what: str) -> None:
    if name in tasks:
        return
    if "" in tasks:
        raise ValueError(
            f"{what} of {name!r} must be of a task with that name, but no task has a name; write "
            f"--predictions {name}=FILE."
        )
    raise ValueError(
        f"{what} must be of a task, got {name!r}; tasks are {', '.join(map(repr, tasks))}."
    )


def _by_name(texts: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        # A path may hold "=", too.
        if not equals or "/" in name or Path(text).exists():
            name, file = "", text
        found.setdefault(name, []).append(file)
    return found


def _metric_options(options: Evaluate, positive: str | None) -> MetricOptions:
    return MetricOptions(
        tokenize=options.tokenize,
        lowercase=options.lowercase,
        use_stemmer=options.use_stemmer,
        positive=positive,
    )


def _measure(examples: Predictions, task: _Task, options: Evaluate) -> dict[str, Any]:
    given = used_options(task.metrics, _metric_options(options, task.positive))
    measured = compute_metrics(task.metrics, examples.predictions, examples.references, given)
    found: dict[str, Any] = {}
    for name, metric in measured.items():
        found[name] = {"score": _defined(metric.score)}
        if options.bootstrap:
            ends = bootstrap_interval(
                metric, resamples=options.bootstrap, seed=options.seed, level=_LEVEL
            )
            found[name]["interval"] = list(map(_defined, ends))
        if metric.detail:
            found[name]["detail"] = metric.detail
    return {
        "examples": len(examples.predictions),
        "references": sum(map(len, examples.references)),
        "metrics": found,
    }


def _defined(value: float) -> float | None:
    """The number; None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def _print(name: str, result: dict[str, Any]) -> None:
    counts = f"{result['examples']} examples, {result['references']} references"
    print(f"{name}: {counts}")
    width = max(map(len, result["metrics"]))
    for metric, values in result["metrics"].items():
        if values["score"] is None:
            print(f"  {metric:{width}}  undefined")
            continue
        line = f"  {metric:{width}}  {values['score']:7.2f}"
        low, high = values.get("interval", (None, None))
        if low is not None:
            line += f"   95 %: {low:.2f} to {high:.2f}"
        print(line)
    for values in result["metrics"].values():
        if "detail" in values:
            print(f"  {values['detail']}")


def _average(tasks: dict[str, _Task], results: dict[str, Any]) -> float | None:
    """Mean over tasks of the mean over a task's metrics.  (arXiv:1910.10683, section 2.3)"""
    errors = {x for task in tasks.values() for x in task.metrics if METRICS[x].is_error}
    if errors:
        print(f"no average: of {', '.join(sorted(errors))} less is better")
        return None
    scores = [[x["score"] for x in result["metrics"].values()] for result in results.values()]
    if any(score is None for row in scores for score in row):
        print("no average: a metric is undefined")
        return None
    means = [statistics.fmean(row) for row in scores]
    average = statistics.fmean(means)
    print(f"average of {len(means)} tasks  {average:.2f}")
    return average
