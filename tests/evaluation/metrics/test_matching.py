import string

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from t5jax.evaluation.metrics.matching import (
    exact_match,
    id_accuracy,
    normalize_answer,
    sequence_accuracy,
    squad_exact_match,
    squad_f1,
    token_accuracy,
)

PIECES = "the a an The cat cat's don't dog naïve Ünï — « , ... a. an- theatre U.S. 42 $3.50 (the) _"
PIECES = [*PIECES.split(), "世界", "", "\u00a0", "\t"]
EDGES = [
    ("", [""]),
    ("", ["cat"]),
    ("cat", [""]),
    ("the", ["a", "dog"]),
    ("...", ["", "x"]),
    ("a", ["."]),
    ("cat cat", ["cat", "cat cat cat"]),
    ("THE CAT", ["cat"]),
    ("a-b", ["ab"]),
    ("thea", ["the a"]),
]


def cases():
    rng = np.random.default_rng(0)

    def text():
        return " ".join(rng.choice(PIECES, rng.integers(0, 6)))

    drawn = [(text(), [text() for _ in range(rng.integers(1, 4))]) for _ in range(100)]
    return EDGES + drawn


def squad_by_hand(prediction, references):
    """(EM, F1) with the multiset intersection counted by striking words off a list."""

    def normalized(text):
        kept = [c for c in text.lower() if c not in string.punctuation]
        found, i = [], 0
        while i < len(kept):
            j = i
            while j < len(kept) and (kept[j].isalnum() or kept[j] == "_"):
                j += 1
            word = "".join(kept[i:j])
            if word:
                found.append(" " if word in ("a", "an", "the") else word)
                i = j
            else:
                found.append(kept[i])
                i += 1
        return "".join(found).split()

    best_em, best_f1 = 0, 0.0
    for reference in references:
        p, r = normalized(prediction), normalized(reference)
        best_em = max(best_em, int(" ".join(p) == " ".join(r)))
        left, same = list(r), 0
        for word in p:
            if word in left:
                left.remove(word)
                same += 1
        if not p and not r:
            f1 = 1.0
        elif same == 0:
            f1 = 0.0
        else:
            precision, recall = same / len(p), same / len(r)
            f1 = 2 * precision * recall / (precision + recall)
        best_f1 = max(best_f1, f1)
    return best_em, best_f1


def test_squad_equals_an_implementation_by_hand():
    predictions, references = zip(*cases(), strict=True)
    expected = np.array([squad_by_hand(*case) for case in cases()])
    em = squad_exact_match(predictions, references)
    f1 = squad_f1(predictions, references)
    np.testing.assert_array_equal(em.rows[:, 0], expected[:, 0])
    # Harmonic means, computed in two ways.
    np.testing.assert_allclose(f1.rows[:, 0], expected[:, 1], rtol=1e-14)
    assert 0 < em.score < f1.score < 100
    assert em.score == pytest.approx(100 * expected[:, 0].mean(), rel=1e-14)


@settings(deadline=None)
@given(st.text(), st.text())
def test_squad_f1_is_symmetric_and_1_for_what_matches_exactly(a, b):
    f1 = squad_f1([a], [b]).score
    assert f1 == squad_f1([b], [a]).score
    assert 0 <= f1 <= 100
    assert squad_f1([a], [a]).score == 100
    if squad_exact_match([a], [b]).score:
        assert f1 == 100


def test_normalize_answer_by_example():
    assert normalize_answer("  The U.S.  Army's\tan A-team, a") == "us armys ateam"
    assert normalize_answer("a-") == ""
    assert normalize_answer("Ça, the thé") == "ça thé"


def test_exact_match_counts_any_reference_and_ignores_the_ends():
    found = exact_match(["a b", " a\n", "A", ""], [["x", "a b"], "a", "a", ""])
    assert found.rows[:, 0].tolist() == [1, 1, 0, 1]
    assert found.score == 75


def test_sequence_accuracy_counts_tokens_and_not_spaces():
    found = sequence_accuracy(["a  b", "ab", ""], ["a b", "a b", [" "]])
    assert found.rows[:, 0].tolist() == [1, 0, 1]


def test_token_accuracy_counts_places_of_the_reference():
    predictions = ["a b c", "b a", "", "a b c d", "x a"]
    references = ["a x c", "a b", "a", "a b", ["x", "x b c", "x a"]]
    found = token_accuracy(predictions, references)
    assert found.rows.tolist() == [[2, 3], [0, 2], [0, 1], [2, 2], [2, 2]]
    assert found.score == 60
    assert np.isnan(token_accuracy(["a"], [""]).score)


def test_id_accuracy_counts_unmasked_targets():
    predictions = np.array([[1, 2, 3], [4, 5, 0], [7, 8, 9]])
    targets = np.array([[1, 2, 4], [4, 5, 6], [7, 8, 9]])
    mask = np.array([[True, True, True], [True, True, False], [True, True, True]])
    tokens, sequences = id_accuracy(predictions, targets, mask)
    assert tokens.score == pytest.approx(100 * 7 / 8)
    assert sequences.score == pytest.approx(100 * 2 / 3)


def test_id_accuracy_does_not_count_rows_without_targets():
    mask = np.array([[True, True], [False, False], [True, False]])
    ids = np.array([[1, 2], [3, 4], [5, 6]])
    tokens, sequences = id_accuracy(ids, np.array([[1, 0], [3, 4], [5, 0]]), mask)
    assert (tokens.score, sequences.score) == (pytest.approx(100 * 2 / 3), 50)
    assert np.isnan(id_accuracy(ids, ids, np.zeros_like(mask))[1].score)
