"""Few programs: how often anything compiles, whatever the lengths and the values of options."""

import jax
import numpy as np
import pytest
from helpers.forced_decoding import counting_compilations

from t5jax.generation.batching import length_bucket, length_buckets
from t5jax.models.t5 import abstract_params
from t5jax.text2text import Text2Text


@pytest.fixture(scope="module")
def t5(tiny_config):
    """As small as can be."""
    config = tiny_config.replace(num_encoder_layers=1, num_decoder_layers=1)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jax.numpy.asarray(rng.normal(size=leaf.shape).astype(np.float32)),
        abstract_params(config),
    )
    return Text2Text(config, params, None)


# What reads an input, what begins, and what writes; and a few more for moving arrays.
PROGRAMS, FEW = 3, 3


def test_generate_compiles_once_for_each_bucket_of_hundreds_of_lengths(t5):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 65, 200)
    with counting_compilations() as compiled:
        for length in lengths:
            tokens = rng.integers(2, 97, (1, length)).astype(np.int32)
            # The limit, within its bucket, asks for no other program.
            limit = int(rng.integers(1, 4))
            mask = np.ones(tokens.shape, bool)
            ids = t5.generate_ids(tokens, encoder_mask=mask, max_new_tokens=limit)
            assert ids.shape == (1, limit)
    bound = len(length_buckets(64))
    assert {length_bucket(int(n)) for n in lengths} == set(length_buckets(64))
    assert bound == 5
    # How it begins does not depend on the length of the input.
    assert len(compiled) <= (PROGRAMS - 1) * bound + 1 + FEW


def test_generate_compiles_once_for_each_power_of_two_of_rows(t5):
    rng = np.random.default_rng(1)
    with counting_compilations() as compiled:
        for rows in rng.permutation(np.arange(1, 9)):
            tokens = rng.integers(2, 97, (rows, 5)).astype(np.int32)
            t5.generate_ids(tokens, encoder_mask=np.ones(tokens.shape, bool), max_new_tokens=2)
    assert len(compiled) <= 4 * PROGRAMS + FEW  # 1, 2, 4 and 8


def test_generate_compiles_nothing_for_another_temperature(t5):
    tokens = np.full((1, 7), 5, np.int32)
    mask = np.ones(tokens.shape, bool)

    def run(max_new_tokens, **options):
        t5.generate_ids(tokens, encoder_mask=mask, max_new_tokens=max_new_tokens, **options)

    run(2, temperature=0.5, top_k=3, top_p=0.9)
    with counting_compilations() as compiled:
        for temperature in (0.1, 1.0, 2.5):
            run(3, temperature=temperature, top_k=15, top_p=0.5, seed=4)
    assert compiled == []


def test_generate_compiles_nothing_for_another_length_penalty(t5):
    tokens = np.full((1, 7), 5, np.int32)
    mask = np.ones(tokens.shape, bool)
    with counting_compilations() as compiled:
        for penalty in (0.0, 0.5, 2.0):
            options = {"num_beams": 2, "length_penalty": penalty, "max_new_tokens": 3}
            t5.generate_ids(tokens, encoder_mask=mask, **options)
            if penalty == 0.0:
                compiled.clear()
    assert compiled == []


def test_generate_compiles_nothing_for_other_constraints_of_the_same_kind(t5):
    tokens = np.full((1, 7), 5, np.int32)
    mask = np.ones(tokens.shape, bool)

    def run(**options):
        t5.generate_ids(tokens, encoder_mask=mask, max_new_tokens=3, **options)

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
