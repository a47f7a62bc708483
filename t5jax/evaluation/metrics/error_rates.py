"""Error rates: edits between predictions and references, in percent of the references."""

from collections.abc import Callable, Sequence

import numpy as np

from t5jax.evaluation.metrics import bootstrap
from t5jax.evaluation.metrics.bootstrap import MetricResult
from t5jax.evaluation.metrics.references import References, pair_references


def edit_distance(a: Sequence[object], b: Sequence[object]) -> int:
    """Compute the Levenshtein distance: insertions, deletions and substitutions from `a` to `b`.

    The table of prefixes' distances is filled row by row; within a row, an insertion costs 1 more
    than the entry before it, so a running minimum of (entry - column) does a whole row at once.
    (Levenshtein 1966)
    """
    numbers: dict[object, int] = {}
    first, second = (
        np.array([numbers.setdefault(x, len(numbers)) for x in items], np.int64) for items in (a, b)
    )
    columns = np.arange(len(second) + 1)
    row = columns
    for i, item in enumerate(first, start=1):
        following = np.empty_like(row)
        following[0] = i
        np.minimum(row[1:] + 1, row[:-1] + (second != item), out=following[1:])
        row = np.minimum.accumulate(following - columns) + columns
    return int(row[-1])


def word_error_rate(predictions: Sequence[str], references: References) -> MetricResult:
    """Compute the word error rate: edits over words of the references, in percent.

    It can exceed 100.  White space separates words; case and punctuation count.  Of several
    references, the nearest counts.
    """
    return _error_rate(predictions, references, str.split)


def character_error_rate(predictions: Sequence[str], references: References) -> MetricResult:
    """Compute the character error rate: edits over characters of the references, in percent.

    Runs of white space are one space.  Of several references, the nearest counts.
    """
    return _error_rate(predictions, references, lambda text: list(" ".join(text.split())))


def phoneme_error_rate(predictions: Sequence[str], references: References) -> MetricResult:
    """Compute the phoneme error rate: edits over phonemes of the references, in percent.

    White space separates phonemes.  Of several pronunciations, the nearest counts, and of equally
    near ones the longest.
    """
    return _error_rate(predictions, references, str.split)


def pronunciation_error_rate(predictions: Sequence[str], references: References) -> MetricResult:
    """Compute the percentage of words whose phonemes equal none of their pronunciations.

    This is the word error rate of papers on grapheme-to-phoneme conversion.
    """
    pairs = pair_references(predictions, references)
    return bootstrap.mean_percent(
        np.array([p.split() not in [text.split() for text in texts] for p, texts in pairs])
    )


def _error_rate(
    predictions: Sequence[str], references: References, split: Callable[[str], list[str]]
) -> MetricResult:
    rows = []
    for prediction, texts in pair_references(predictions, references):
        tokens = split(prediction)
        counts = [(edit_distance(tokens, target), len(target)) for target in map(split, texts)]
        rows.append(min(counts, key=lambda x: (x[0], -x[1])))
    edits, lengths = np.array(rows).T
    return bootstrap.ratio_percent(edits, lengths)
