"""Options of generation: each has an effect or is refused."""

import pytest

from t5jax.generation.config import Strategy


def test_default_strategy_is_greedy():
    assert Strategy().num_beams == 1
    assert Strategy().draws == {}


def test_draws_are_the_options_that_are_on():
    strategy = Strategy(temperature=0.7, top_p=0.9, seed=3)
    assert strategy.draws == {"temperature": 0.7, "top_p": 0.9, "seed": 3}
    assert Strategy(num_beams=4, length_penalty=0.6).draws == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be at least 0, got -1.0; 0 is greedy"),
        ({"temperature": float("nan")}, "temperature must be at least 0, got nan"),
        ({"seed": -1}, "seed must be in"),
        ({"num_beams": 2, "length_penalty": float("inf")}, "length_penalty must be between"),
        ({"num_beams": 2, "penalty_form": "log"}, "penalty_form must be 'power' or 'gnmt'"),
        ({"num_beams": 2, "early_stopping": "soon"}, "early_stopping must be True, False or"),
        ({"temperature": 1.0, "top_k": 0}, "top_k must be at least 1, got 0; None is all"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"temperature": 1.0, "typical_p": 1.1}, r"typical_p must be in \(0, 1\], got 1.1"),
        ({"temperature": 1.0, "min_p": -0.1}, r"min_p must be in \[0, 1\], got -0.1"),
        ({"num_beams": 2, "temperature": 1.0}, "temperature must be 0 with beams"),
        ({"top_k": 5}, "top_k must come with a temperature above 0"),
        ({"num_beams": 2, "min_p": 0.5}, "min_p must come with a temperature above 0"),
        ({"length_penalty": 0.6}, "length_penalty must come with num_beams above 1"),
        ({"penalty_form": "gnmt"}, "penalty_form must come with num_beams above 1"),
        ({"early_stopping": "never"}, "early_stopping must come with num_beams above 1"),
    ],
)
def test_strategy_refuses_what_is_wrong_or_without_effect(own_checks, options, message):
    with pytest.raises(ValueError, match=message):
        Strategy(**options)
