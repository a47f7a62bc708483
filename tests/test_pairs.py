import pytest

from t5jax.metrics import pairs


def test_pair_takes_one_or_several_references():
    found = pairs.pair(["a", "b"], ["x", ("y", "z")])
    assert found == [("a", ["x"]), ("b", ["y", "z"])]


def test_pair_single_takes_exactly_one_and_strips():
    assert pairs.pair_single([" a\n"], [["x "]]) == [("a", "x")]
    with pytest.raises(ValueError, match="one reference for each example, got 2 for example 1"):
        pairs.pair_single(["a", "b"], ["x", ["y", "z"]])


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], ["x", "y"], "must be as many, got 1 and 2"),
        ([], [], "at least one example, got none"),
        (["a", "b"], ["x", []], r"references\[1\] must hold at least one text"),
        ("a", "x", "must be lists of texts"),
    ],
)
def test_pair_refuses_what_does_not_match(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        pairs.pair(predictions, references)
