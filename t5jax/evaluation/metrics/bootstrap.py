"""A metric as what it counts in each example, so that examples can be drawn anew."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class MetricResult:
    """A metric over some examples."""

    rows: Int[np.ndarray, "n k"] | Float[np.ndarray, "n k"]
    """What was counted in each example."""
    combine: Callable[[np.ndarray], float]
    """The metric of any such rows."""
    detail: str = ""
    """How it was computed, as the library that did writes it."""

    @functools.cached_property
    def score(self) -> float:
        """The metric; NaN where it is undefined, such as a correlation with a constant."""
        return float(self.combine(self.rows))


class Interval(NamedTuple):
    """What a metric would be for other examples of the same kind, but for rare ones."""

    low: float
    high: float


def mean_percent(values: np.ndarray) -> MetricResult:
    """The mean over examples of numbers from 0 to 1, in percent."""
    return MetricResult(np.asarray(values, np.float64)[:, None], _mean_percent)


def ratio_percent(counts: np.ndarray, totals: np.ndarray) -> MetricResult:
    """The sum of counts over the sum of totals, in percent."""
    return MetricResult(np.stack([counts, totals], axis=1), _ratio_percent)


def bootstrap_interval(
    measured: MetricResult, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Finds the percentile bootstrap interval: examples are drawn anew, with replacement.

    Metrics of equally many examples get the same draws from the same seed.  Draws in which the
    metric is undefined are left out.  (Efron and Tibshirani 1993, section 13.3)

    Args:
      measured: a metric over n examples.
      resamples: how often n examples are drawn, at least 1.
      seed: of the draws.
      level: share of draws inside the interval, in (0, 1).
    Returns:
      its ends, in the unit of the metric; NaN if it is undefined in all draws.
    Raises:
      ValueError: an argument is outside its range.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}; 1000 is usual.")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}; 0.95 is usual.")
    rng = np.random.default_rng(seed)
    count = len(measured.rows)
    scores = np.array(
        [measured.combine(measured.rows[rng.integers(count, size=count)]) for _ in range(resamples)]
    )
    defined = scores[~np.isnan(scores)]
    if not len(defined):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _mean_percent(rows: np.ndarray) -> float:
    return 100 * float(rows.mean())


def _ratio_percent(rows: np.ndarray) -> float:
    counted, total = rows.sum(axis=0)
    return 100 * float(counted) / float(total) if total else float("nan")
