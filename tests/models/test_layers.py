"""The parts of a block against the papers' tables and float64 numpy loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5jax.models.config import ComputePolicy, T5Config
from t5jax.models.layers import (
    Attention,
    FeedForward,
    RelativeBias,
    RMSNorm,
    dropout,
    relative_position_bucket,
)
from t5jax.parallel.sharding import Sharder

# First distance of each bucket of T5's own table (32 buckets, maximal distance 128), as Mesh
# TensorFlow, T5X and Hugging Face transformers agree on it.
BIDIRECTIONAL = [*range(8), 8, 12, 16, 23, 32, 46, 64, 91]
CAUSAL = [*range(16), 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
FARTHEST = 3000

# Sums of some twenty products of float32 numbers near 1 err by about 1e-6.
ABSOLUTE = 5e-6


def bucket(offset, **kwargs):
    return relative_position_bucket(np.asarray(offset), **kwargs)


def from_first_distances(first, distance):
    return max(index for index, start in enumerate(first) if start <= distance)


def test_bucket_equals_reference_table_in_both_directions():
    options = {"num_buckets": 32, "max_distance": 128}
    offsets = np.arange(-FARTHEST, FARTHEST + 1)
    encoder = bucket(offsets, bidirectional=True, **options)
    decoder = bucket(offsets, bidirectional=False, **options)
    for offset, both, causal in zip(offsets, encoder, decoder, strict=True):
        assert both == from_first_distances(BIDIRECTIONAL, abs(offset)) + 16 * (offset > 0)
        assert causal == from_first_distances(CAUSAL, max(-offset, 0))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(
    ("num_buckets", "max_distance"), [(32, 128), (8, 12), (8, 20), (6, 10), (4, 8), (64, 256)]
)
def test_bucket_equals_formula(num_buckets, max_distance, bidirectional):
    kinds = num_buckets // 2 if bidirectional else num_buckets
    exact = kinds // 2
    checked = 0
    offsets = np.arange(-FARTHEST, FARTHEST + 1)
    options = {"num_buckets": num_buckets, "max_distance": max_distance}
    found = bucket(offsets, bidirectional=bidirectional, **options)
    for i, offset in enumerate(offsets.tolist()):
        distance = abs(offset) if bidirectional else max(-offset, 0)
        expected = distance
        if distance >= exact:
            steps = math.log(distance / exact) / math.log(max_distance / exact) * (kinds - exact)
            # At an integer the last bit of the logarithm decides; the table above covers T5's.
            if abs(steps - round(steps)) < 1e-4:
                continue
            expected = min(exact + int(steps), kinds - 1)
        expected += kinds * (bidirectional and offset > 0)
        assert found[i] == expected, offset
        checked += 1
    assert checked > 1.9 * FARTHEST


def test_bucket_keeps_shape_and_is_int32():
    found = bucket([[-3], [0], [3]], bidirectional=True, num_buckets=32, max_distance=128)
    assert found.dtype == np.int32
    assert found.tolist() == [[3], [0], [19]]


# RMSNorm


def norm_of(config, x, scale):
    norm = RMSNorm(config)
    norm.scale[...] = jnp.asarray(scale)
    return np.asarray(norm(jnp.asarray(x)).astype(jnp.float32))


def reference_norm(x, scale, epsilon):
    x = np.asarray(x, np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def test_rms_norm_equals_float64(tiny_config):
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (2, 5, 16)).astype(np.float32)
    x[0, 1] *= 1e-4  # so small that epsilon weighs
    x[1, 2] *= 1e6
    x[1, 3] = 0
    scale = rng.uniform(0.5, 1.5, 16).astype(np.float32)
    expected = reference_norm(x, scale, 1e-6)
    np.testing.assert_allclose(norm_of(tiny_config, x, scale), expected, atol=ABSOLUTE)


def test_rms_norm_of_bfloat16_has_float32_statistics():
    # One feature of 16 beside 4095 of 1: in bfloat16, 256 + 1 is 256.
    config = T5Config(
        vocab_size=8, d_model=4096, d_ff=8, num_heads=1, num_encoder_layers=1, num_decoder_layers=0
    )
    x = np.ones((1, 4096), np.float32)
    x[0, 0] = 16
    bf16 = jnp.asarray(x, jnp.bfloat16)
    assert RMSNorm(config)(bf16).dtype == jnp.bfloat16
    # One rounding of the result to bfloat16's 8 bits.
    expected = reference_norm(x, np.ones(4096), 1e-6)
    np.testing.assert_allclose(norm_of(config, bf16, np.ones(4096)), expected, rtol=2**-8)
    # This machine may add bfloat16 numbers in float32; the program must say so for all machines.
    statistics = [
        equation.invars[0].aval.dtype
        for equation in jax.make_jaxpr(RMSNorm(config))(bf16).eqns
        if equation.primitive.name in ("reduce_sum", "rsqrt", "square", "integer_pow")
    ]
    assert len(statistics) >= 3
    assert set(statistics) == {jnp.dtype("float32")}


# Attention


@pytest.fixture(scope="module")
def attention(tiny_config):
    return Attention(tiny_config, ComputePolicy(), Sharder(), rngs=nnx.Rngs(params=0))


def reference_attention(attention, x, states, mask, bias):
    """Float64, one query of one head of one row at a time."""
    kernels = {n: np.asarray(getattr(attention, n)[...], np.float64) for n in ("query", "key")}
    kernels |= {n: np.asarray(getattr(attention, n)[...], np.float64) for n in ("value", "out")}
    heads, joined = attention.num_heads, kernels["query"].shape[1]
    width = joined // heads
    result = np.zeros(x.shape)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            read = np.zeros(joined)
            for n in range(heads):
                part = slice(n * width, (n + 1) * width)
                query = x[b, t] @ kernels["query"][:, part]
                # A query that may look nowhere looks everywhere alike.
                allowed = np.flatnonzero(mask[b, t])
                scores = [query @ (states[b, s] @ kernels["key"][:, part]) for s in allowed]
                scores = np.array(scores) + bias[n, t, allowed]
                weights = np.exp(scores - scores.max(initial=-np.inf))
                if not len(allowed):
                    allowed, weights = np.arange(len(states[b])), np.ones(len(states[b]))
                for s, weight in zip(allowed, weights / weights.sum(), strict=True):
                    read[part] += weight * (states[b, s] @ kernels["value"][:, part])
            result[b, t] = read @ kernels["out"]
    return result


def attend(attention, x, states, mask, bias=None, **kwargs):
    x, states = jnp.asarray(x), jnp.asarray(states)
    bias = None if bias is None else jnp.asarray(bias)[None]
    mask = jnp.asarray(mask)[:, None]
    q, (k, v) = attention.project_q(x), attention.project_kv(states)
    return attention.attend(q, k, v, mask=mask, bias=bias, **kwargs)


@pytest.fixture(scope="module")
def reading():
    """Two rows, odd lengths; the first row's last two keys are padding, the rest is random."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 5, 16)).astype(np.float32)
    states = rng.normal(size=(2, 7, 16)).astype(np.float32)
    mask = rng.random((2, 5, 7)) < 0.6
    mask[0, :, 5:] = False
    mask[:, :, 0] = True
    bias = rng.normal(0, 2, (3, 5, 7)).astype(np.float32)
    return x, states, mask, bias


