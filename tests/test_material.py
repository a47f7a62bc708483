"""Tasks as ids; whole runs are in test_finetuning.py."""

import pytest

from t5jax import material
from t5jax.mixture import PairLimits
from t5jax.tasks import Task
from t5jax.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()
LIMITS = PairLimits(input_length=6, target_length=4)


def rows(*pairs):
    return [{"input": one, "target": other} for one, other in pairs]


def task(**changes):
    given = {"name": "x", "train": rows(("ab", "c")), "validation": rows(("q", "r"))}
    return Task(**{**given, **changes})


def test_read_tells_of_what_is_in_training_too_and_how_much():
    said = []
    heldout = rows(("ab", "c"), ("ab", "d"), ("q", "r"))
    texts = material.read([task(validation=heldout, test=heldout[:1])], say=said.append)
    assert len(said) == 2
    assert said[0].startswith(
        "warning: 2 of 3 inputs in validation of task 'x' are in its training data too, 1 of them "
    )
    assert said[1].startswith("warning: 1 of 1 inputs in test of task 'x'")
    assert set(texts.heldout) == {("x", "validation"), ("x", "test")}
    assert list(texts.documents()) == ["ab", "c"]


def test_pairs_end_with_eos_and_are_counted():
    said = []
    many = rows(("ab", "c"), ("too long an input", "d"), ("e", "too long"), ("f", ""))
    texts = material.read([task(train=many)], say=said.append)
    limits = PairLimits(input_length=6, target_length=4, too_long="truncate", empty_targets="keep")
    found = material.pairs(texts, tokenizer=BYTES, limits=limits, say=said.append)["x"]
    assert [len(pair.input) for pair in found] == [3, 6, 2, 2]
    assert [len(pair.target) for pair in found] == [2, 2, 4, 1]
    assert all(ids[-1] == BYTES.eos_id for pair in found for ids in pair)
    assert said == [
        "task 'x': 1 inputs are too long, and truncated",
        "task 'x': 1 targets are too long, and truncated",
        "task 'x': 1 targets are empty, and kept",
    ]


def test_trials_keep_references_whole_and_cut_inputs_if_they_may():
    long = task(validation=rows(("too long an input", "and a long target")))
    texts = material.read([long], say=pytest.fail)
    with pytest.raises(ValueError, match="inputs in validation of task 'x' must have at most 6"):
        material.trials([long], texts, tokenizer=BYTES, limits=LIMITS, say=pytest.fail)
    said = []
    limits = PairLimits(input_length=6, target_length=4, too_long="drop")
    (one,) = material.trials([long], texts, tokenizer=BYTES, limits=limits, say=said.append)
    assert said == ["validation of task 'x': 1 inputs are too long, and truncated"]
    assert one.inputs == [[*BYTES.encode("too l"), BYTES.eos_id]]
    assert one.references() == [["and a long target"]]
