"""One layer of each stack against float64 numpy, and several rows that read one input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5jax.models.t5 import bind
from t5jax.models.transformer import split_key

S, T = 9, 5
# Sums of some twenty products of float32 numbers of size 1 to 10.
ABSOLUTE = 2e-5

RNG = np.random.default_rng(0)
STATES = jnp.asarray(RNG.normal(size=(3, S, 16)), jnp.float32)
X = jnp.asarray(RNG.normal(size=(3, T, 16)), jnp.float32)
MASK = (jnp.arange(S)[None] < jnp.array([9, 5, 1])[:, None])[:, None, None]
CAUSAL = jnp.tri(T, dtype=bool)[None, None]
BIAS = jnp.asarray(RNG.normal(size=(1, 3, S, S)), jnp.float32)


def norm(x, weights):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weights["scale"]


def attention(x, states, weights, mask, bias):
    def heads(y, name):
        y = y @ weights[name]
        return y.reshape(*y.shape[:2], 3, 5).swapaxes(1, 2)

    scores = heads(x, "query") @ heads(states, "key").swapaxes(2, 3) + bias
    scores = np.where(mask, scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    read = (shares @ heads(states, "value")).swapaxes(1, 2)
    return read.reshape(*x.shape[:2], -1) @ weights["out"]


def feed_forward(x, weights):
    h = x @ weights["wi"]
    h = h / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (h + 0.044715 * h**3)))
    return (h * (x @ weights["wi_linear"])) @ weights["wo"]


@pytest.fixture(scope="module")
def encoder(tiny_config, tiny_params):
    """The second block of the stack, and its weights in float64."""
    return pick(bind(tiny_config, tiny_params).encoder, tiny_params["encoder"])


@pytest.fixture(scope="module")
def decoder(tiny_config, tiny_params):
    return pick(bind(tiny_config, tiny_params).decoder, tiny_params["decoder"])


def pick(stack, params):
    block = jax.tree.map(lambda leaf: leaf[1], stack.layers)
    return block, jax.tree.map(lambda leaf: np.asarray(leaf[1], np.float64), params["layers"])


def test_encoder_block_equals_float64(encoder):
    block, weights = encoder
    x = np.asarray(STATES, np.float64)
    h = norm(x, weights["attention_norm"])
    x = x + attention(h, h, weights["attention"], MASK, np.asarray(BIAS))
    x = x + feed_forward(norm(x, weights["mlp_norm"]), weights["mlp"])
    found = jax.jit(type(block).__call__)(block, STATES, mask=MASK, bias=BIAS)
    np.testing.assert_allclose(found, x, rtol=0, atol=ABSOLUTE)


@jax.jit
def decode(block, x, states, cross_mask, bias):
    kv = block.encoder_kv(states)
    return block(x, kv, mask=CAUSAL, cross_mask=cross_mask, bias=bias)[0]


def test_decoder_block_equals_float64(decoder):
    block, weights = decoder
    bias = BIAS[:, :, :T, :T]
    x = np.asarray(X, np.float64)
    h = norm(x, weights["self_attention_norm"])
    x = x + attention(h, h, weights["self_attention"], CAUSAL, np.asarray(bias))
    h = norm(x, weights["cross_attention_norm"])
    x = x + attention(h, np.asarray(STATES), weights["cross_attention"], MASK, 0.0)
    x = x + feed_forward(norm(x, weights["mlp_norm"]), weights["mlp"])
    found = decode(block, X, STATES, MASK, bias)
    np.testing.assert_allclose(found, x, rtol=0, atol=ABSOLUTE)


def test_decoder_block_reads_one_input_for_several_rows_next_to_one_another(decoder):
    block, _ = decoder
    bias = BIAS[:, :, :T, :T]
    x = np.random.default_rng(1).normal(size=(6, T, 16)).astype(np.float32)
    found = decode(block, x, STATES, MASK, bias)
    expected = decode(block, x, STATES.repeat(2, axis=0), MASK.repeat(2, axis=0), bias)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ABSOLUTE)
    # Other inputs would show.
    wrong = decode(block, x, np.tile(STATES, (2, 1, 1)), np.tile(MASK, (2, 1, 1, 1)), bias)
    assert np.abs(np.asarray(wrong) - found).max() > 0.1


def test_blocks_drop_with_a_key_and_without_one_do_not(tiny_config, tiny_params):
    bound = bind(tiny_config.replace(dropout_rate=0.5), tiny_params)
    block, _ = pick(bound.encoder, tiny_params["encoder"])
    plain, _ = pick(bind(tiny_config, tiny_params).encoder, tiny_params["encoder"])
    run = jax.jit(lambda block, key: block(STATES, mask=MASK, bias=BIAS, dropout_key=key))
    key = jax.random.key(0)
    np.testing.assert_array_equal(run(block, None), run(plain, None))
    np.testing.assert_array_equal(run(block, key), run(block, key))
    assert np.abs(np.asarray(run(block, key)) - run(block, None)).max() > 0.1


def test_split_key_gives_as_many_keys_or_nones():
    assert split_key(None, 3) == [None, None, None]
    keys = split_key(jax.random.key(0), 3)
    assert len({np.asarray(jax.random.key_data(key)).tobytes() for key in keys}) == 3
