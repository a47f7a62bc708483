import numpy as np
import pytest

from t5jax.evaluation.metrics.bootstrap import bootstrap_interval, mean_percent, ratio_percent


def test_interval_of_a_mean_is_that_of_the_normal_distribution():
    """2000 draws put a quantile at 2.5 % to within 0.35 points (one standard deviation), which is
    0.06 standard errors of the mean; the normal approximation of 400 values is far better."""
    values = np.random.default_rng(0).uniform(size=400)
    low, high = bootstrap_interval(mean_percent(values), resamples=2000, seed=3)
    error = 100 * values.std() / np.sqrt(400)
    assert low == pytest.approx(100 * values.mean() - 1.96 * error, abs=0.25 * error)
    assert high == pytest.approx(100 * values.mean() + 1.96 * error, abs=0.25 * error)


def test_interval_of_a_share_covers_the_truth_as_often_as_it_says():
    """400 samples of 100; 95 % less what such a sample's discreteness costs, 3 deviations wide."""
    rng = np.random.default_rng(1)
    covered = 0
    for i in range(400):
        sample = mean_percent(rng.random(100) < 0.3)
        low, high = bootstrap_interval(sample, resamples=200, seed=i)
        covered += low <= 30 <= high
    assert 0.90 <= covered / 400 <= 0.98


def test_interval_of_a_ratio_is_that_of_its_linear_approximation():
    rng = np.random.default_rng(2)
    totals = rng.integers(5, 30, 500)
    counts = rng.binomial(totals, 0.2)
    low, high = bootstrap_interval(ratio_percent(counts, totals), resamples=2000)
    rate = counts.sum() / totals.sum()
    error = 100 * np.sqrt(((counts - rate * totals) ** 2).sum()) / totals.sum()
    assert low == pytest.approx(100 * rate - 1.96 * error, abs=0.25 * error)
    assert high == pytest.approx(100 * rate + 1.96 * error, abs=0.25 * error)


def test_interval_is_the_same_for_the_same_seed_and_wider_for_a_higher_level():
    measured = mean_percent(np.random.default_rng(0).random(51))
    first = bootstrap_interval(measured, resamples=300, seed=1)
    assert bootstrap_interval(measured, resamples=300, seed=1) == first
    assert bootstrap_interval(measured, resamples=300, seed=2) != first
    wide = bootstrap_interval(measured, resamples=300, seed=1, level=0.99)
    assert wide.low < first.low < measured.score < first.high < wide.high


def test_interval_leaves_out_draws_without_a_value():
    measured = ratio_percent(np.array([1, 0]), np.array([1, 0]))
    assert bootstrap_interval(measured, resamples=100) == (100, 100)
    nothing = ratio_percent(np.array([0, 0]), np.array([0, 0]))
    assert np.isnan([nothing.score, *bootstrap_interval(nothing, resamples=10)]).all()


def test_interval_of_one_example_is_a_point():
    assert bootstrap_interval(mean_percent(np.array([0.25])), resamples=5) == (25, 25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"resamples": 0}, "resamples must be at least 1"), ({"level": 1.0}, "level must be in")],
)
def test_interval_refuses_what_is_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(mean_percent(np.ones(3)), **arguments)
