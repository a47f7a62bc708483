"""Ids in, ids out: sequences, how they grow, and how often anything compiles."""

import jax
import numpy as np
import pytest
from helpers.forced_decoding import LIMIT, counting_compilations, greedy_ids

from t5jax.generation.batching import length_bucket, length_buckets
from t5jax.generation.config import GenerationConfig
from t5jax.generation.engine import Engine, check_finite
from t5jax.models.t5 import abstract_params
from t5jax.text2text import Text2Text


@pytest.fixture(scope="module")
def engine(t5):
    return Engine(t5.config, t5.params, None, policy=t5.policy)


@pytest.fixture(scope="module")
def encoded(t5, short):
    return [[*t5.tokenizer.encode(text), 1] for text in short]


def generate(engine, encoded, *, num_return_sequences=1, **options):
    config = GenerationConfig(max_new_tokens=LIMIT, **options)
    return engine.generate(encoded, config, num_return_sequences=num_return_sequences)


def generate_batches(engine, encoded, row_ids, **options):
    config = GenerationConfig(max_new_tokens=LIMIT, **options)
    batches = [*engine.generate_batches(encoded, config, row_ids=row_ids)]
    assert [len(batch) for batch in batches] == [2, 2]
    return [sequence.ids for batch in batches for _, (sequence,) in sorted(batch.items())]


def test_generate_returns_ids_with_their_end_and_the_reason(t5, engine, encoded, short):
    sequences = generate(engine, encoded)
    for text, (one,) in zip(short, sequences, strict=True):
        ids = greedy_ids(t5, text)
        ended = len(ids) < LIMIT
        assert one.ids == ([*ids, 1] if ended else ids)
        assert one.finish_reason == ("eos" if ended else "length")
        assert one.prefix_len == 0
        # Nobody has added anything up.
        assert np.isnan([one.score, one.log_prob]).all()
        assert all(type(token) is int for token in one.ids)


def test_generate_with_beams_returns_scores_best_first(engine, encoded):
    for row in generate(engine, encoded, num_beams=3, num_return_sequences=2):
        assert len(row) == 2
        assert row[0].score >= row[1].score
        for one in row:
            np.testing.assert_allclose(one.score, one.log_prob / len(one.ids), rtol=1e-6)


def test_samples_are_determined_by_the_numbers_of_inputs(engine):
    # Of one length, so that batches hold them in their order.
    encoded = [[5 + i, 8, 1] for i in range(4)]
    options = {"temperature": 1.5, "seed": 3, "batch_size": 2}
    whole = [row[0].ids for row in generate(engine, encoded, **options)]
    assert generate_batches(engine, encoded, None, **options) == whole
    assert generate_batches(engine, encoded[::-1], [3, 2, 1, 0], **options) == whole[::-1]
    assert generate_batches(engine, encoded, [10, 11, 12, 13], **options) != whole
    same = generate_batches(engine, [encoded[0]] * 4, [7] * 4, **options)
    assert len({tuple(ids) for ids in same}) == 1


PREFIXES = [[], [50], [50, 8, 27], [5, 6, 7, 8, 9]]


def test_generate_puts_prefixes_of_any_length_side_by_side(t5, engine, encoded, short):
    sequences = generate(engine, encoded, decoder_prefix=PREFIXES)
    for text, prefix, (one,) in zip(short, PREFIXES, sequences, strict=True):
        ids = greedy_ids(t5, text, prefix=prefix)
        assert one.ids == ([*ids, 1] if len(ids) < LIMIT + len(prefix) else ids)
        assert one.prefix_len == len(prefix)


@pytest.mark.parametrize("prefixes", [None, PREFIXES])
def test_stream_grows_by_a_token_until_it_is_what_generate_returns(engine, encoded, prefixes):
    config = GenerationConfig(max_new_tokens=LIMIT, decoder_prefix=prefixes)
    lengths, whole = [0] * 4, [None] * 4
    for one in engine.stream(encoded, config):
        assert whole[one.row] is None
        # At first, all grow until the longest prefix is read.
        assert len(one.ids) == lengths[one.row] + 1 or not lengths[one.row]
        assert one.prefix_len == len((prefixes or [[]] * 4)[one.row])
        lengths[one.row] = len(one.ids)
        if one.finish_reason is not None:
            whole[one.row] = one
    for one, (other,) in zip(whole, engine.generate(encoded, config), strict=True):
        assert (one.ids, one.finish_reason) == (other.ids, other.finish_reason)


