"""How often, and in how many words, predictions are the same as references."""

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
    """Percent of predictions that equal a reference, but for white space at either end."""
    pairs = pair_references(predictions, references)
    return bootstrap.mean_percent(
        np.array([p.strip() in [text.strip() for text in texts] for p, texts in pairs])
    )


def sequence_accuracy(predictions: Sequence[str], references: References) -> MetricResult:
    """Percent of predictions with the same tokens, which white space separates, as a reference."""
    pairs = pair_references(predictions, references)
    return bootstrap.mean_percent(
        np.array([p.split() in [text.split() for text in texts] for p, texts in pairs])
    )


def token_accuracy(predictions: Sequence[str], references: References) -> MetricResult:
    """Percent of reference tokens that stand in the same place of the prediction.

    White space separates tokens.  Of several references, that with the largest share counts, and
    of these the longest.
    """
    found = []
    for prediction, texts in pair_references(predictions, references):
        tokens = prediction.split()
        counts = [
            (sum(x == y for x, y in zip(tokens, wanted, strict=False)), len(wanted))
            for wanted in (text.split() for text in texts)
        ]
        found.append(max(counts, key=lambda x: (x[0] / max(x[1], 1), x[1])))
    right, total = np.array(found).T
    return bootstrap.ratio_percent(right, total)


def id_accuracy(
    predictions: Int[np.ndarray, "B T"],
    targets: Int[np.ndarray, "B T"],
    mask: Bool[np.ndarray, "B T"],
) -> tuple[MetricResult, MetricResult]:
    """Token accuracy and sequence accuracy of ids.

    Args:
      predictions: likeliest ids.
      targets: right ids.
      mask: True where a target counts.
    Returns:
      percent of targets that are right, and of rows with targets whose targets are all right.
    """
    right = ((predictions == targets) & mask).sum(axis=1)
    totals = mask.sum(axis=1)
    counted = totals > 0
    whole = (right == totals) & counted
    return bootstrap.ratio_percent(right, totals), bootstrap.ratio_percent(
        whole.astype(int), counted.astype(int)
    )


def normalize_answer(text: str) -> str:
    """Drops what SQuAD does not count: case, ASCII punctuation, a, an, the, and white space.

    In this order, so that "a-" is an article and "a.b" is not.  (arXiv:1606.05250, section 6.1)
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def squad_exact_match(predictions: Sequence[str], references: References) -> MetricResult:
    """Percent of predictions that equal a reference after `normalize_answer`."""
    pairs = pair_references(predictions, references)
    return bootstrap.mean_percent(
        np.array([normalize_answer(p) in map(normalize_answer, texts) for p, texts in pairs])
    )


def squad_f1(predictions: Sequence[str], references: References) -> MetricResult:
    """Mean over examples of the F1 of words after `normalize_answer`, the best reference's.

    Two texts of which nothing is left are the same, as in SQuAD 2.0.
    """
    pairs = pair_references(predictions, references)
    return bootstrap.mean_percent(
        np.array([max(_word_f1(prediction, text) for text in texts) for prediction, texts in pairs])
    )


def _word_f1(prediction: str, reference: str) -> float:
    words, wanted = (normalize_answer(text).split() for text in (prediction, reference))
    if not words or not wanted:
        return float(words == wanted)
    same = (collections.Counter(words) & collections.Counter(wanted)).total()
    return 2 * same / (len(words) + len(wanted))
