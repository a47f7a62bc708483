"""What is told of an answer: against one text at a time, read without a cache, by numpy."""

import numpy as np
import pytest
from helpers.forced_decoding import (
    LIMIT,
    SCORE_TOLERANCE,
    TOKEN_TOLERANCE,
    forced_log_probs,
    rows_of,
    token_log_probs,
)

from t5jax.generation.scoring import cross_attention_weights
from t5jax.text2text import Text2Text

STRATEGIES = {
    "greedy": {},
    "draws": {"temperature": 1.5, "top_p": 0.9, "num_return_sequences": 3},
    "power": {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.7},
    "gnmt": {
        "num_beams": 4,
        "num_return_sequences": 4,
        "length_penalty": 0.6,
        "penalty_form": "gnmt",
    },
}
PENALTIES = {
    "power": lambda length: length**0.7,
    "gnmt": lambda length: ((5 + length) / 6) ** 0.6,
}


@pytest.fixture(scope="module", params=STRATEGIES)
def found(request, t5, short):
    """Every strategy's name, its options and its answers."""
    options = STRATEGIES[request.param]
    return request.param, options, t5.generate_outputs(short, max_new_tokens=LIMIT, **options)


def test_answers_tell_the_log_probability_of_every_token(t5, short, found):
    _, _, rows = found
    for text, row in zip(short, rows, strict=True):
        for answer in row:
            expected = token_log_probs(t5, text, answer.ids)
            np.testing.assert_allclose(
                answer.token_log_probs, expected, rtol=0, atol=TOKEN_TOLERANCE
            )


def test_answers_are_scored_by_their_log_probability(t5, found):
    name, options, rows = found
    penalty = PENALTIES.get(name, lambda length: 1)
    for row in rows:
        assert len(row) == options.get("num_return_sequences", 1)
        for answer in row:
            total = sum(answer.token_log_probs)
            np.testing.assert_allclose(answer.log_prob, total, rtol=0, atol=SCORE_TOLERANCE)
            expected = total / penalty(len(answer.ids))
            np.testing.assert_allclose(answer.score, expected, rtol=0, atol=SCORE_TOLERANCE)
            assert (answer.alternatives, answer.cross_attention) == (None, None)


def test_answers_have_the_text_of_their_ids_and_end_once(t5, found):
    _, _, rows = found
    reasons = set()
    for answer in (answer for row in rows for answer in row):
        assert answer.text == t5.tokenizer.decode(answer.ids)
        assert 1 not in answer.ids[:-1]
        ended = answer.ids[-1] == 1
        assert answer.finish_reason == ("eos" if ended else "length")
        assert ended or len(answer.ids) == LIMIT
        reasons.add(answer.finish_reason)
    assert "eos" in reasons


def test_answers_of_a_search_are_different_and_best_first(found):
    _, options, rows = found
    if not options.get("num_beams"):
        pytest.skip("no search")
    for row in rows:
        assert len({tuple(answer.ids) for answer in row}) == len(row) == 4
        scores = [answer.score for answer in row]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("strategy", ["greedy", "draws", "power"])
def test_answers_begin_with_what_generate_gives(t5, short, strategy):
    options = {"max_new_tokens": LIMIT, **STRATEGIES[strategy]}
    first = [row[0].text for row in t5.generate_outputs(short, **options)]
    options.pop("num_return_sequences", None)
    assert first == t5.generate(short, **options)
    assert first == [row[0].text for row in t5.generate_outputs(short, **options)]


def test_answers_of_a_search_count_what_penalties_have_left(t5, short):
    """Of repetition, on log-probabilities; a token that was forced costs nothing."""
    options = {"repetition_penalty": 1.4, "forced_bos_token_id": 50, "length_penalty": 0.0}
    found = t5.generate_outputs(
        short, max_new_tokens=8, num_beams=3, num_return_sequences=2, min_new_tokens=6, **options
    )
    repeated = 0
    for text, row in zip(short, found, strict=True):
        for answer in row:
            log_probs = token_log_probs(t5, text, answer.ids)
            np.testing.assert_allclose(
                answer.token_log_probs, log_probs, rtol=0, atol=TOKEN_TOLERANCE
            )
            again = [token in (0, *answer.ids[:i]) for i, token in enumerate(answer.ids)]
            left = np.where(again, 1.4 * log_probs, log_probs)
            left[0] = 0
            np.testing.assert_allclose(answer.log_prob, left.sum(), rtol=0, atol=SCORE_TOLERANCE)
            np.testing.assert_allclose(answer.score, answer.log_prob, rtol=1e-6)
            repeated += sum(again)
    assert repeated > 0


