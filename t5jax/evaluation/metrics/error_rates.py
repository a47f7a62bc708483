"""Error rates: edit distance from predictions to references, in percent of reference length."""

from collections.abc import Callable, Sequence

import numpy as np

from t5jax.evaluation.metrics import bootstrap
from t5jax.evaluation.metrics.bootstrap import MetricResult
from t5jax.evaluation.metrics.references import References, pair_references


def edit_distance(a: Sequence[object], b: Sequence[object]) -> int:
    """Compute the Levenshtein distance: insertions, deletions and substitutions from `a` to `b`.

    The table of prefix distances is filled row by row.  Within a row, an insertion costs 1 more
    than the previous entry, so a running minimum of (entry - column) fills the whole row.
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
    """Compute the word error rate: word edits per reference word, in percent.

    It can exceed 100.  Words are split at white space; case and punctuation count.  With several
    references, the closest one is used.
    """
    return _error_rate(predictions, references, str.split)


def character_error_rate(predictions: Sequence[str], references: References) -> MetricResult:
    """Compute the character error rate: character edits per reference character, in percent.

    Runs of white space count as one space.  With several references, the closest one is used.
    """
    return _error_rate(predictions, references, lambda text: list(" ".join(text.split())))


def phoneme_error_rate(predictions: Sequence[str], references: References) -> MetricResult:
    """Compute the phoneme error rate: phoneme edits per reference phoneme, in percent.

    Phonemes are split at white space.  With several pronunciations, the closest one is used; ties
    go to the longest.
    """
    return _error_rate(predictions, references, str.split)


def pronunciation_error_rate(predictions: Sequence[str], references: References) -> MetricResult:
    """Compute the percentage of words whose prediction matches none of their pronunciations.

    Papers on grapheme-to-phoneme conversion call this the word error rate.
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
