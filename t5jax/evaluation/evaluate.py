"""Evaluation of prediction files, for one or more tasks."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from t5jax.errors import check_at_least
from t5jax.evaluation.metrics import (
    MetricOptions,
    MetricResult,
    bootstrap_interval,
    check_metrics,
    compute_metrics,
    mean_score,
)
from t5jax.evaluation.predictions import read_predictions
from t5jax.fileio import JsonObject

_LEVEL = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalTask:
    """Files and metrics of a task.

    Attributes:
      predictions: predictions file, in a format of `read_predictions`.
      references: reference files, each covering every prediction; empty if the predictions are a
        .jsonl file that includes them.
      metrics: names of metrics, keys of `METRICS`.
      options: options for metrics that take any.
      keyed: whether to read files with other suffixes as .tsv.

    Examples:
      >>> from pathlib import Path
      >>> task = t5jax.evaluation.EvalTask(predictions=Path("run.jsonl"), metrics=["bleu", "chrf"])
      >>> task.options.tokenize
      '13a'
    """

    predictions: Path
    references: Sequence[Path] = ()
    metrics: Sequence[str]
    options: MetricOptions = MetricOptions()
    keyed: bool = False


def evaluate_files(
    tasks: Mapping[str, EvalTask], *, bootstrap: int = 0, seed: int = 0
) -> JsonObject:
    """Compute the metrics of predictions in files.

    Args:
      tasks: tasks by name.
      bootstrap: number of bootstrap resamples for 95 % intervals; 0 disables them.
      seed: random seed for resampling.
    Returns:
      A JSON-serializable dict.  "tasks": name -> {"examples", "references", "metrics": name ->
      {"score", "interval", "detail"}}, where None is an undefined score or interval end;
      "average": the `mean_score`, if there are several tasks; "bootstrap": number of resamples,
      seed and level, if there are intervals.
    Raises:
      ValueError: predictions and references do not match, a metric or option is invalid, or a
        library is missing.
      OSError: a file cannot be read.

    Examples:
      >>> from pathlib import Path
      >>> _ = Path("run.jsonl").write_text('{"prediction": "a cat", "references": ["a dog"]}')
      >>> task = t5jax.evaluation.EvalTask(predictions=Path("run.jsonl"), metrics=["wer"])
      >>> t5jax.evaluation.evaluate_files({"captions": task})["tasks"]["captions"]["metrics"]
      {'wer': {'score': 50.0}}
    """
    check_at_least(0, bootstrap=bootstrap, seed=seed)
    for task in tasks.values():
        check_metrics(task.metrics, task.options)
    # Read all files first, so that an unreadable one fails before anything is computed.
    examples = {
        name: read_predictions(task.predictions, task.references, keyed=task.keyed)
        for name, task in tasks.items()
    }
    reports: JsonObject = {}
    scores: dict[str, dict[str, float]] = {}
    for name, task in tasks.items():
        predictions, references = examples[name]
        results = compute_metrics(task.metrics, predictions, references, task.options)
        scores[name] = {metric: result.score for metric, result in results.items()}
        reports[name] = {
            "examples": len(predictions),
            "references": sum(map(len, references)),
            "metrics": {
                metric: _report(result, bootstrap, seed) for metric, result in results.items()
            },
        }
    report: JsonObject = {"tasks": reports}
    if len(tasks) > 1:
        report["average"] = mean_score(scores)
    if bootstrap:
        report["bootstrap"] = {"resamples": bootstrap, "seed": seed, "level": _LEVEL}
    return report


def _report(result: MetricResult, bootstrap: int, seed: int) -> JsonObject:
    report: JsonObject = {"score": _none_if_nan(result.score)}
    if bootstrap:
        interval = bootstrap_interval(result, resamples=bootstrap, seed=seed, level=_LEVEL)
        report["interval"] = [_none_if_nan(end) for end in interval]
    if result.detail:
        report["detail"] = result.detail
    return report


def _none_if_nan(value: float) -> float | None:
    # JSON has no NaN.
    return None if math.isnan(value) else value