def test_prefix_has_log_probabilities_and_counts_in_no_score(t5, short):
    given = ["the baker", "", "my sister", "an"]
    for strategy in ("greedy", "power"):
        options = STRATEGIES[strategy]
        found = t5.generate_outputs(short, decoder_prefix=given, max_new_tokens=5, **options)
        for text, prefix, row in zip(short, given, found, strict=True):
            size = len(t5.tokenizer.encode(prefix))
            for answer in row:
                expected = token_log_probs(t5, text, answer.ids)
                np.testing.assert_allclose(
                    answer.token_log_probs, expected, rtol=0, atol=TOKEN_TOLERANCE
                )
                total = expected[size:].sum()
                np.testing.assert_allclose(answer.log_prob, total, rtol=0, atol=SCORE_TOLERANCE)
                penalty = (len(answer.ids) - size) ** 0.7 if strategy == "power" else 1
                np.testing.assert_allclose(
                    answer.score, total / penalty, rtol=0, atol=SCORE_TOLERANCE
                )


# Alternatives and attention.


@pytest.mark.parametrize("count", [3, 97])
def test_alternatives_are_the_likeliest_tokens_in_the_place_of_each(t5, short, count):
    found = t5.generate_outputs(short[:2], max_new_tokens=LIMIT, num_alternatives=count)
    for text, (answer,) in zip(short, found, strict=False):
        log_probs = forced_log_probs(t5, text, answer.ids)
        assert len(answer.alternatives) == len(answer.ids)
        for row, chosen, listed in zip(log_probs, answer.ids, answer.alternatives, strict=False):
            assert len(listed) == count
            assert listed[0].id == chosen == row.argmax()  # greedily, it is the likeliest
            found_probs = [one.log_prob for one in listed]
            best = np.sort(row)[::-1][:count]
            np.testing.assert_allclose(found_probs, best, rtol=0, atol=TOKEN_TOLERANCE)
            for one in listed:
                np.testing.assert_allclose(one.log_prob, row[one.id], rtol=0, atol=TOKEN_TOLERANCE)
            assert len({one.id for one in listed}) == count


def test_alternatives_of_draws_are_of_the_model_without_temperature(t5, short):
    found = t5.generate_outputs(
        short[:2], max_new_tokens=6, temperature=3.0, num_return_sequences=2, num_alternatives=2
    )
    others = 0
    for text, row in zip(short, found, strict=False):
        for answer in row:
            log_probs = forced_log_probs(t5, text, answer.ids)
            for place, (token, listed) in enumerate(
                zip(answer.ids, answer.alternatives, strict=True)
            ):
                assert [one.id for one in listed] == np.argsort(-log_probs[place])[:2].tolist()
                others += token != listed[0].id
    assert others > 0


def test_cross_attention_is_what_each_id_reads_from_each_input_token(t5, short):
    prefix = "the baker"
    found = t5.generate_outputs(
        short, max_new_tokens=5, decoder_prefix=prefix, cross_attention=True
    )
    for text, (answer,) in zip(short, found, strict=True):
        length = len(t5.tokenizer.encode(text)) + 1
        weights = answer.cross_attention
        assert (weights.shape, weights.dtype) == ((1, 3, len(answer.ids), length), np.float32)
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=0, atol=1e-6)
    # One text by itself, unpadded.
    tokens, mask = rows_of(t5, short[:1])
    shifted = np.array([[0, *found[0][0].ids[:-1]]], np.int32)
    alone = cross_attention_weights(
        t5.params, tokens, mask, shifted, config=t5.config, policy=t5.policy
    )
    np.testing.assert_allclose(found[0][0].cross_attention, alone[:, 0], rtol=0, atol=1e-5)


# Reasons.


