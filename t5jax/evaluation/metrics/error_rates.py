"""Error rates: how many insertions, deletions and substitutions a prediction is away."""

from collections.abc import Callable, Sequence

import numpy as np

from t5jax.evaluation.metrics import bootstrap
from t5jax.evaluation.metrics.bootstrap import MetricResult
from t5jax.evaluation.metrics.references import References, pair_references


def edit_distance(a: Sequence[object], b: Sequence[object]) -> int:
    """The least number of insertions, deletions and substitutions that make `a` into `b`.

    Row by row of the table of prefixes' distances; within a row, an insertion costs 1 more than
    the entry before it, so a running minimum of (entry - column) does all of a row's at once.
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
    """Edits of words over words of the reference, summed, in percent; it can exceed 100.

    White space separates words; case and punctuation count.  Of several references, the nearest
    counts.
    """
    return _error_rate(predictions, references, str.split)


def character_error_rate(predictions: Sequence[str], references: References) -> MetricResult:
    """Edits of characters over characters of the reference, summed, in percent.

    Runs of white space are one space.  Of several references, the nearest counts.
    """
    return _error_rate(predictions, references, lambda text: list(" ".join(text.split())))


def phoneme_error_rate(predictions: Sequence[str], references: References) -> MetricResult:
    """Edits of phonemes over phonemes of the nearest pronunciation, summed, in percent.

    White space separates phonemes.  Of several pronunciations that are equally near, the longest
    counts.
    """
    return _error_rate(predictions, references, str.split)


def pronunciation_error_rate(predictions: Sequence[str], references: References) -> MetricResult:
    """Percent of words whose phonemes equal those of none of their pronunciations.

    This is the word error rate of papers on grapheme-to-phoneme conversion.
    """
    pairs = pair_references(predictions, references)
    return bootstrap.mean_percent(
        np.array([p.split() not in [text.split() for text in texts] for p, texts in pairs])
    )


def _error_rate(
    predictions: Sequence[str], references: References, split: Callable[[str], list[str]]
) -> MetricResult:
    found = []
    for prediction, texts in pair_references(predictions, references):
        parts = split(prediction)
        counts = [(edit_distance(parts, wanted), len(wanted)) for wanted in map(split, texts)]
        found.append(min(counts, key=lambda x: (x[0], -x[1])))
    edits, lengths = np.array(found).T
    return bootstrap.ratio_percent(edits, lengths)
