"""`t5jax evaluate`: metrics of predictions in files, with intervals, for one task or several."""

import dataclasses
import json as jsons
import math
import statistics
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, arg

from t5jax import files, metrics, predictions
from t5jax.metrics import MetricOptions
from t5jax.predictions import Examples

_LEVEL = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(MetricOptions):
    """Compare predictions with references.

    Files have a line for each example, or are .jsonl with a prediction and its references or
    target, or .tsv with a key, a tab and a text, further references of a key in further lines.

    Several tasks are written NAME=FILE, a metric of only one of them NAME=METRIC.
    """

    predictions: Annotated[tuple[str, ...], arg(metavar="[NAME=]FILE ...")]
    """A file of predictions, or one for each task."""
    references: Annotated[tuple[str, ...], arg(metavar="[NAME=]FILE ...")] = ()
    """Files of references, each with one for every prediction; needless for a .jsonl with both."""
    metrics: Annotated[tuple[str, ...], arg(metavar="[NAME=]METRIC ...")]
    """Such as bleu, chrf, rougeL, squad_f1, accuracy, wer; another name lists all."""
    keyed: FlagCreatePairsOff[bool] = False
    """Read files of other endings as .tsv."""
    lowercase: FlagCreatePairsOff[bool] = False
    """Ignore case in BLEU and chrF."""
    use_stemmer: FlagCreatePairsOff[bool] = False
    """Let words of one stem match in ROUGE; English."""
    positive: Annotated[str | None, arg(metavar="CLASS")] = None
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


def run(options: Evaluate) -> dict[str, Any]:
    """Prints a table for each task, and returns its numbers.

    Returns:
      "tasks": name, or the file of predictions -> {"examples", "references", "metrics": name ->
      {"score", "interval", "detail"}}; "average", over tasks of the mean over their metrics, if
      there are several tasks; it is None among error rates; "bootstrap": how intervals were found.
    Raises:
      ValueError: names, files or metrics do not fit together, or a library is missing.
      OSError: a file cannot be read or written.
    """
    tasks = _tasks(options)
    named = [f.name for f in dataclasses.fields(MetricOptions)]
    given = MetricOptions(**{name: getattr(options, name) for name in named})
    # An option is right if one task takes it, so all tasks' metrics are checked together.
    metrics.check([name for task in tasks.values() for name in task.metrics], given)
    examples = {
        name: predictions.read(task.predictions, task.references, keyed=options.keyed)
        for name, task in tasks.items()
    }
    results: dict[str, Any] = {"tasks": {}}
    for name, task in tasks.items():
        result = _measure(examples[name], task.metrics, options, given)
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
        files.write(options.json, jsons.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return results


@dataclasses.dataclass(frozen=True)
class _Task:
    predictions: Path
    references: list[Path]
    metrics: list[str]


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
    for name in references:
        if name not in found:
            raise ValueError(
                f"references of {name!r} must belong to a task, got tasks "
                f"{', '.join(map(repr, found))}; write NAME=FILE as for predictions."
            )
    named = [text.rpartition("=")[::2] for text in options.metrics]
    for name, metric in named:
        if name and name not in found:
            raise ValueError(
                f"metric {metric!r} must be of a task, got {name!r}; tasks are "
                f"{', '.join(map(repr, found))}."
            )
    tasks = {}
    for name, (file,) in found.items():
        listed = list(dict.fromkeys(metric for owner, metric in named if owner in ("", name)))
        if not listed:
            raise ValueError(f"task {name!r} must have a metric, got none; write {name}=METRIC.")
        tasks[name or file] = _Task(Path(file), [Path(x) for x in references.get(name, [])], listed)
    return tasks


def _by_name(texts: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        # A path may hold "=", too.
        if not equals or "/" in name or Path(text).exists():
            name, file = "", text
        found.setdefault(name, []).append(file)
    return found


def _measure(
    examples: Examples, names: list[str], options: Evaluate, given: MetricOptions
) -> dict[str, Any]:
    used = {option for name in names for option in metrics.KNOWN[name].options}
    given = MetricOptions(**{name: getattr(given, name) for name in used})
    measured = metrics.measure(names, examples.predictions, examples.references, given)
    found: dict[str, Any] = {}
    for name, metric in measured.items():
        found[name] = {"score": _defined(metric.score)}
        if options.bootstrap:
            ends = metrics.interval(
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
    errors = {x for task in tasks.values() for x in task.metrics if metrics.KNOWN[x].is_error}
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