def test_finish_reasons_tell_eos_length_stop_and_dead_end(t5, short):
    def reasons(**options):
        return {
            row[0].finish_reason for row in t5.generate_outputs(short, max_new_tokens=6, **options)
        }

    assert reasons() == {"eos", "length"}
    assert reasons(stop_strings=["apples", "broken", "p"]) == {"stop"}
    assert reasons(suppress_tokens=[1]) == {"length"}
    assert reasons(allowed_texts=["rains"]) == {"eos"}


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"temperature": 1.0}])
def test_answers_that_constraints_leave_nothing_to_are_dead_ends(t5, short, options):
    (token, *_) = t5.tokenizer.encode("the baker")
    for given in ({}, {"decoder_prefix": "my sister"})[: 1 if options else 2]:
        found = t5.generate_outputs(
            short,
            allowed_texts=["the baker"],
            suppress_tokens=[token],
            max_new_tokens=6,
            num_alternatives=2,
            cross_attention=True,
            **options,
            **given,
        )
        for (answer,) in found:
            assert (answer.text, answer.ids, answer.finish_reason) == ("", [], "dead_end")
            assert answer.score == answer.log_prob == -np.inf
            assert answer.token_log_probs == answer.alternatives == []
            assert answer.cross_attention.shape[:3] == (1, 3, 0)


def test_dead_end_of_one_text_leaves_the_others(t5, short):
    """Behind its prefix, that is, no allowed text can go on."""
    (token, *_) = t5.tokenizer.encode("apples")
    options = {"decoder_prefix": ["apples", "", "", ""], "no_repeat_ngram_size": 1}
    found = t5.generate_outputs(short, allowed_texts=["apples"], max_new_tokens=6, **options)
    assert [row[0].finish_reason for row in found] == ["dead_end", "eos", "eos", "eos"]
    assert [row[0].ids for row in found][1:] == [[token, 1]] * 3


# Several answers.


def test_draws_of_one_text_are_different_and_do_not_depend_on_the_batch(t5, short):
    options = {"temperature": 1.5, "num_return_sequences": 4, "max_new_tokens": LIMIT, "seed": 3}
    together = t5.generate_outputs(short, **options)
    assert [len(row) for row in together] == [4] * 4
    for row in together:
        assert len({tuple(answer.ids) for answer in row}) > 1
    ids = [[answer.ids for answer in row] for row in together]
    again = t5.generate_outputs(short, **options, batch_size=1)
    assert [[answer.ids for answer in row] for row in again] == ids
    fewer = t5.generate_outputs(short[:3], **(options | {"num_return_sequences": 2}))
    assert [[answer.ids for answer in row] for row in fewer] == [row[:2] for row in ids[:3]]


def test_answers_of_a_search_are_fewer_where_the_model_can_write_only_fewer(t5, short):
    found = t5.generate_outputs(
        short,
        num_beams=4,
        num_return_sequences=4,
        allowed_texts=["apples", "rains"],
        max_new_tokens=5,
    )
    assert [len(row) for row in found] == [2] * 4


def test_answers_do_not_depend_on_the_batch(t5, short):
    options = {"max_new_tokens": LIMIT, "num_alternatives": 2, "cross_attention": True}
    together = t5.generate_outputs(short, **options)
    for rows in (
        t5.generate_outputs(short[::-1], **options)[::-1],
        t5.generate_outputs(short, batch_size=1, **options),
    ):
        for (one,), (other,) in zip(together, rows, strict=True):
            assert one.ids == other.ids
            np.testing.assert_allclose(
                one.token_log_probs, other.token_log_probs, rtol=0, atol=TOKEN_TOLERANCE
            )
            assert one.cross_attention.shape == other.cross_attention.shape
            np.testing.assert_allclose(
                one.cross_attention, other.cross_attention, rtol=0, atol=1e-5
            )


def test_answers_to_nothing_are_nothing(t5):
    for options in ({}, {"num_beams": 2}, {"temperature": 1.0, "num_return_sequences": 2}):
        assert t5.generate_outputs([], num_alternatives=2, cross_attention=True, **options) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_return_sequences": 0}, "num_return_sequences must be at least 1, got 0"),
        (
            {"num_return_sequences": 2},
            "num_return_sequences must be at most num_beams = 1, got 2; use as many beams, or a",
        ),
        (
            {"num_return_sequences": 3, "num_beams": 2},
            "num_return_sequences must be at most num_beams = 2, got 3",
        ),
        ({"num_alternatives": -1}, r"num_alternatives must be in \[0, vocab_size = 97\], got -1"),
        ({"num_alternatives": 98}, r"num_alternatives must be in \[0, vocab_size = 97\], got 98"),
    ],
)
def test_answers_refuse_what_cannot_be(t5, options, message):
    with pytest.raises(ValueError, match=message):
        t5.generate_outputs(["x"], **options)


def test_answers_need_a_tokenizer(t5):
    with pytest.raises(ValueError, match="without a tokenizer"):
        Text2Text(t5.config, t5.params, None).generate_outputs(["x"])
