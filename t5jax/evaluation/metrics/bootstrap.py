"""Metric results with per-example statistics, and their bootstrap intervals."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from t5jax.errors import check_at_least


@dataclasses.dataclass(frozen=True)
class MetricResult:
    """A metric over a set of examples, recomputable for any resample of them.

    Attributes:
      rows: [n, k] sufficient statistics of each example, such as counts.
      combine: function from the rows of any number of examples to the metric.
      detail: signature of the library that computed the metric; states its settings.

    Examples:
      >>> metrics = t5jax.evaluation.metrics
      >>> result = metrics.compute_metrics(["exact_match"], ["a", "b"], ["a", "c"])["exact_match"]
      >>> result.score, result.combine(result.rows[:1])
      (50.0, 100.0)
    """

    rows: Int[np.ndarray, "n k"] | Float[np.ndarray, "n k"]
    combine: Callable[[np.ndarray], float]
    detail: str = ""

    @functools.cached_property
    def score(self) -> float:
        """Metric over all examples; NaN if undefined, such as a correlation with a constant."""
        return float(self.combine(self.rows))


class Interval(NamedTuple):
    """Confidence interval, in the unit of its metric."""

    low: float
    high: float


def mean_percent(values: np.ndarray) -> MetricResult:
    """Return the mean over examples of numbers in [0, 1], in percent."""
    return MetricResult(np.asarray(values, np.float64)[:, None], _mean_percent)


def ratio_percent(counts: np.ndarray, totals: np.ndarray) -> MetricResult:
    """Return the sum of counts divided by the sum of totals, in percent."""
    return MetricResult(np.stack([counts, totals], axis=1), _ratio_percent)


def bootstrap_interval(
    result: MetricResult, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Compute a percentile bootstrap interval.

    Examples are resampled with replacement.  The same seed gives the same resamples for metrics
    with the same number of examples.  Resamples with an undefined metric are ignored.
    (Efron and Tibshirani 1993, section 13.3)

    Args:
      result: a metric over n examples.
      resamples: number of resamples of n examples, at least 1.
      seed: random seed for resampling.
      level: confidence level, in (0, 1).
    Returns:
      The ends of the interval, in the unit of the metric; NaN if the metric is undefined in every
      resample.
    Raises:
      ValueError: an argument is outside its range.

    Examples:
      >>> metrics = t5jax.evaluation.metrics
      >>> texts = ["a", "b", "c", "d"]
      >>> result = metrics.compute_metrics(["exact_match"], texts, texts)["exact_match"]
      >>> metrics.bootstrap_interval(result, resamples=100)
      Interval(low=100.0, high=100.0)
    """
    check_at_least(1, "1000 is usual", resamples=resamples)
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}; 0.95 is usual.")
    rng = np.random.default_rng(seed)
    count = len(result.rows)
    scores = np.array(
        [result.combine(result.rows[rng.integers(count, size=count)]) for _ in range(resamples)]
    )
    defined = scores[~np.isnan(scores)]
    if not len(defined):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _mean_percent(rows: np.ndarray) -> float:
    return 100 * float(rows.mean())


def _ratio_percent(rows: np.ndarray) -> float:
    count, total = rows.sum(axis=0)
    return 100 * float(count) / float(total) if total else float("nan")
