"""Span corruption against the published lengths, its definition, and every possible outcome."""

import itertools
from collections import Counter

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings, strategies as st

from t5jax.data.objectives.objective import Objective
from t5jax.data.objectives.span_corruption import (
    SpanCorruption,
    SpanCorruptionConfig,
    corrupt_spans,
    noise_mask,
)
from t5jax.tokenizers.byte import ByteTokenizer

BYTES = ByteTokenizer()
T5 = SpanCorruptionConfig()
EOS = 1
# Descending, as T5's; no text below has ids from 1000 on.
SENTINELS = np.arange(32099, 32099 - 100, -1)

corruptions = st.builds(
    SpanCorruptionConfig,
    density=st.floats(0.01, 0.99),
    mean_span=st.floats(1, 50),
)
seeds = st.integers(0, 2**32 - 1)
unhurried = settings(deadline=None)


@pytest.mark.parametrize(
    ("corruption", "inputs", "raw", "targets"),
    [
        (T5, 512, 568, 114),  # T5, all versions
        (T5, 1024, 1137, 229),  # mT5: 171 hidden in 57 spans
        (T5, 4096, 4550, 910),  # LongT5: 682.5 rounds to the even 682, in 227 spans
        (SpanCorruptionConfig(mean_span=20.0), 1024, 1193, 189),  # ByT5: 179 hidden in 9 spans
    ],
)
def test_lengths_are_those_published(corruption, inputs, raw, targets):
    assert corruption.lengths(inputs) == (raw, inputs, targets)


@unhurried
@given(corruption=corruptions, input_length=st.integers(8, 300))
def test_lengths_are_those_of_the_longest_text_that_fits(corruption, input_length):
    def inputs(raw):  # kept tokens, a sentinel for each span, EOS
        hidden, spans = corruption.counts(raw)
        return raw - hidden + spans + 1

    if inputs(2) > input_length:
        return
    raw = corruption.lengths(input_length).raw
    fitting = [n for n in range(2, 301) if inputs(n) <= input_length]
    if raw < 300:
        assert raw == max(fitting)
    assert inputs(raw) <= input_length < inputs(raw + 1)


@unhurried
@given(corruption=corruptions, length=st.integers(2, 2000))
def test_counts_are_the_rounded_fractions_within_what_is_possible(corruption, length):
    hidden, spans = corruption.counts(length)
    assert hidden == np.clip(np.round(length * corruption.density), 1, length - 1)
    wanted = max(np.round(hidden / corruption.mean_span), 1)
    # Every span hides a token and follows one that is kept.
    assert spans == min(wanted, hidden, length - hidden)


@unhurried
@given(corruption=corruptions, length=st.integers(2, 400), seed=seeds)
def test_noise_mask_hides_the_counted_tokens_in_the_counted_spans(corruption, length, seed):
    mask = noise_mask(length, config=corruption, rng=np.random.default_rng(seed))
    assert mask.shape == (length,)
    assert mask.dtype == bool
    assert not mask[0]
    assert mask[-1]
    runs = [hidden for hidden, _ in itertools.groupby(mask.tolist())]
    assert (int(mask.sum()), runs.count(True)) == corruption.counts(length)


def test_noise_mask_depends_on_the_generator_alone():
    first, again, other = (
        noise_mask(100, config=T5, rng=np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_noise_mask_draws_every_division_equally_often():
    # 10 tokens, 4 of them hidden in 2 spans: 5 ways to divide the kept times 3 the hidden ones.
    corruption = SpanCorruptionConfig(density=0.4, mean_span=2.0)
    assert corruption.counts(10) == (4, 2)
    possible = set()
    for mask in itertools.product([False, True], repeat=10):
        runs = [hidden for hidden, _ in itertools.groupby(mask)]
        if sum(mask) == 4 and runs == [False, True, False, True]:
            possible.add(mask)
    assert len(possible) == 15
    rng = np.random.default_rng(0)
    draws = 3000
    found = Counter(
        tuple(noise_mask(10, config=corruption, rng=rng).tolist()) for _ in range(draws)
    )
    assert set(found) == possible
    expected = draws / len(possible)
    statistic = sum((found[mask] - expected) ** 2 / expected for mask in possible)
    # The seed is fixed; a fair draw passes but one time in a million.
    assert statistic < scipy.stats.chi2.ppf(1 - 1e-6, len(possible) - 1)


def test_corrupt_equals_the_example_of_the_paper():
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    ids = {word: 10 + i for i, word in enumerate(words)}
    tokens = np.array([ids[word] for word in words])
    mask = np.array([word in ("for", "inviting", "last") for word in words])
    inputs, targets = corrupt_spans(tokens, mask, sentinels=SENTINELS, eos_id=EOS)
    names = {v: k for k, v in ids.items()} | {32099: "<0>", 32098: "<1>", EOS: "</s>"}
    assert " ".join(names[i] for i in inputs) == "Thank you <0> me to your party <1> week </s>"
    assert " ".join(names[i] for i in targets) == "<0> for inviting <1> last </s>"
    assert inputs.dtype == targets.dtype == np.int32


@unhurried
@given(data=st.data(), length=st.integers(1, 60))
def test_corrupt_loses_nothing(data, length):
    """Any mask, also one that begins hidden or hides all or nothing."""
    tokens = np.array(data.draw(st.lists(st.integers(2, 999), min_size=length, max_size=length)))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=length, max_size=length)))
    before = tokens.copy()
    inputs, targets = corrupt_spans(tokens, mask, sentinels=SENTINELS, eos_id=EOS)
    np.testing.assert_array_equal(tokens, before)
    assert inputs[-1] == targets[-1] == EOS

    spans: dict[int, list[int]] = {}
    for token in targets[:-1].tolist():
        if token >= 1000:
            assert token not in spans
            current = spans[token] = []
        else:
            current.append(token)
    assert list(spans) == SENTINELS[: len(spans)].tolist()
    assert all(spans.values())
    assert [token for token in inputs if token >= 1000] == list(spans)
    whole = [spans.get(token, [token]) for token in inputs[:-1].tolist()]
    assert list(itertools.chain(*whole)) == tokens.tolist()
    # No two sentinels touch: they would be one span.
    assert not any(a >= 1000 and b >= 1000 for a, b in itertools.pairwise(inputs.tolist()))


