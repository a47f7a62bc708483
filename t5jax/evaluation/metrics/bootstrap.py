"""Metrics as statistics of each example, and bootstrap intervals of them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from t5jax.errors import check_at_least


@dataclasses.dataclass(frozen=True)
class MetricResult:
    """A metric over a set of examples, which can be computed for any resample of them.

    Attributes:
      rows: Sufficient statistics of each of n examples, such as counts.
      combine: Function from such rows, of any number of examples, to the metric.
      detail: Signature of the library that computed it, to compare it with others' numbers.
    """

    rows: Int[np.ndarray, "n k"] | Float[np.ndarray, "n k"]
    combine: Callable[[np.ndarray], float]
    detail: str = ""

    @functools.cached_property
    def score(self) -> float:
        """The metric of all examples; NaN if undefined, such as a correlation with a constant."""
        return float(self.combine(self.rows))


class Interval(NamedTuple):
    """A confidence interval, in the unit of its metric."""

    low: float
    high: float


def mean_percent(values: np.ndarray) -> MetricResult:
    """Make a metric of the mean over examples of numbers in [0, 1], in percent."""
    return MetricResult(np.asarray(values, np.float64)[:, None], _mean_percent)


def ratio_percent(counts: np.ndarray, totals: np.ndarray) -> MetricResult:
    """Make a metric of the sum of counts over the sum of totals, in percent."""
    return MetricResult(np.stack([counts, totals], axis=1), _ratio_percent)


def bootstrap_interval(
    result: MetricResult, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Compute a percentile bootstrap interval.

    Examples are drawn with replacement.  Metrics of the same number of examples get the same draws
    from the same seed.  Draws in which the metric is undefined are left out.
    (Efron and Tibshirani 1993, section 13.3)

    Args:
      result: a metric over n examples.
      resamples: number of draws of n examples each, at least 1.
      seed: random seed.
      level: share of draws inside the interval, in (0, 1).
    Returns:
      The interval's ends, in the unit of the metric; NaN if it is undefined in all draws.
    Raises:
      ValueError: an argument is outside its range.
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
