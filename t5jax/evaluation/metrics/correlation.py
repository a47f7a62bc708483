"""Predicted numbers, and probabilities."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from t5jax.evaluation.metrics.bootstrap import MetricResult
from t5jax.evaluation.metrics.references import References, pair_single_reference


def pearson(predictions: Sequence[str], references: References) -> MetricResult:
    """Pearson correlation of numbers, in percent; NaN if one side is constant.

    Raises:
      ValueError: a text is not a finite number.
    """
    return MetricResult(_numbers(predictions, references), _correlation)


def spearman(predictions: Sequence[str], references: References) -> MetricResult:
    """Pearson correlation of ranks, in percent; equal numbers share the mean of their ranks.

    Raises:
      ValueError: a text is not a finite number.
    """

    def combine(rows: np.ndarray) -> float:
        return _correlation(np.stack([ranks(column) for column in rows.T], axis=1))

    return MetricResult(_numbers(predictions, references), combine)


def ranks(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Ranks from 1, the smallest first; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def perplexity(
    log_probs: Float[np.ndarray, "n"], token_counts: Int[np.ndarray, "n"]
) -> MetricResult:
    """exp of the mean negative log-probability of a token, over all tokens of all examples.

    Args:
      log_probs: of each example's target as a whole, in nats, such as `Text2Text.score` returns.
      token_counts: tokens that they are of, EOS included.
    Raises:
      ValueError: they are not as many, a log-probability is above 0 or NaN, or a count below 1.
    """
    if len(log_probs) != len(token_counts):
        raise ValueError(
            f"log_probs and token_counts must be as many, got {len(log_probs)} and "
            f"{len(token_counts)}."
        )
    if not len(log_probs) or not np.all(log_probs <= 0):
        raise ValueError(f"log_probs must be at most 0, and some, got {log_probs!r:.60}.")
    if not np.all(token_counts >= 1):
        raise ValueError(f"token_counts must be at least 1, got {token_counts!r:.60}.")

    def combine(rows: np.ndarray) -> float:
        total, count = rows.sum(axis=0)
        return float(np.exp(-total / count))

    return MetricResult(np.stack([log_probs, token_counts], axis=1).astype(np.float64), combine)


def _numbers(predictions: Sequence[str], references: References) -> np.ndarray:
    pairs = pair_single_reference(predictions, references)
    columns = zip(*pairs, strict=True)
    found = [
        _parse(name, texts)
        for name, texts in zip(("prediction", "reference"), columns, strict=True)
    ]
    return np.stack(found, axis=1)


def _parse(name: str, texts: Sequence[str]) -> np.ndarray:
    values = np.array([_number(text) for text in texts])
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise ValueError(
            f"each {name} must be a number, got {texts[wrong[0]]!r:.60} for example {wrong[0]} and "
            f"{len(wrong)} such in all."
        )
    return values


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _correlation(rows: np.ndarray) -> float:
    # A constant column minus its mean can leave dust, so equality is asked for itself.
    if (rows == rows[0]).all(axis=0).any():
        return float("nan")
    x, y = (rows - rows.mean(axis=0)).T
    return 100 * float(x @ y / np.sqrt((x @ x) * (y @ y)))
