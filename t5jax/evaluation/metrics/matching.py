"""Metrics of predictions that equal their references, as a whole or token by token."""

import collections
import re
import string
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from t5jax.evaluation.metrics import bootstrap
from t5jax.evaluation.metrics.bootstrap import MetricResult
from t5jax.evaluation.metrics.references import References, pair_references

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def exact_match(predictions: Sequence[str], references: References) -> MetricResult:
    """Compute the percentage of predictions that equal a reference.

    White space at either end does not count.
    """
    pairs = pair_references(predictions, references)
    return bootstrap.mean_percent(
        np.array([p.strip() in [text.strip() for text in texts] for p, texts in pairs])
    )


def sequence_accuracy(predictions: Sequence[str], references: References) -> MetricResult:
    """Compute the percentage of predictions with the same tokens as a reference.

    White space separates tokens.
    """
    pairs = pair_references(predictions, references)
    return bootstrap.mean_percent(
        np.array([p.split() in [text.split() for text in texts] for p, texts in pairs])
    )


def token_accuracy(predictions: Sequence[str], references: References) -> MetricResult:
    """Compute the percentage of reference tokens at the same position in the prediction.

    White space separates tokens.  Of several references, the one with the largest share counts,
    and of equal ones the longest.
    """
    rows = []
    for prediction, texts in pair_references(predictions, references):
        tokens = prediction.split()
        counts = [
            (sum(x == y for x, y in zip(tokens, target, strict=False)), len(target))
            for target in (text.split() for text in texts)
        ]
        rows.append(max(counts, key=lambda x: (x[0] / max(x[1], 1), x[1])))
    correct, totals = np.array(rows).T
    return bootstrap.ratio_percent(correct, totals)


def id_accuracy(
    predictions: Int[np.ndarray, "B T"],
    targets: Int[np.ndarray, "B T"],
    mask: Bool[np.ndarray, "B T"],
) -> tuple[MetricResult, MetricResult]:
    """Compute the token accuracy and the sequence accuracy of ids.

    Args:
      predictions: [B, T] most likely ids.
      targets: [B, T] correct ids.
      mask: [B, T] bool, True where a target counts.
    Returns:
      Percentage of targets that are predicted, and of rows with targets whose targets all are.

    Example:
      >>> ids, targets = np.array([[5, 6, 1]]), np.array([[5, 7, 1]])
      >>> tokens, sequences = id_accuracy(ids, targets, np.ones((1, 3), bool))
      >>> round(tokens.score, 1), sequences.score
      (66.7, 0.0)
    """
    correct = ((predictions == targets) & mask).sum(axis=1)
    totals = mask.sum(axis=1)
    has_targets = totals > 0
    all_correct = (correct == totals) & has_targets
    return bootstrap.ratio_percent(correct, totals), bootstrap.ratio_percent(
        all_correct.astype(int), has_targets.astype(int)
    )


def normalize_answer(text: str) -> str:
    """Normalize a text as SQuAD does.  (arXiv:1606.05250, section 6.1)

    Lower-case it, drop ASCII punctuation, then the articles a, an and the, then extra white space.
    In this order, so that "a-" is an article and "a.b" is not.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def squad_exact_match(predictions: Sequence[str], references: References) -> MetricResult:
    """Compute the percentage of predictions that equal a reference after `normalize_answer`."""
    pairs = pair_references(predictions, references)
    return bootstrap.mean_percent(
        np.array([normalize_answer(p) in map(normalize_answer, texts) for p, texts in pairs])
    )


def squad_f1(predictions: Sequence[str], references: References) -> MetricResult:
    """Compute the mean over examples of the F1 score of words after `normalize_answer`.

    The best reference counts.  Two texts that are empty then are equal, as in SQuAD 2.0.
    """
    pairs = pair_references(predictions, references)
    return bootstrap.mean_percent(
        np.array([max(_word_f1(prediction, text) for text in texts) for prediction, texts in pairs])
    )


def _word_f1(prediction: str, reference: str) -> float:
    words, target = (normalize_answer(text).split() for text in (prediction, reference))
    if not words or not target:
        return float(words == target)
    common = (collections.Counter(words) & collections.Counter(target)).total()
    return 2 * common / (len(words) + len(target))