def test_generate_of_nothing_is_nothing(engine):
    assert generate(engine, []) == []
    assert generate(engine, [], num_beams=2) == []


def test_decoder_is_laid_out_once(engine):
    assert engine.decoder is engine.decoder


def test_check_finite_tells_the_step():
    check_finite(np.int32(-1))
    with pytest.raises(ValueError, match="NaN or infinity at step 3 of the decoder"):
        check_finite(np.int32(3))


# Compilations.


@pytest.fixture(scope="module")
def smallest(tiny_config):
    """As small as can be."""
    config = tiny_config.replace(num_encoder_layers=1, num_decoder_layers=1)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jax.numpy.asarray(rng.normal(size=leaf.shape).astype(np.float32)),
        abstract_params(config),
    )
    return Text2Text(config, params, None)


# Prefill, the start of the loop and the loop; and a few more for moving arrays.
PROGRAMS, FEW = 3, 3


def test_generate_compiles_once_for_each_bucket_of_hundreds_of_lengths(smallest):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 65, 200)
    with counting_compilations() as compiled:
        for length in lengths:
            tokens = rng.integers(2, 97, (1, length)).astype(np.int32)
            # The limit, within its bucket, asks for no other program.
            limit = int(rng.integers(1, 4))
            mask = np.ones(tokens.shape, bool)
            ids = smallest.generate_ids(tokens, encoder_mask=mask, max_new_tokens=limit)
            assert ids.shape == (1, limit)
    bound = len(length_buckets(64))
    assert {length_bucket(int(n)) for n in lengths} == set(length_buckets(64))
    assert bound == 5
    # How it begins does not depend on the length of the input.
    assert len(compiled) <= (PROGRAMS - 1) * bound + 1 + FEW


def test_generate_compiles_once_for_each_power_of_two_of_rows(smallest):
    rng = np.random.default_rng(1)
    with counting_compilations() as compiled:
        for rows in rng.permutation(np.arange(1, 9)):
            tokens = rng.integers(2, 97, (rows, 5)).astype(np.int32)
            smallest.generate_ids(
                tokens, encoder_mask=np.ones(tokens.shape, bool), max_new_tokens=2
            )
    assert len(compiled) <= 4 * PROGRAMS + FEW  # 1, 2, 4 and 8


def test_generate_compiles_nothing_for_another_temperature(smallest):
    tokens = np.full((1, 7), 5, np.int32)
    mask = np.ones(tokens.shape, bool)

    def run(max_new_tokens, **options):
        smallest.generate_ids(tokens, encoder_mask=mask, max_new_tokens=max_new_tokens, **options)

    run(2, temperature=0.5, top_k=3, top_p=0.9)
    with counting_compilations() as compiled:
        for temperature in (0.1, 1.0, 2.5):
            run(3, temperature=temperature, top_k=15, top_p=0.5, seed=4)
    assert compiled == []


def test_generate_compiles_nothing_for_another_length_penalty(smallest):
    tokens = np.full((1, 7), 5, np.int32)
    mask = np.ones(tokens.shape, bool)
    with counting_compilations() as compiled:
        for penalty in (0.0, 0.5, 2.0):
            options = {"num_beams": 2, "length_penalty": penalty, "max_new_tokens": 3}
            smallest.generate_ids(tokens, encoder_mask=mask, **options)
            if penalty == 0.0:
                compiled.clear()
    assert compiled == []


def test_generate_compiles_nothing_for_other_constraints_of_the_same_kind(smallest):
    tokens = np.full((1, 7), 5, np.int32)
    mask = np.ones(tokens.shape, bool)

    def run(**options):
        smallest.generate_ids(tokens, encoder_mask=mask, max_new_tokens=3, **options)

    run(repetition_penalty=1.5, suppress_tokens=[3], min_new_tokens=1, bad_words_ids=[[5, 6], [7]])
    with counting_compilations() as compiled:
        for k in (1, 2):
            run(
                repetition_penalty=2.0 + k,
                suppress_tokens=[4, 5 + k, 6],
                min_new_tokens=1 + k,
                bad_words_ids=[[5 + k], [8, 9 + k]],
            )
    assert compiled == []