@unhurried
@given(length=st.integers(2, 600), corruption=corruptions, seed=seeds)
def test_corrupt_of_noise_mask_has_the_promised_lengths(length, corruption, seed):
    mask = noise_mask(length, config=corruption, rng=np.random.default_rng(seed))
    sentinels = np.arange(5000, 5000 + length)
    inputs, targets = corrupt_spans(np.full(length, 7), mask, sentinels=sentinels, eos_id=EOS)
    hidden, spans = corruption.counts(length)
    assert (len(inputs), len(targets)) == (length - hidden + spans + 1, hidden + spans + 1)


def test_corrupt_refuses_more_spans_than_sentinels():
    tokens, mask = np.arange(2, 8), np.array([False, True] * 3)
    assert len(corrupt_spans(tokens, mask, sentinels=SENTINELS[:3], eos_id=EOS)[0]) == 7
    with pytest.raises(ValueError, match="got 3 spans and 2 sentinels"):
        corrupt_spans(tokens, mask, sentinels=SENTINELS[:2], eos_id=EOS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, r"density must be in \(0, 1\), got 0\.0; T5 uses 0\.15"),
        ({"density": 1.0}, r"density must be in \(0, 1\), got 1\.0"),
        ({"density": float("nan")}, r"density must be in \(0, 1\), got nan"),
        ({"mean_span": 0.9}, r"mean_span must be at least 1, got 0\.9; T5 uses 3\.0"),
        ({"mean_span": float("nan")}, r"mean_span must be at least 1, got nan"),
    ],
)
def test_span_corruption_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        SpanCorruptionConfig(**options)


def test_noise_mask_refuses_single_token():
    with pytest.raises(ValueError, match=r"length must be at least 2 tokens, got 1; join short"):
        noise_mask(1, config=T5, rng=np.random.default_rng(0))


def test_lengths_refuse_too_short_input():
    # A kept token, a sentinel and EOS.
    assert T5.lengths(3).raw == 2
    with pytest.raises(ValueError, match=r"input_length must be at least 3, got 2"):
        T5.lengths(2)


def test_span_corruption_makes_examples_of_the_lengths_it_gives():
    objective = SpanCorruption(T5, tokenizer=BYTES, decoder_start_id=9)
    assert isinstance(objective, Objective)
    raw, input_length, target_length = objective.lengths(65)
    tokens = np.arange(3, 3 + raw, dtype=np.int32)
    example = objective.example(tokens, np.random.default_rng(0))
    assert {name: value.shape for name, value in example.items()} == {
        "encoder_input_tokens": (input_length,),
        "decoder_input_tokens": (target_length,),
        "decoder_target_tokens": (target_length,),
        "decoder_loss_weights": (target_length,),
    }
    targets = example["decoder_target_tokens"]
    assert example["decoder_input_tokens"].tolist() == [9, *targets[:-1].tolist()]
    assert targets[0] == example["encoder_input_tokens"].max() == BYTES.sentinel_id(0)


def test_span_corruption_needs_a_sentinel_for_each_span():
    objective = SpanCorruption(T5, tokenizer=BYTES, decoder_start_id=0)
    objective.check(48)
    with pytest.raises(ValueError, match="an input of 3000 tokens must have at most 125 spans"):
        objective.check(3000)
