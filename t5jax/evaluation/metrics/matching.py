"""Match metrics: predictions compared with references as a whole or token by token."""

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

    Leading and trailing white space is ignored.
    """
    pairs = pair_references(predictions, references)
    return bootstrap.mean_percent(
        np.array([p.strip() in [text.strip() for text in texts] for p, texts in pairs])
    )


def sequence_accuracy(predictions: Sequence[str], references: References) -> MetricResult:
    """Compute the percentage of predictions with the same tokens as a reference.

    Tokens are split at white space.
    """
    pairs = pair_references(predictions, references)
    return bootstrap.mean_percent(
        np.array([p.split() in [text.split() for text in texts] for p, texts in pairs])
    )


def token_accuracy(predictions: Sequence[str], references: References) -> MetricResult:
    """Compute the percentage of reference tokens predicted at the same position.

    Tokens are split at white space.  With several references, the one with the highest accuracy is
    used; ties go to the longest.
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
      Percentage of correct targets, and of rows whose targets are all correct; rows without
      targets are ignored.

    Examples:
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
    """Normalize a text as SQuAD does (arXiv:1606.05250, section 6.1).

    In this order: lowercase, drop ASCII punctuation, drop the articles a, an and the, and collapse
    white space.  So "a-" is an article and "a.b" is not.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def squad_exact_match(predictions: Sequence[str], references: References) -> MetricResult:
    """Compute the percentage of predictions that equal a reference after `normalize_answer`."""
    pairs = pair_references(predictions, references)
    return bootstrap.mean_percent(
        np.array([normalize_answer(p) in map(normalize_answer, texts) for p, texts in pairs])
    )


def squad_f1(predictions: Sequence[str], references: References) -> MetricResult:
    """Compute the word F1 after `normalize_answer`, averaged over examples, in percent.

    With several references, the best one counts.  Two empty normalized texts match, as in SQuAD
    2.0.
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
