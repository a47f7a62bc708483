"""Ids in, ids out: what is told of a sequence, and how it grows."""

import numpy as np
import pytest
from helpers.forced_decoding import LIMIT, greedy_ids

from t5jax.generation.config import GenerationConfig
from t5jax.generation.engine import Engine, check_finite


@pytest.fixture(scope="module")
def writer(t5):
    return Engine(t5.config, t5.params)


@pytest.fixture(scope="module")
def encoded(t5, short):
    return [[*t5.tokenizer.encode(text), 1] for text in short]


def write(writer, encoded, given, *, prefixes=None, **named):
    options = GenerationConfig(max_new_tokens=LIMIT, **given)
    rules = options.rules(writer.config, None, max_new_tokens=LIMIT)
    return writer.write(encoded, prefixes or [[]] * len(encoded), options, rules, **named)


def test_write_gives_ids_with_their_end_and_the_reason(t5, writer, encoded, short):
    found = write(writer, encoded, {})
    for text, (one,) in zip(short, found, strict=True):
        ids = greedy_ids(t5, text)
        ended = len(ids) < LIMIT
        assert one.ids == ([*ids, 1] if ended else ids)
        assert one.finish_reason == ("eos" if ended else "length")
        # Nobody has added anything up.
        assert np.isnan([one.score, one.log_prob]).all()
        assert all(type(token) is int for token in one.ids)


def test_write_of_beams_tells_scores_best_first(writer, encoded):
    found = write(writer, encoded, {"num_beams": 3}, count=2)
    for row in found:
        assert len(row) == 2
        assert row[0].score >= row[1].score
        for one in row:
            np.testing.assert_allclose(one.score, one.log_prob / len(one.ids), rtol=1e-6)


def test_write_draws_by_the_number_of_an_input(writer, encoded):
    options = {"temperature": 1.5, "seed": 3}
    whole = write(writer, encoded, options)
    turned = write(writer, encoded[::-1], options, places=[3, 2, 1, 0])
    assert [row[0].ids for row in turned[::-1]] == [row[0].ids for row in whole]
    moved = write(writer, encoded, options, places=[10, 11, 12, 13])
    assert [row[0].ids for row in moved] != [row[0].ids for row in whole]
    same = write(writer, [encoded[0]] * 4, options, places=[7] * 4)
    assert len({tuple(row[0].ids) for row in same}) == 1


def test_write_puts_prefixes_of_any_length_side_by_side(t5, writer, encoded, short):
    prefixes = [[], [50], [50, 8, 27], [5, 6, 7, 8, 9]]
    found = write(writer, encoded, {}, prefixes=prefixes)
    for text, prefix, (one,) in zip(short, prefixes, found, strict=True):
        ids = greedy_ids(t5, text, prefix=prefix)
        assert one.ids == ([*ids, 1] if len(ids) < LIMIT + len(prefix) else ids)


@pytest.mark.parametrize("prefixes", [None, [[], [50], [50, 8, 27], [5, 6, 7, 8, 9]]])
def test_stream_grows_by_a_token_until_it_is_what_write_gives(writer, encoded, prefixes):
    options = GenerationConfig(max_new_tokens=LIMIT)
    rules = options.rules(writer.config, None, max_new_tokens=LIMIT)
    prefixes = prefixes or [[]] * 4
    lengths, whole = [0] * 4, [None] * 4
    for grown in writer.stream(encoded, prefixes, options, rules):
        for row, ended, ids in grown:
            assert whole[row] is None
            # At first, all write until the longest prefix is read.
            assert len(ids) == lengths[row] + 1 or not lengths[row]
            lengths[row], whole[row] = len(ids), ended
            assert ended is None or ended.ids == ids
    expected = writer.write(encoded, prefixes, options, rules)
    for one, (other,) in zip(whole, expected, strict=True):
        assert (one.ids, one.finish_reason) == (other.ids, other.finish_reason)


def test_write_of_nothing_is_nothing(writer):
    assert write(writer, [], {}) == []
    assert write(writer, [], {"num_beams": 2}) == []


def test_stepper_is_made_once(writer):
    assert writer.stepper is writer.stepper


def test_check_finite_tells_the_step():
    check_finite(np.int32(-1))
    with pytest.raises(ValueError, match="NaN or infinity at step 3 of the decoder"):
        check_finite(np.int32(3))
