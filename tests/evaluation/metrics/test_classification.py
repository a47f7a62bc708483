import numpy as np
import pytest

from t5jax.evaluation.metrics.classification import (
    accuracy,
    best_choices,
    choice_accuracy,
    f1,
    matthews,
)


def draw(classes, count=101, seed=0):
    rng = np.random.default_rng(seed)
    right = rng.choice(classes, count).tolist()
    predicted = [x if rng.random() < 0.6 else str(rng.choice(classes)) for x in right]
    return predicted, right


def test_accuracy_strips_and_keeps_case():
    found = accuracy([" yes", "Yes", "no", "perhaps"], ["yes", "yes", ["no"], "no"])
    assert found.rows[:, 0].tolist() == [1, 0, 1, 0]


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    predicted, right = draw(["yes", "no", "perhaps"])
    hits = sum(p == r == "yes" for p, r in zip(predicted, right, strict=True))
    precision, recall = hits / predicted.count("yes"), hits / right.count("yes")
    expected = 200 * precision * recall / (precision + recall)
    found = f1(predicted, right, positive="yes")
    assert found.score == pytest.approx(expected, rel=1e-14)


def test_f1_is_0_without_hits_and_refuses_a_class_that_is_nowhere():
    assert f1(["a", "b"], ["b", "a"], positive="a").score == 0
    with pytest.raises(ValueError, match="got 'c'; classes are a, b"):
        f1(["a", "b"], ["b", "a"], positive="c")
    assert np.isnan(f1(["a", "b"], ["a", "b"], positive="a").combine(np.zeros((3, 2))))


def test_matthews_of_two_classes_is_the_textbook_s():
    predicted, right = draw(["1", "0"])
    pairs = list(zip(predicted, right, strict=True))
    tp, tn, fp, fn = (pairs.count(x) for x in [("1", "1"), ("0", "0"), ("1", "0"), ("0", "1")])
    expected = (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert matthews(predicted, right).score == pytest.approx(100 * expected, rel=1e-12)


def test_matthews_of_several_classes_is_the_correlation_of_indicators():
    predicted, right = draw(["a", "b", "c", "d"])
    predicted[0] = "a class that is never right"
    classes = sorted({*predicted, *right})
    x, y = (
        np.array([[t == c for c in classes] for t in each], float) for each in (predicted, right)
    )
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    expected = (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())
    assert matthews(predicted, right).score == pytest.approx(100 * expected, rel=1e-12)


def test_matthews_is_0_for_a_constant_and_100_for_what_is_right():
    assert matthews(["a", "a", "a"], ["a", "b", "a"]).score == 0
    assert matthews(["a", "b", "a"], ["a", "b", "a"]).score == 100
    assert matthews(["b", "a", "b"], ["a", "b", "a"]).score == -100


def test_choose_takes_the_first_of_the_best_and_rows_of_any_length():
    scores = [np.array([-3.0, -1.0, -1.0]), np.array([-5.0]), np.array([-np.inf, -2.0])]
    assert best_choices(scores).tolist() == [1, 0, 1]
    assert best_choices(np.array([[0.0, 1.0], [3.0, 2.0]])).tolist() == [1, 0]


@pytest.mark.parametrize("row", [np.array([]), np.array([0.0, np.nan])])
def test_choose_refuses_rows_without_a_best(row):
    with pytest.raises(ValueError, match=r"scores\[1\] must be a list of numbers"):
        best_choices([np.array([1.0]), row])


def test_choice_accuracy_counts_right_choices():
    scores = [np.array([-3.0, -1.0]), np.array([-5.0, -7.0, -6.0]), np.array([-1.0, -2.0])]
    assert choice_accuracy(scores, [1, 0, 1]).score == pytest.approx(200 / 3)
    with pytest.raises(ValueError, match=r"answers\[1\] must be one of 3 choices, from 0, got 3"):
        choice_accuracy(scores, [1, 3, 1])
    with pytest.raises(ValueError, match=r"same length, .* got 3 and 1"):
        choice_accuracy(scores, [1])
