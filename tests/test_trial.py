"""Scores of trials; what a model writes for them is in test_finetuning.py."""

import json
import math

import pytest

from t5jax import trial
from t5jax.tasks import Example, Task
from t5jax.trial import Trial


def make(**changes):
    task = Task(name="x", train=[], validation=[], **changes)
    return Trial(task, "test", [Example("a", ["B", "C"]), Example("b", ["D"])], [[3, 1], [4, 1]])


def test_scores_and_files_have_texts_after_postprocess(tmp_path):
    one = make(postprocess=str.lower)
    assert one.references() == [["b", "c"], ["d"]]
    assert one.scores(["c", "x"]) == {"exact_match": 50.0}
    one.write(tmp_path / "new" / "x.jsonl", ["c", "ä"])
    lines = [json.loads(line) for line in (tmp_path / "new" / "x.jsonl").read_text().splitlines()]
    assert lines[1] == {"input": "b", "prediction": "ä", "references": ["d"]}


def test_score_is_the_mean_over_tasks_of_their_means():
    results = {"one": {"bleu": 30.0, "chrf": 50.0}, "two": {"wer": 20.0}, "three": {"f1": math.nan}}
    assert trial.score(results) == pytest.approx((40 + 80 + 0) / 3)
