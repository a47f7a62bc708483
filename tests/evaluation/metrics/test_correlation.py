import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from t5jax.evaluation.metrics.bootstrap import bootstrap_interval
from t5jax.evaluation.metrics.correlation import pearson, perplexity, spearman


def draw(decimals, seed=0, count=60):
    """Correlated numbers; few decimals make ties."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=count)
    y = x + rng.normal(size=count)
    return [[f"{v:.{decimals}f}" for v in each] for each in (x, y)]


def mean_ranks(values):
    """Ranks from 1, of equal values the mean of theirs, by counting."""
    return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]


@pytest.mark.parametrize("decimals", [0, 6])
def test_correlations_are_those_of_their_definitions(decimals):
    predicted, right = draw(decimals)
    x, y = np.array(predicted, float), np.array(right, float)
    # Sums of 60 products in another order.
    expected = 100 * np.corrcoef(x, y)[0, 1]
    assert pearson(predicted, right).score == pytest.approx(expected, rel=1e-12)
    expected = 100 * np.corrcoef(mean_ranks(x), mean_ranks(y))[0, 1]
    assert spearman(predicted, right).score == pytest.approx(expected, rel=1e-12)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=20))
def test_spearman_is_the_correlation_of_mean_ranks(pairs):
    x, y = zip(*pairs, strict=True)
    found = spearman([str(v) for v in x], [str(v) for v in y]).score
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert np.isnan(found)
    else:
        # Of a correlation near 0, rounding errors of 20 products of ranks are what is left.
        expected = 100 * np.corrcoef(mean_ranks(x), mean_ranks(y))[0, 1]
        assert found == pytest.approx(expected, rel=1e-10, abs=1e-10)


def test_correlation_with_a_constant_is_undefined(recwarn):
    assert np.isnan(pearson(["0.1", "0.1", "0.1"], ["1", "2", "3"]).score)
    assert np.isnan(spearman(["1", "2", "3"], ["7", "7", "7"]).score)
    assert np.isnan(pearson(["1"], ["2"]).score)
    assert not recwarn.list


def test_spearman_of_a_draw_ranks_it_anew():
    predicted, right = draw(6)
    measured = spearman(predicted, right)
    rows = measured.rows[np.random.default_rng(0).integers(60, size=60)]
    expected = 100 * np.corrcoef(mean_ranks(rows[:, 0]), mean_ranks(rows[:, 1]))[0, 1]
    assert measured.combine(rows) == pytest.approx(expected, rel=1e-12)
    low, high = bootstrap_interval(measured, resamples=50)
    assert low < measured.score < high


def test_predictions_that_are_no_numbers_count_as_minus_one():
    # google-research's T5: string_to_float(default=-1), scored by numpy.
    rng = np.random.default_rng(0)
    gold = np.round(rng.uniform(0, 5, 100), 1)
    said = np.round(np.clip(gold + rng.normal(0, 0.3, 100), 0, 5), 1)
    texts = [str(x) for x in said]
    for place, text in ((7, "entailment"), (40, ""), (41, "nan"), (42, "inf")):
        texts[place], said[place] = text, -1
    result = pearson(texts, [str(x) for x in gold])
    assert result.score == pytest.approx(100 * np.corrcoef(said, gold)[0, 1])
    assert result.detail == "4 of 100 predictions are no numbers and count as -1"
    assert pearson(["1", "2"], ["2", "1"]).detail == ""


def test_pearson_refuses_references_that_are_no_numbers():
    with pytest.raises(ValueError, match="each reference must be a number, got '' for example 0"):
        pearson(["1", "2"], ["", "2"])


def test_perplexity_weighs_tokens_and_not_examples():
    uniform = perplexity(np.log(1 / 8) * np.array([3.0, 1.0]), np.array([3, 1]))
    assert uniform.score == pytest.approx(8, rel=1e-14)
    found = perplexity(np.array([-1.0, -6.0]), np.array([1, 3]))
    assert found.score == pytest.approx(np.exp(7 / 4), rel=1e-14)


def test_perplexity_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="log_probs must be at most 0"):
        perplexity(np.array([0.5]), np.array([1]))
    with pytest.raises(ValueError, match="token_counts must be at least 1"):
        perplexity(np.array([-0.5]), np.array([0]))


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize("count", [1, 3])
def test_perplexity_refuses_lengths_that_differ(count):
    with pytest.raises(ValueError, match=f"must have the same length, .* got 2 and {count}"):
        perplexity(np.array([-0.5, -1.0]), np.ones(count, np.int32))
