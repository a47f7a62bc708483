import pytest

from t5jax.errors import check_at_least, suggest


def test_hint_asks_for_the_most_similar_name():
    assert suggest("bluer", ["chrf", "bleu", "blue"], "") == "did you mean 'blue'?"


def test_hint_is_otherwise_where_none_is_similar():
    assert suggest("xyz", ["chrf", "bleu"], "use chrf or bleu.") == "use chrf or bleu."


def test_hint_takes_names_for_similar_above_the_cutoff():
    assert suggest("abcd", ["abyz"], "none", cutoff=0.5) == "did you mean 'abyz'?"
    assert suggest("abcd", ["abyz"], "none", cutoff=0.6) == "none"


def test_check_at_least_takes_the_minimum_and_what_is_not_set():
    check_at_least(1, steps=1, batch_size=None, rate=1.5)
    check_at_least(0)


@pytest.mark.parametrize("value", [0, -1, 0.5, float("nan")])
def test_check_at_least_names_the_option_and_its_value(value):
    with pytest.raises(ValueError, match=f"steps must be at least 1, got {value}; 100 is usual."):
        check_at_least(1, "100 is usual", batch_size=2, steps=value)
