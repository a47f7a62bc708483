"""Correlations of predicted numbers, and perplexity."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from t5jax.evaluation.metrics.bootstrap import MetricResult
from t5jax.evaluation.metrics.references import References, pair_single_reference

# google-research's T5 scores text that is no number as this.
_NO_NUMBER = -1.0


def pearson(predictions: Sequence[str], references: References) -> MetricResult:
    """Compute the Pearson correlation, in percent; NaN if either side is constant.

    Args:
      predictions: one number per example, as text; any other text counts as -1, as in T5.
      references: one number per prediction, as text.
    Returns:
      The correlation.
    Raises:
      ValueError: a reference is not a finite number, or an example has several references.
    """
    return _correlation(predictions, references, _pearson)


def spearman(predictions: Sequence[str], references: References) -> MetricResult:
    """Compute the Spearman rank correlation, in percent; NaN if either side is constant.

    Ties get their mean rank.

    Args:
      predictions: one number per example, as text; any other text counts as -1, as in T5.
      references: one number per prediction, as text.
    Returns:
      The correlation.
    Raises:
      ValueError: a reference is not a finite number, or an example has several references.
    """
    return _correlation(predictions, references, _spearman)


def perplexity(
    log_probs: Float[np.ndarray, "n"], token_counts: Int[np.ndarray, "n"]
) -> MetricResult:
    """Compute the perplexity: exp of the mean negative log-probability per token.

    The mean is over the tokens of all examples, so long examples weigh more.

    Args:
      log_probs: [n] log-probability of each target, in nats, as returned by `Text2Text.score`.
      token_counts: [n] number of tokens in each target, EOS included.
    Returns:
      The perplexity, at least 1.
    Raises:
      ValueError: the lengths differ or are 0, a log-probability is positive or NaN, or a count is
        below 1.

    Examples:
      >>> log_probs = np.log([1 / 4, 1 / 16])
      >>> round(t5jax.evaluation.metrics.perplexity(log_probs, np.array([1, 2])).score, 2)
      4.0
    """
    if len(log_probs) != len(token_counts) or not len(log_probs):
        raise ValueError(
            f"log_probs and token_counts must have the same length, at least 1, got "
            f"{len(log_probs)} and {len(token_counts)}."
        )
    if not np.all(log_probs <= 0):
        raise ValueError(f"log_probs must be at most 0, got {log_probs!r:.60}.")
    if not np.all(token_counts >= 1):
        raise ValueError(f"token_counts must be at least 1, got {token_counts!r:.60}.")

    def combine(rows: np.ndarray) -> float:
        total, count = rows.sum(axis=0)
        return float(np.exp(-total / count))

    return MetricResult(np.stack([log_probs, token_counts], axis=1).astype(np.float64), combine)


def _pearson(rows: Float[np.ndarray, "n 2"]) -> float:
    from scipy import stats

    if _has_constant_column(rows):
        return float("nan")
    result: Any = stats.pearsonr(rows[:, 0], rows[:, 1])
    return 100 * float(result.statistic)


def _spearman(rows: Float[np.ndarray, "n 2"]) -> float:
    from scipy import stats

    if _has_constant_column(rows):
        return float("nan")
    result: Any = stats.spearmanr(rows)
    return 100 * float(result.statistic)


def _has_constant_column(rows: Float[np.ndarray, "n 2"]) -> bool:
    # scipy warns about a constant, in every bootstrap resample, and rejects a single row.
    return bool((rows == rows[0]).all(axis=0).any())


def _correlation(
    predictions: Sequence[str], references: References, combine: Callable[[np.ndarray], float]
) -> MetricResult:
    pairs = pair_single_reference(predictions, references)
    rows = np.array([[_to_float(text) for text in pair] for pair in pairs])
    wrong = np.flatnonzero(~np.isfinite(rows[:, 1]))
    if len(wrong):
        raise ValueError(
            f"each reference must be a number, got {pairs[wrong[0]][1]!r:.60} for example "
            f"{wrong[0]} ({len(wrong)} non-numbers in all)."
        )
    bad = ~np.isfinite(rows[:, 0])
    rows[bad, 0] = _NO_NUMBER
    detail = f"{bad.sum()} of {len(bad)} predictions are no numbers and count as {_NO_NUMBER:g}"
    return MetricResult(rows, combine, detail if bad.any() else "")


def _to_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
