import pytest

from t5jax.evaluation.metrics.references import pair_references, pair_single_reference


def test_pair_takes_one_or_several_references():
    found = pair_references(["a", "b"], ["x", ("y", "z")])
    assert found == [("a", ["x"]), ("b", ["y", "z"])]


def test_pair_single_takes_exactly_one_and_strips():
    assert pair_single_reference([" a\n"], [["x "]]) == [("a", "x")]
    with pytest.raises(ValueError, match="one reference for each example, got 2 for example 1"):
        pair_single_reference(["a", "b"], ["x", ["y", "z"]])


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], ["x", "y"], "must have the same length, got 1 and 2"),
        ([], [], "at least one example, got none"),
        (["a", "b"], ["x", []], r"references\[1\] must hold at least one text"),
        ("a", "x", "must be lists of texts"),
    ],
)
def test_pair_refuses_what_does_not_match(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        pair_references(predictions, references)
