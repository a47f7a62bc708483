"""Scores of trials; what a model writes for them is in test_finetuning.py."""

import json
import math

import numpy as np
import pytest

from t5jax.data.tasks import Example, Task
from t5jax.recipes.finetune_config import FinetuneConfig
from t5jax.recipes.validation import EvalSplit, TaskEvaluator


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


def test_scores_are_undefined_where_predictions_are_constant():
    numbers = [Example("a", ["1"]), Example("b", ["2"]), Example("c", ["4"])]
    task = Task(name="x", train=[], validation=[], metrics=("pearson", "exact_match"))
    one = EvalSplit(task, "test", numbers, [[1]] * 3)
    one.check()
    found = one.scores(["two", "two", "two"])
    assert math.isnan(found["pearson"])
    found = one.scores(["1", "two", "4"])
    assert found["pearson"] == pytest.approx(100 * np.corrcoef([1, -1, 4], [1, 2, 4])[0, 1])
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


def test_equal_scores_are_ranked_by_loss():
    evaluator = object.__new__(TaskEvaluator)
    evaluator._config = FinetuneConfig(best_by="score")
    ranked = [
        {"score": 50.001, "loss": 3.0},
        {"score": 50.0, "loss": 0.1},
        {"score": 50.0, "loss": 0.2},
        {"score": 0.0, "loss": 1.1},
        {"score": 0.0, "loss": 2.8},
        {"score": 0.0, "loss": 1e9},
    ]
    keys = [evaluator.ranking_key(evaluation) for evaluation in ranked]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)
