import math

import pytest

from t5jax.evaluation.metrics.bootstrap import bootstrap_interval
from t5jax.evaluation.metrics.error_rates import word_error_rate
from t5jax.evaluation.metrics.matching import squad_f1
from t5jax.evaluation.metrics.registry import (
    METRICS,
    MetricOptions,
    check_metrics,
    compute_metrics,
    mean_score,
)

PREDICTIONS = ["1", "0", "1", "1"]
REFERENCES = ["1", "1", "1", "0"]
NEEDS_NO_LIBRARY = [x for x in METRICS if not x.startswith(("bleu", "chrf", "rouge"))]


def test_measure_gives_metrics_in_the_order_of_their_names():
    found = compute_metrics(["wer", "squad_f1"], ["a b", "c"], [["a"], ["c", "d"]])
    assert list(found) == ["wer", "squad_f1"]
    assert found["wer"].score == word_error_rate(["a b", "c"], [["a"], ["c", "d"]]).score
    assert found["squad_f1"].score == squad_f1(["a b", "c"], [["a"], ["c", "d"]]).score


@pytest.mark.parametrize("name", METRICS)
def test_measure_of_what_is_right_is_perfect_and_of_draws_is_near(name):
    if name not in NEEDS_NO_LIBRARY:
        pytest.importorskip("rouge_score" if name.startswith("rouge") else "sacrebleu")
    options = MetricOptions(positive="1") if name == "f1" else None
    texts = PREDICTIONS if name in NEEDS_NO_LIBRARY else [f"{x} a b c d" for x in PREDICTIONS]
    right = compute_metrics([name], texts, texts, options)[name]
    assert right.score == pytest.approx(0 if METRICS[name].is_error else 100, rel=1e-12)
    wrong = compute_metrics([name], PREDICTIONS, REFERENCES, options)[name]
    assert (wrong.score > 0) if METRICS[name].is_error else (wrong.score < 100)
    low, high = bootstrap_interval(wrong, resamples=50)
    assert low <= wrong.score + 1e-9 <= high + 2e-9


def test_measure_passes_options_on():
    pytest.importorskip("sacrebleu")
    lower = MetricOptions(lowercase=True, tokenize="none")
    found = compute_metrics(["bleu", "chrf"], ["A B C D"], ["a b c d"], lower)
    assert (found["bleu"].score, found["chrf"].score) == (pytest.approx(100), 100)
    assert "case:lc" in found["bleu"].detail
    assert "tok:none" in found["bleu"].detail


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], MetricOptions(), "metrics must be some of exact_match, .*, got none"),
        (
            ["rouge-l"],
            MetricOptions(),
            "unknown metric 'rouge-l', metrics are .* spearman.*; did you mean 'rouge",
        ),
        (["BLEU"], MetricOptions(), "did you mean 'bleu'"),
        (["wer"], MetricOptions(lowercase=True), r"lowercase must go with one of bleu, .* got wer"),
        (["f1"], MetricOptions(), "f1 must have .* positive"),
    ],
)
def test_check_refuses_unknown_names_and_idle_options(names, options, message):
    with pytest.raises(ValueError, match=message):
        check_metrics(names, options)


def test_mean_score_is_the_mean_over_tasks_of_their_means():
    """By hand: one is (30 + 50) / 2 = 40, two 100 - 20 = 80, three 0, four (100 - 130 + 60) / 2."""
    scores = {
        "one": {"bleu": 30.0, "chrf": 50.0},
        "two": {"wer": 20.0},
        "three": {"f1": math.nan},
        "four": {"cer": 130.0, "accuracy": 60.0},
    }
    assert mean_score(scores) == pytest.approx((40 + 80 + 0 + 15) / 4)
    assert mean_score({"two": scores["two"]}) == 80


@pytest.mark.parametrize("scores", [{}, {"one": {"wer": 1.0}, "two": {}}])
def test_mean_score_refuses_tasks_without_scores(scores):
    with pytest.raises(ValueError, match="scores must have a task"):
        mean_score(scores)
