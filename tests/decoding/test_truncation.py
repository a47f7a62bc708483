"""Truncation of a distribution against sets that are built token by token."""

import jax.numpy as jnp
import numpy as np
import pytest

from t5jax.decoding.sampling import min_p, top_k, top_p, typical

RNG = np.random.default_rng(0)
LOGITS = np.concatenate(
    [
        RNG.normal(size=(6, 11)) * 3,
        [[0.0] * 11],  # all alike
        [[5.0] + [-np.inf] * 10],  # one left
        [[1.0, 1.0, 1.0, 0.0] + [-np.inf] * 7],
    ]
).astype(np.float32)


def kept_by(function, *args, **options):
    found = np.asarray(function(jnp.asarray(LOGITS), *args, **options))
    kept = found > -np.inf
    np.testing.assert_array_equal(found[kept], LOGITS[kept])
    return [set(np.flatnonzero(row)) for row in kept]


def probabilities(row):
    weights = np.exp(row.astype(np.float64) - row.max())
    return weights / weights.sum()


def with_ties(row, chosen, values):
    """Also those that are exactly as good as the worst that was chosen."""
    worst = min(values[i] for i in chosen)
    return {i for i in range(len(row)) if values[i] >= worst and row[i] > -np.inf}


@pytest.mark.parametrize("k", [1, 3, 11, 50])
@pytest.mark.parametrize("max_k", [50, 64])
def test_top_k_keeps_the_k_best(k, max_k):
    expected = []
    for row in LOGITS:
        chosen = sorted(range(11), key=lambda i, row=row: -row[i])[:k]
        expected.append(with_ties(row, chosen, row))
    assert kept_by(top_k, jnp.int32(k), max_k=max_k) == expected


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.75, 0.97])
def test_top_p_keeps_the_fewest_that_reach_p(p):
    expected = []
    for row in LOGITS:
        probs, chosen, total = probabilities(row), [], 0.0
        for i in sorted(range(11), key=lambda i, probs=probs: -probs[i]):
            if total < p:
                chosen.append(i)
            total += probs[i]
        expected.append(with_ties(row, chosen, row))
    assert kept_by(top_p, jnp.float32(p)) == expected


@pytest.mark.parametrize("p", [0.0, 0.05, 0.5, 1.0])
def test_min_p_keeps_those_near_the_best(p):
    expected = []
    for row in LOGITS:
        probs = probabilities(row)
        bound = p * probs.max() * (1 - 1e-6)
        expected.append({i for i in range(11) if probs[i] >= bound and row[i] > -np.inf})
    assert kept_by(min_p, jnp.float32(p)) == expected


@pytest.mark.parametrize("p", [0.2, 0.6, 0.95])
def test_typical_keeps_those_of_expected_surprise(p):
    expected = []
    for row in LOGITS:
        probs = probabilities(row)
        inside = [i for i in range(11) if probs[i] > 0]
        surprise = {i: -np.log(probs[i]) for i in inside}
        entropy = sum(probs[i] * surprise[i] for i in inside)
        nearness = {i: -round(abs(surprise[i] - entropy), 5) for i in inside}
        chosen, total = [], 0.0
        for i in sorted(inside, key=lambda i, nearness=nearness: -nearness[i]):
            if total < p:
                chosen.append(i)
            total += probs[i]
        expected.append({i for i in inside if nearness[i] >= min(nearness[c] for c in chosen)})
    assert kept_by(typical, jnp.float32(p)) == expected


@pytest.mark.parametrize(
    ("ours", "theirs", "value"),
    [
        (lambda x: top_k(x, jnp.int32(7), max_k=8), "TopKLogitsWarper", 7),
        (lambda x: top_p(x, jnp.float32(0.8)), "TopPLogitsWarper", 0.8),
        (lambda x: min_p(x, jnp.float32(0.1)), "MinPLogitsWarper", 0.1),
        (lambda x: typical(x, jnp.float32(0.7)), "TypicalLogitsWarper", 0.7),
    ],
    ids=["top_k", "top_p", "min_p", "typical"],
)
def test_rule_is_that_of_transformers(ours, theirs, value):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    logits = np.random.default_rng(1).normal(size=(50, 300)).astype(np.float32) * 3
    expected = getattr(transformers, theirs)(value)(None, torch.from_numpy(logits)).numpy()
    np.testing.assert_array_equal(np.asarray(ours(jnp.asarray(logits))), expected)
