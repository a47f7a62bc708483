"""Spikes against a running mean that is computed by hand."""

import jax.numpy as jnp
import numpy as np

from t5jax.training.step import init_norms, should_apply


def test_judge_skips_gradients_far_above_the_mean_of_the_sound_ones():
    before = init_norms()
    norms = [float("nan"), 9.0, *[1.0, 3.0] * 40, 30.0, 6.0, float("inf")]
    found, mean, count = [], 0.0, 0
    for norm in norms:
        expected = np.isfinite(norm) and (count < 50 or norm <= 5 * mean)
        sound, before = should_apply(before, jnp.float32(1), jnp.float32(norm), 5.0)
        assert bool(sound) == expected
        if expected:
            mean += max(1 / (count + 1), 0.02) * (norm - mean)
            count += 1
        np.testing.assert_allclose(before.mean, mean, rtol=1e-5)
        assert before.num_steps == count
        found.append(bool(sound))
    assert found == [False, *[True] * 81, False, True, False]


def test_judge_without_norms_looks_at_what_is_finite():
    for norm, total, expected in ((1e30, 1.0, True), (1.0, np.nan, False), (np.inf, 1.0, False)):
        sound, none = should_apply(None, jnp.float32(total), jnp.float32(norm), None)
        assert bool(sound) == expected
        assert none is None