def test_attention_equals_loop(attention, reading):
    expected = reference_attention(attention, *reading)
    np.testing.assert_allclose(attend(attention, *reading), expected, atol=ABSOLUTE)


def test_attention_without_bias_equals_loop_with_zeros(attention, reading):
    x, states, mask, bias = reading
    expected = reference_attention(attention, x, states, mask, np.zeros_like(bias))
    np.testing.assert_allclose(attend(attention, x, states, mask), expected, atol=ABSOLUTE)


def test_attention_of_query_that_may_look_nowhere_is_mean(attention, reading):
    x, states, mask, bias = reading
    blind = mask.copy()
    blind[1, 2] = False
    found = np.asarray(attend(attention, x, states, blind, bias))
    np.testing.assert_allclose(
        found, reference_attention(attention, x, states, blind, bias), atol=ABSOLUTE
    )
    seeing = np.asarray(attend(attention, x, states, mask, bias))
    others = np.ones((2, 5), bool)
    others[1, 2] = False
    np.testing.assert_array_equal(found[others], seeing[others])


def test_attention_ignores_masked_keys_whatever_they_hold(attention, reading):
    x, states, mask, bias = reading
    changed = states.copy()
    changed[0, 5:] = 1e4
    np.testing.assert_array_equal(
        attend(attention, x, changed, mask, bias), attend(attention, x, states, mask, bias)
    )


def test_attention_masks_keys_below_any_score(attention, reading):
    x, states, mask, bias = reading
    # Trained T5s have scores of many hundreds; a mask of -1e4, say, would not be below these.
    found = attend(attention, x, states, mask, np.full_like(bias, -5e4))
    expected = reference_attention(attention, x, states, mask, np.zeros_like(bias))
    # float32 has steps of 0.004 at 5e4.
    np.testing.assert_allclose(found, expected, atol=1e-2)


def test_attention_of_bfloat16_has_float32_scores(attention, reading):
    x, states, mask, bias = reading
    x, states = (jnp.asarray(a, jnp.bfloat16) for a in (x, states))
    # At a bias of 1000 bfloat16 has steps of 4, and all differences between keys would be lost.
    found = attend(attention, x, states, mask, bias + 1000)
    assert found.dtype == jnp.bfloat16
    exact = reference_attention(
        attention, np.asarray(x, np.float64), np.asarray(states, np.float64), mask, bias
    )
    # Five bfloat16 roundings, each 2**-9, of values up to 2.
    np.testing.assert_allclose(np.asarray(found, np.float32), exact, atol=2e-2)


