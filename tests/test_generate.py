"""Few shapes, hence few programs: what lengths are padded to, and how often anything compiles."""

import contextlib

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5jax import generate
from t5jax.model import abstract_params
from t5jax.strategy import Strategy
from t5jax.text2text import Text2Text


@contextlib.contextmanager
def counting_compilations():
    """A list that gets an entry for every program compiled in the block, whatever asked for it."""
    compiled = []

    def listener(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


@pytest.fixture(scope="module", autouse=True)
def quick_compiler():
    """How many programs there are does not depend on how good they are."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


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


def test_bucket_sequence_has_two_sizes_for_every_doubling():
    expected = [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]
    assert generate.buckets(2048) == expected
    assert generate.buckets(2049) == [*expected, 3072]


@pytest.mark.parametrize(
    ("length", "size"),
    [(0, 16), (1, 16), (16, 16), (17, 24), (24, 24), (25, 32), (33, 48), (97, 128), (400, 512)],
)
def test_bucket_is_the_next_size(length, size):
    assert generate.bucket(length) == size


@given(length=st.integers(1, 100_000))
def test_bucket_pads_by_less_than_a_half(length):
    size = generate.bucket(length)
    assert length <= size
    assert size <= 16 or size < length * 3 / 2


def test_buckets_are_those_that_lengths_fall_into():
    assert generate.buckets(400) == sorted({generate.bucket(n) for n in range(1, 401)})
    assert generate.buckets(1) == [16]


def test_pad_batch_pads_to_the_bucket_of_the_longest():
    sequences = [[5, 6, 7], [], list(range(20))]
    tokens, mask = generate.pad_batch(sequences, pad_id=9)
    assert tokens.shape == mask.shape == (3, 24)
    assert (tokens.dtype, mask.dtype) == (np.int32, np.bool_)
    for row, row_mask, sequence in zip(tokens, mask, sequences, strict=True):
        assert row.tolist() == sequence + [9] * (24 - len(sequence))
        assert row_mask.tolist() == [True] * len(sequence) + [False] * (24 - len(sequence))


def test_pad_batch_fills_up_with_rows_that_have_no_tokens():
    tokens, mask = generate.pad_batch([[3, 3], [4]], pad_id=0, num_rows=5)
    assert tokens.shape == mask.shape == (5, 16)
    assert mask.sum(axis=1).tolist() == [2, 1, 0, 0, 0]
    assert not tokens[2:].any()


def test_pad_batch_of_padding_ids_masks_by_length_not_by_id():
    """MADLAD and others have words where T5 has padding."""
    _, mask = generate.pad_batch([[0, 0, 0], [1]], pad_id=0)
    assert mask.sum(axis=1).tolist() == [3, 1]


def test_pad_batch_of_nothing_is_empty():
    tokens, mask = generate.pad_batch([], pad_id=0)
    assert tokens.shape == mask.shape == (0, 16)


def test_generate_compiles_once_for_each_bucket_of_a_thousand_lengths(t5):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 401, 1000)
    with counting_compilations() as compiled:
        for length in lengths:
            tokens = rng.integers(2, 97, (1, length)).astype(np.int32)
            # The limit, within its bucket, asks for no other program.
            limit = int(rng.integers(1, 4))
            mask = np.ones(tokens.shape, bool)
            ids = t5.generate_ids(tokens, encoder_mask=mask, max_new_tokens=limit)
            assert ids.shape == (1, limit)
    bound = len(generate.buckets(400))
    assert {generate.bucket(int(n)) for n in lengths} == set(generate.buckets(400))
    assert bound == 11
    # A few more for moving arrays, whose number the lengths do not raise.
    assert len(compiled) <= bound + 3


def test_generate_compiles_once_for_each_power_of_two_of_rows(t5):
    rng = np.random.default_rng(1)
    with counting_compilations() as compiled:
        for rows in rng.permutation(np.arange(1, 9)):
            tokens = rng.integers(2, 97, (rows, 5)).astype(np.int32)
            t5.generate_ids(tokens, encoder_mask=np.ones(tokens.shape, bool), max_new_tokens=2)
    assert len(compiled) <= 4 + 3  # 1, 2, 4 and 8, and a few for moving arrays


def test_generate_compiles_nothing_for_another_temperature(t5):
    tokens = np.full((1, 7), 5, np.int32)
    mask = np.ones(tokens.shape, bool)

    def run(max_new_tokens, **options):
        t5.generate_ids(
            tokens, encoder_mask=mask, max_new_tokens=max_new_tokens, strategy=Strategy(**options)
        )

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
            strategy = Strategy(num_beams=2, length_penalty=penalty)
            t5.generate_ids(tokens, encoder_mask=mask, max_new_tokens=3, strategy=strategy)
            if penalty == 0.0:
                compiled.clear()
    assert compiled == []
