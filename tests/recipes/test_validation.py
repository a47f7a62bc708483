"""Scores of trials; what a model writes for them is in test_finetuning.py."""

import json
import math

import pytest

from t5jax.data.tasks import Example, Task
from t5jax.recipes.validation import EvalSplit


def make(**changes):
    task = Task(name="x", train=[], validation=[], **changes)
    return EvalSplit(
        task, "test", [Example("a", ["B", "C"]), Example("b", ["D"])], [[3, 1], [4, 1]]
    )


def test_scores_and_files_have_texts_after_postprocess(tmp_path):
    one = make(postprocess=str.lower)
    assert one.references() == [["b", "c"], ["d"]]
    assert one.scores(["c", "x"]) == {"exact_match": 50.0}
    one.write(tmp_path / "new" / "x.jsonl", ["c", "ä"])
    lines = [json.loads(line) for line in (tmp_path / "new" / "x.jsonl").read_text().splitlines()]
    assert lines[1] == {"input": "b", "prediction": "ä", "references": ["d"]}


def test_scores_are_undefined_where_predictions_are_no_numbers():
    numbers = [Example("a", ["1"]), Example("b", ["2"]), Example("c", ["4"])]
    task = Task(name="x", train=[], validation=[], metrics=("pearson", "exact_match"))
    one = EvalSplit(task, "test", numbers, [[1]] * 3)
    one.check()
    found = one.scores(["1", "two", "4"])
    assert math.isnan(found["pearson"])
    assert found["exact_match"] == pytest.approx(200 / 3)
    with pytest.raises(ValueError, match="test of task 'x': "):
        EvalSplit(task, "test", [Example("a", ["one"])], [[1]]).check()


def test_spread_takes_so_many_evenly():
    examples = [Example(str(i), ["x"]) for i in range(10)]
    whole = EvalSplit(make().task, "test", examples, [[i] for i in range(10)])
    assert whole.spread(None) == whole.spread(10) == whole
    assert [one.input for one in whole.spread(3).examples] == ["0", "3", "6"]
    assert whole.spread(3).inputs == [[0], [3], [6]]
    assert [len(whole.spread(count).examples) for count in range(1, 12)] == [*range(1, 11), 10]
