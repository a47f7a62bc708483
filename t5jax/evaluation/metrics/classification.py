"""Classification metrics: classes predicted as text, or chosen by score."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from t5jax.evaluation.metrics import bootstrap
from t5jax.evaluation.metrics.bootstrap import MetricResult
from t5jax.evaluation.metrics.references import References, pair_single_reference


def accuracy(predictions: Sequence[str], references: References) -> MetricResult:
    """Compute the percentage of correctly predicted classes.

    Leading and trailing white space is ignored.

    Args:
      predictions: one class per example, as text.
      references: one class per prediction.
    """
    pairs = pair_single_reference(predictions, references)
    return bootstrap.mean_percent(np.array([predicted == right for predicted, right in pairs]))


def f1(predictions: Sequence[str], references: References, *, positive: str) -> MetricResult:
    """Compute the F1 score of one class, in percent; 0 if it is never predicted correctly.

    Args:
      predictions: one class per example, as text; any other text counts as the negative class.
      references: one class per prediction.
      positive: the positive class.
    Returns:
      The score.
    Raises:
      ValueError: `positive` is neither in the predictions nor in the references.
    """
    pairs = pair_single_reference(predictions, references)
    rows = np.array([[x == positive for x in both] for both in pairs])
    if not rows.any():
        raise ValueError(
            f"positive must be a class in the data, got {positive!r}; classes are "
            f"{', '.join(sorted({right for _, right in pairs})[:5])}."
        )

    def combine(rows: np.ndarray) -> float:
        total = rows.sum()
        return 200 * float(rows.all(axis=1).sum() / total) if total else float("nan")

    return MetricResult(rows.astype(np.int64), combine)


def matthews(predictions: Sequence[str], references: References) -> MetricResult:
    """Compute the Matthews correlation of any number of classes, in percent.

    It is 0 if the predictions or the references are constant.
    (Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006)

    Args:
      predictions: one class per example, as text.
      references: one class per prediction.
    """
    pairs = pair_single_reference(predictions, references)
    numbers = {label: i for i, label in enumerate(sorted({x for both in pairs for x in both}))}
    rows = np.array([[numbers[x] for x in both] for both in pairs])

    def combine(rows: np.ndarray) -> float:
        count, (predicted, right) = len(rows), rows.T
        counts = [np.bincount(x, minlength=len(numbers)).astype(float) for x in (predicted, right)]
        covariance = float((predicted == right).sum()) * count - counts[0] @ counts[1]
        spreads = [count**2 - x @ x for x in counts]
        return 100 * float(covariance / np.sqrt(spreads[0] * spreads[1])) if all(spreads) else 0.0

    return MetricResult(rows, combine)


def best_choices(scores: Sequence[np.ndarray] | np.ndarray) -> Int[np.ndarray, "n"]:
    """Return the highest-scoring choice of each example; ties go to the first.

    Args:
      scores: scores of each example's choices, as returned by `Text2Text.score_candidates`; the
        number of choices may differ between examples.
    Returns:
      [n] int64, positions of the choices, from 0.
    Raises:
      ValueError: an example has no choices, or a score is NaN.
    """
    for i, row in enumerate(scores):
        if np.ndim(row) != 1 or not len(row) or np.isnan(row).any():
            raise ValueError(f"scores[{i}] must be a list of numbers, got {row!r:.60}.")
    return np.array([int(np.argmax(row)) for row in scores], np.int64)


def choice_accuracy(
    scores: Sequence[np.ndarray] | np.ndarray, answers: Sequence[int]
) -> MetricResult:
    """Compute the accuracy of rank classification, in percent (arXiv:2110.08207, section 5).

    An example is correct if its highest-scoring choice is the right one.

    Args:
      scores: scores of each example's choices, as taken by `best_choices`.
      answers: positions of the right choices, from 0.
    Returns:
      The accuracy.
    Raises:
      ValueError: the lengths differ or are 0, an answer is not one of the choices, an example has
        no choices, or a score is NaN.

    Examples:
      >>> choice_accuracy([np.array([-3.1, -0.2]), np.array([-1.0, -4.0])], [1, 1]).score
      50.0
    """
    if len(scores) != len(answers) or not len(scores):
        raise ValueError(
            f"scores and answers must have the same length, at least 1, got {len(scores)} and "
            f"{len(answers)}."
        )
    for i, (row, answer) in enumerate(zip(scores, answers, strict=True)):
        if not 0 <= answer < len(row):
            raise ValueError(
                f"answers[{i}] must be one of {len(row)} choices, from 0, got {answer}."
            )
    return bootstrap.mean_percent(best_choices(scores) == np.array(answers))
