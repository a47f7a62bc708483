"""Tasks as ids; whole runs are in test_finetuning.py."""

import pytest

from t5jax.data.packing import PairLimits
from t5jax.data.tasks import Task
from t5jax.recipes.finetune_data import read_task_texts, tokenize_pairs, validation_splits
from t5jax.tokenizers.byte import ByteTokenizer
from t5jax.tokenizers.sentencepiece import train_tokenizer

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
    texts = read_task_texts([task(validation=heldout, test=heldout[:1])], say=said.append)
    assert len(said) == 2
    assert said[0].startswith(
        "warning: 2 of 3 inputs in validation of task 'x' are also in its training data, 1 with "
    )
    assert said[1].startswith("warning: 1 of 1 inputs in test of task 'x'")
    assert set(texts.heldout) == {("x", "validation"), ("x", "test")}
    assert list(texts.documents()) == ["ab", "c"]


def test_read_tells_of_what_other_tasks_learn_from():
    said = []
    own = task(name="own", train=rows(("ab", "c")), validation=rows(("ab", "d"), ("q", "r")))
    other = task(name="other", train=rows(("q", "r"), ("ab", "c")))
    read_task_texts([other, own], say=said.append)
    assert said == [
        (
            "warning: 1 of 1 inputs in validation of task 'other' are also in its training data, "
            "1 with the same target; scores may be inflated."
        ),
        (
            "warning: 1 of 2 inputs in validation of task 'own' are also in its training data, "
            "0 with the same target; scores may be inflated."
        ),
        (
            "warning: 2 of 2 inputs in validation of task 'own' are also in the training data of "
            "'other', 1 with the same target; scores may be inflated."
        ),
    ]


def test_pairs_end_with_eos_and_are_counted():
    said = []
    many = rows(("ab", "c"), ("too long an input", "d"), ("e", "too long"), ("f", ""))
    texts = read_task_texts([task(train=many)], say=said.append)
    limits = PairLimits(input_length=6, target_length=4, too_long="truncate", empty_targets="keep")
    found = tokenize_pairs(texts, tokenizer=BYTES, limits=limits, max_unknown=0.1, say=said.append)[
        "x"
    ]
    assert [len(pair.input) for pair in found] == [3, 6, 2, 2]
    assert [len(pair.target) for pair in found] == [2, 2, 4, 1]
    assert all(ids[-1] == BYTES.eos_id for pair in found for ids in pair)
    assert said == [
        "task 'x': truncated 1 inputs with more than 6 tokens",
        "task 'x': truncated 1 targets with more than 4 tokens",
        "task 'x': kept 1 empty targets",
    ]


def test_trials_keep_references_whole_and_cut_inputs_if_they_may():
    long = task(validation=rows(("too long an input", "and a long target")))
    texts = read_task_texts([long], say=pytest.fail)
    with pytest.raises(ValueError, match=r"inputs in validation of task 'x' .*input_length=6"):
        validation_splits(
            [long], texts, tokenizer=BYTES, limits=LIMITS, max_unknown=0.1, say=pytest.fail
        )
    said = []
    limits = PairLimits(input_length=6, target_length=4, too_long="drop")
    (one,) = validation_splits(
        [long], texts, tokenizer=BYTES, limits=limits, max_unknown=0.1, say=said.append
    )
    assert said == [
        "validation of task 'x': truncated 1 inputs to 6 tokens",
        (
            "validation of task 'x': in 1 of 1 examples every reference exceeds target_length=4 "
            "tokens; raise target_length to generate them"
        ),
    ]
    assert one.inputs == [[*BYTES.encode("too l"), BYTES.eos_id]]
    assert one.references() == [["and a long target"]]


def trials(one, say, **limits):
    given = PairLimits(**{"input_length": 6, "target_length": 4, **limits})
    texts = read_task_texts([one], say=pytest.fail)
    return validation_splits([one], texts, tokenizer=BYTES, limits=given, max_unknown=0.1, say=say)


def test_trials_tell_of_examples_without_a_reference_that_can_be_written():
    # With EOS, "abc" has 4 tokens and "abcd" 5; one reference that fits is enough.
    targets = (["abc", "abcdefg"], ["abcdef", "abcde"], ["abcd"], ["abc"])
    one = task(test=[{"input": "q", "target": target} for target in targets])
    said = []
    assert trials(one, said.append, too_long="drop")[1].references() == [*map(list, targets)]
    assert said == [
        (
            "test of task 'x': in 2 of 4 examples every reference exceeds target_length=4 tokens; "
            "raise target_length to generate them"
        )
    ]
    with pytest.raises(
        ValueError, match=r"2 of 4 examples of test .* target_length=4 tokens \(longest 6\)"
    ):
        trials(one, pytest.fail)
    trials(one, pytest.fail, target_length=6)


def test_trials_tell_of_empty_references_and_refuse_a_split_of_nothing_else():
    said = []
    some = task(test=rows(("a", ""), ("b", "c"), ("d", "")))
    trials(some, said.append)
    assert said == ["test of task 'x': 2 of 3 references are empty"]
    none = task(test=rows(("a", ""), ("d", "")))
    with pytest.raises(ValueError, match=r"test of task 'x' .* 2 references .* empty"):
        trials(none, pytest.fail)
    said = []
    trials(none, said.append, empty_targets="drop")
    assert said == ["test of task 'x': 2 of 2 references are empty"]


# What a vocabulary cannot spell


WIDE = PairLimits(input_length=60, target_length=60)


@pytest.fixture(scope="module")
def words():
    texts = ["the cat sees a dog", "a dog sees the cat", "name : red blue"]
    return train_tokenizer(texts * 20, vocab_size=22)


def test_targets_with_unknown_tokens_are_refused(words):
    data = [{"input": "name the cat", "target": "{name: cat}"}] * 2
    data += [{"input": "the cat", "target": "a dog"}] * 8
    texts = read_task_texts([task(train=data, validation=data)], say=lambda _: None)
    options = {"tokenizer": words, "limits": WIDE}
    with pytest.raises(ValueError, match=r"at most 10% of the targets .* 2 of 10 .*lacks \{ \}"):
        tokenize_pairs(texts, **options, max_unknown=0.1, say=pytest.fail)
    with pytest.raises(ValueError, match="references in validation"):
        validation_splits(
            [task(train=data, validation=data)], texts, **options, max_unknown=0.1, say=pytest.fail
        )
    said: list[str] = []
    tokenize_pairs(texts, **options, max_unknown=0.2, say=said.append)
    (line,) = said
    assert line.startswith("warning: targets in training examples of task")


def test_inputs_with_unknown_tokens_are_reported(words):
    data = [{"input": "the cat <b>", "target": "a dog"}, {"input": "the\ncat", "target": "a dog"}]
    texts = read_task_texts([task(train=data, validation=data)], say=lambda _: None)
    said: list[str] = []
    tokenize_pairs(texts, tokenizer=words, limits=WIDE, max_unknown=0.0, say=said.append)
    assert "1 of 2 have unknown tokens" in said[0]
    assert said[0].endswith("lacks < >")
    assert "line breaks" in said[1]
    assert len(said) == 2
