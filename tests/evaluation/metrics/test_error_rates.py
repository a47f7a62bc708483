import functools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from t5jax.evaluation.metrics.error_rates import (
    character_error_rate,
    edit_distance,
    phoneme_error_rate,
    pronunciation_error_rate,
    word_error_rate,
)


def by_recursion(a, b):
    @functools.cache
    def distance(i, j):
        if not i or not j:
            return i + j
        return min(
            distance(i - 1, j) + 1,
            distance(i, j - 1) + 1,
            distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]),
        )

    return distance(len(a), len(b))


@settings(deadline=None)
@given(st.text("abc", max_size=12), st.text("abcd", max_size=12))
def test_edit_distance_equals_its_recursive_definition(a, b):
    assert edit_distance(a, b) == by_recursion(a, b)
    assert edit_distance(list(a), list(b)) == edit_distance(b, a)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [("kitten", "sitting", 3), ("", "", 0), ("", "abc", 3), ("flaw", "lawn", 2), ("世界", "世", 1)],
)
def test_edit_distance_by_example(a, b, expected):
    assert edit_distance(a, b) == expected


def test_edit_distance_takes_long_sequences():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 9, 3000).tolist()
    assert edit_distance(a, [7, *a[:1000], *a[1003:], 8]) == 5


def test_word_error_rate_sums_before_it_divides():
    found = word_error_rate(["a b c", "x y z u"], ["a c", "x"])
    assert found.rows.tolist() == [[1, 2], [3, 1]]
    assert found.score == pytest.approx(400 / 3)


def test_word_error_rate_takes_the_nearest_reference_and_its_length():
    found = word_error_rate(["a b", "a b"], [["x y z", "a"], ["a", "a b c", "q"]])
    assert found.rows.tolist() == [[1, 1], [1, 3]]
    assert np.isnan(word_error_rate(["a"], [""]).score)


def test_character_error_rate_counts_one_space_for_several():
    found = character_error_rate(["ab  cd\n"], ["ab ce"])
    assert found.rows.tolist() == [[1, 5]]


def test_phoneme_errors_as_papers_count_them():
    """READ has two pronunciations: the second is met exactly, and 3 phonemes are its length."""
    predictions = ["R EH D", "K AE", "D AO  G", ""]
    pronunciations = [["R IY D", "R EH D"], ["K AE T"], ["D AO G", "D AA G"], ["AH", "EY"]]
    per = phoneme_error_rate(predictions, pronunciations)
    assert per.rows.tolist() == [[0, 3], [1, 3], [0, 3], [1, 1]]
    assert per.score == pytest.approx(20)
    words = pronunciation_error_rate(predictions, pronunciations)
    assert words.rows[:, 0].tolist() == [0, 1, 0, 1]
    assert words.score == 50
