"""Choices of the next token against argmax and the exact distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from t5jax.decoding.loop import greedy
from t5jax.decoding.sampling import sampler

LOGITS = np.array([2.0, -1.0, 0.5, 1.9, -30.0], np.float32)
ROWS = 20_000


def test_greedy_takes_the_highest_and_of_equals_the_lowest_id():
    logits = jnp.array([[0.0, 3.0, 1.0], [2.0, -1.0, 2.0], [-5.0, -5.0, -5.0], [-jnp.inf, 0, 0]])
    assert greedy(logits, jnp.int32(0)).tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_sampler_draws_from_softmax_of_logits_over_temperature(temperature):
    keys = jax.random.split(jax.random.key(0), ROWS)
    sample = sampler(keys, temperature=jnp.float32(temperature))
    drawn = sample(jnp.broadcast_to(LOGITS, (ROWS, 5)), jnp.int32(0))
    assert drawn.shape == (ROWS,)
    weights = np.exp(LOGITS.astype(np.float64) / temperature)
    expected = ROWS * weights / weights.sum()
    found = np.bincount(np.asarray(drawn), minlength=5)
    # Counts of the rare last token, up to 4 expected, are no good for chi-square.
    statistic = ((found - expected) ** 2 / expected)[:4].sum()
    assert statistic < scipy.stats.chi2.ppf(1 - 1e-6, 3)
    assert found[4] < 20


def test_sampler_near_zero_is_greedy():
    logits = np.random.default_rng(0).normal(size=(50, 11)).astype(np.float32)
    sample = sampler(jax.random.split(jax.random.key(0), 50), temperature=jnp.float32(1e-4))
    np.testing.assert_array_equal(sample(jnp.asarray(logits), jnp.int32(3)), logits.argmax(-1))


def test_sampler_draws_anew_at_every_position_and_for_every_row():
    keys = jax.random.split(jax.random.key(1), ROWS)
    sample = sampler(keys, temperature=jnp.float32(1.0))
    flat = jnp.zeros((ROWS, 4))
    first, again, next_ = (np.asarray(sample(flat, jnp.int32(p))) for p in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    # Independent draws from four tokens agree a quarter of the time, +- 6 standard deviations.
    sigma = (0.25 * 0.75 / ROWS) ** 0.5
    assert abs((first == next_).mean() - 0.25) < 6 * sigma
    assert abs((first[1:] == first[:-1]).mean() - 0.25) < 6 * sigma


def test_sampler_gives_a_row_the_same_whatever_its_neighbours():
    keys = jax.random.split(jax.random.key(2), 6)
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(6, 50)).astype(np.float32))
    whole = sampler(keys, temperature=jnp.float32(1.0))(logits, jnp.int32(2))
    order = jnp.array([4, 0, 5])
    some = sampler(keys[order], temperature=jnp.float32(1.0))(logits[order], jnp.int32(2))
    np.testing.assert_array_equal(some, whole[order])


def test_sampler_never_draws_what_is_impossible():
    keys = jax.random.split(jax.random.key(3), 500)
    logits = jnp.broadcast_to(jnp.array([0.0, -jnp.inf, 0.0]), (500, 3))
    drawn = sampler(keys, temperature=jnp.float32(1.0))(logits, jnp.int32(0))
    assert set(np.asarray(drawn).tolist()) == {0, 2}
