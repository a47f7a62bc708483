"""Schedules against the closed forms they are named after."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5jax.optim.schedules import ScheduleConfig, learning_rate_schedule

# Rates are a handful of float32 operations: a few roundings of 6e-8 each. float32 pi loses more
# near the end of a cosine, where the rate itself is small: hence the absolute part.
TOLERANCE = {"rtol": 1e-6, "atol": 1e-9}


def rates(config, steps, *, total_steps):
    """Rates at `steps`, as a jitted update sees them: the step is a traced int32."""
    rate = jax.jit(jax.vmap(learning_rate_schedule(config, total_steps=total_steps)))
    return np.asarray(rate(jnp.asarray(steps, jnp.int32)))


def test_rsqrt_is_flat_then_falls_as_t5_pretrained():
    config = ScheduleConfig(name="rsqrt", learning_rate=1.0, warmup_steps=10_000)
    got = rates(config, [0, 1, 9_999, 10_000, 40_000, 1_000_000], total_steps=5)
    np.testing.assert_allclose(got, [0.01, 0.01, 0.01, 0.01, 0.005, 0.001], **TOLERANCE)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_ramp_moves_at_once_and_peaks_at_its_last_step(name):
    config = ScheduleConfig(name=name, learning_rate=0.02, warmup_steps=8)
    got = rates(config, range(8), total_steps=100)
    np.testing.assert_allclose(got, [0.02 * k / 8 for k in range(1, 9)], **TOLERANCE)


@pytest.mark.parametrize("warmup", [0, 1])
def test_ramp_of_at_most_one_step_starts_at_the_peak(warmup):
    config = ScheduleConfig(name="linear", learning_rate=0.02, warmup_steps=warmup)
    got = rates(config, [0, warmup, warmup + 5, warmup + 10], total_steps=warmup + 10)
    np.testing.assert_allclose(got, [0.02, 0.02, 0.01, 0.0], **TOLERANCE)


def test_constant_stays_at_the_peak():
    config = ScheduleConfig(name="constant", learning_rate=0.001, warmup_steps=4)
    np.testing.assert_allclose(
        rates(config, [3, 4, 5, 10**6], total_steps=7), [0.001] * 4, **TOLERANCE
    )


def test_linear_falls_in_equal_steps_to_its_final_rate():
    config = ScheduleConfig(name="linear", learning_rate=0.4, warmup_steps=10, final_fraction=0.25)
    got = rates(config, [10, 20, 30, 49, 50, 51, 999], total_steps=50)
    expected = [0.4, 0.325, 0.25, 0.1 + 0.3 / 40, 0.1, 0.1, 0.1]
    np.testing.assert_allclose(got, expected, **TOLERANCE)


def test_cosine_follows_half_a_period_to_its_final_rate():
    config = ScheduleConfig(name="cosine", learning_rate=0.4, warmup_steps=10, final_fraction=0.25)
    got = rates(config, [10, 17, 20, 30, 50, 51, 999], total_steps=50)
    expected = [0.1 + 0.3 * (1 + math.cos(math.pi * t / 40)) / 2 for t in (0, 7, 10, 20)] + [
        0.1
    ] * 3
    np.testing.assert_allclose(got, expected, **TOLERANCE)


@pytest.mark.parametrize("name", ["rsqrt", "constant", "linear", "cosine"])
@pytest.mark.parametrize("step", [3, np.int64(3), np.float32(3)])
def test_rate_is_a_float32_scalar_for_any_kind_of_step(name, step):
    config = ScheduleConfig(name=name, learning_rate=0.1, warmup_steps=2)
    rate = learning_rate_schedule(config, total_steps=10)(step)
    assert rate.shape == ()
    assert rate.dtype == jnp.float32


@pytest.mark.parametrize("name", ["rsqrt", "constant", "linear", "cosine"])
def test_spans_run_says_whether_total_steps_changes_the_rate(name):
    config = ScheduleConfig(name=name, learning_rate=0.1, warmup_steps=2)
    short, long = (rates(config, range(20), total_steps=n) for n in (10, 20))
    assert config.spans_run == (not np.array_equal(short, long))


@pytest.mark.parametrize(
    ("name", "base", "warmup"),
    [("rsqrt", 1.0, 10_000), ("constant", 0.001, 0), ("cosine", 0.02, 30)],
)
def test_peak_is_the_highest_rate(name, base, warmup):
    config = ScheduleConfig(name=name, learning_rate=base, warmup_steps=warmup)
    highest = rates(config, range(100), total_steps=100).max()
    np.testing.assert_allclose(config.peak, highest, **TOLERANCE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps must be >= 0 for linear, got -1"),
        ({"name": "rsqrt", "warmup_steps": 0}, "warmup_steps must be >= 1 for rsqrt, got 0"),
        ({"learning_rate": 0.0}, r"must be in \(0, 1\), got 0 from learning_rate=0.0"),
        ({"learning_rate": 1.0}, r"must be in \(0, 1\), got 1 from learning_rate=1.0"),
        ({"learning_rate": math.nan}, r"must be in \(0, 1\), got nan"),
        ({"final_fraction": 1.5}, r"final_fraction must be in \[0, 1\], got 1.5"),
        ({"name": "rsqrt", "final_fraction": 0.1}, "final_fraction must be left out for rsqrt"),
        ({"name": "constant", "final_fraction": 0.1}, "must be left out for constant, got 0.1"),
    ],
)
def test_config_refuses(options, message):
    valid = {"name": "linear", "learning_rate": 0.1, "warmup_steps": 5}
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**(valid | options))


def test_config_refuses_an_unknown_name():
    config = ScheduleConfig(name="linear", learning_rate=0.1, warmup_steps=5)
    object.__setattr__(config, "name", "cosin")  # run-time type checks would refuse it before us
    message = "name must be one of rsqrt, constant, linear, cosine, got 'cosin'; T5 pre-trains"
    with pytest.raises(ValueError, match=message):
        config.__post_init__()


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_learning_rate_refuses_a_run_within_its_warmup(name):
    config = ScheduleConfig(name=name, learning_rate=0.1, warmup_steps=5)
    with pytest.raises(ValueError, match=f"more than warmup_steps=5 for {name}, got 5"):
        learning_rate_schedule(config, total_steps=5)