def test_attention_dropout_is_shared_by_queries(tiny_config, reading):
    config = tiny_config.replace(dropout_rate=0.5)
    attention = Attention(config, ComputePolicy(), Sharder(), rngs=nnx.Rngs(params=0))
    _, states, _, _ = reading
    # Equal queries that see everything differ only by what is dropped.
    x = np.broadcast_to(np.ones((1, 1, 16), np.float32), (2, 5, 16))
    mask = np.ones((2, 5, 7), bool)
    plain = np.asarray(attend(attention, x, states, mask))
    dropped = np.asarray(attend(attention, x, states, mask, dropout_key=jax.random.key(0)))
    np.testing.assert_allclose(dropped, dropped[:, :1].repeat(5, axis=1), atol=ABSOLUTE)
    assert np.abs(dropped - plain).max() > 0.01


# Dropout


def test_dropout_without_key_or_rate_is_identity():
    x = jnp.arange(6.0)
    assert dropout(x, rate=0.5, key=None) is x
    assert dropout(x, rate=0.0, key=jax.random.key(0)) is x


@pytest.mark.parametrize("rate", [0.1, 0.7])
def test_dropout_drops_at_rate_and_scales_the_rest(rate):
    x = jnp.full((300, 301), 3.0)
    y = np.asarray(dropout(x, rate=rate, key=jax.random.key(1)))
    kept = y != 0
    np.testing.assert_allclose(y[kept], 3 / (1 - rate), rtol=1e-6)
    # Six standard deviations of a binomial; the key is fixed, so the outcome is too.
    sigma = math.sqrt(rate * (1 - rate) / x.size)
    assert abs(kept.mean() - (1 - rate)) < 6 * sigma
    # No axis shares decisions.
    assert len({row.tobytes() for row in kept}) == 300
    assert len({column.tobytes() for column in kept.T}) == 301


def test_dropout_shares_decisions_along_axis():
    x = jnp.ones((3, 7, 200))
    y = np.asarray(dropout(x, rate=0.5, key=jax.random.key(2), shared_axis=-2))
    np.testing.assert_array_equal(y, y[:, :1].repeat(7, axis=1))
    assert len({row.tobytes() for row in y[:, 0]}) == 3
    assert 0.3 < (y[:, 0] == 0).mean() < 0.7


def test_dropout_keeps_dtype_and_passes_gradient_of_what_is_kept():
    x = jnp.ones((64,), jnp.bfloat16)
    key = jax.random.key(3)
    y = dropout(x, rate=0.5, key=key)
    assert y.dtype == jnp.bfloat16
    gradient = jax.grad(lambda x: dropout(x, rate=0.5, key=key).sum())(jnp.ones((64,)))
    np.testing.assert_array_equal(gradient, np.asarray(y, np.float32))


# Feed-forward

ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_erf": lambda x: x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_feed_forward_equals_float64(tiny_config, activation, gated):
    config = tiny_config.replace(activation=activation, gated_ff=gated)
    ff = FeedForward(config, rngs=nnx.Rngs(params=0))
    x = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
    hidden = ACTIVATIONS[activation](x @ np.asarray(ff.wi[...], np.float64))
    if gated:
        hidden = hidden * (x @ np.asarray(ff.wi_linear[...], np.float64))
    expected = hidden @ np.asarray(ff.wo[...], np.float64)
    # Far below the 4.7e-4 by which the two kinds of GELU differ.
    np.testing.assert_allclose(ff(jnp.asarray(x)), expected, atol=ABSOLUTE)


def test_feed_forward_two_gelus_differ():
    x = np.linspace(-4, 4, 801)
    difference = np.abs(ACTIVATIONS["gelu_tanh"](x) - ACTIVATIONS["gelu_erf"](x)).max()
    assert 4e-4 < difference < 5e-4


def test_feed_forward_dropout_is_shared_by_positions(tiny_config):
    ff = FeedForward(tiny_config.replace(dropout_rate=0.5), rngs=nnx.Rngs(params=0))
    x = jnp.ones((2, 5, 16))
    dropped = np.asarray(ff(x, dropout_key=jax.random.key(0)))
    np.testing.assert_allclose(dropped, dropped[:, :1].repeat(5, axis=1), atol=ABSOLUTE)
    assert np.abs(dropped[0] - dropped[1]).max() > 0.01
    assert np.abs(dropped - np.asarray(ff(x))).max() > 0.01


# Relative bias


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("length", [1, 5, 20])
def test_relative_bias_equals_table_row_of_every_pair(tiny_config, length, bidirectional):
    bias = RelativeBias(tiny_config, bidirectional=bidirectional, rngs=nnx.Rngs(params=0))
    table = np.asarray(bias.embedding[...])
    whole = np.asarray(bias(length))
    by_offset = np.asarray(bias.by_offset(length))
    assert whole.shape == (1, 3, length, length)
    assert by_offset.shape == (3, 2 * length - 1)
    for query in range(length):
        offsets = np.arange(length) - query
        rows = bucket(offsets, bidirectional=bidirectional, num_buckets=8, max_distance=12)
        np.testing.assert_array_equal(whole[0, :, query], table[rows].T)
        np.testing.assert_array_equal(by_offset[:, offsets + length - 1], table[rows].T)
