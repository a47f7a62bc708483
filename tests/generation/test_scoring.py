"""Compiled forward passes: the same numbers as the module's own logits, put together by numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5jax.generation.scoring import (
    cross_attention_weights,
    embed_batch,
    encode_batch,
    score_tokens,
    shifted_targets,
)
from t5jax.models.t5 import bind

S, T = 9, 16
LENGTHS = (9, 5, 1)
NUM_TARGETS = 2

RNG = np.random.default_rng(0)
MASK = np.arange(S) < np.array(LENGTHS)[:, None]
TOKENS = (RNG.integers(2, 97, (3, S)) * MASK).astype(np.int32)
TARGETS = RNG.integers(1, 97, (3 * NUM_TARGETS, T)).astype(np.int32)

# Logits of size 1 to 4 from five layers of float32 sums.
ABSOLUTE = 4e-5


@pytest.fixture(scope="module")
def tiny(tiny_config, tiny_params):
    return tiny_config.replace(decoder_start_id=3), tiny_params


@jax.jit
def forward(bound, tokens, mask, decoder_tokens):
    return bound(tokens, decoder_tokens, encoder_mask=mask)


@pytest.fixture(scope="module")
def log_probs(tiny):
    """[R, T, V] float64 of the module's logits, inputs repeated and targets shifted by hand."""
    decoder_tokens = np.concatenate([np.full((6, 1), 3), TARGETS[:, :-1]], axis=1)
    logits = forward(
        bind(*tiny),
        TOKENS.repeat(NUM_TARGETS, axis=0),
        MASK.repeat(NUM_TARGETS, axis=0),
        decoder_tokens.astype(np.int32),
    )
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_judge_gives_the_log_probability_of_every_target_token(tiny, log_probs):
    config, params = tiny
    found = score_tokens(params, TOKENS, MASK, TARGETS, config=config)
    expected = np.take_along_axis(log_probs, TARGETS[..., None], axis=-1)[..., 0]
    assert (found.log_probs.shape, found.log_probs.dtype) == ((6, T), jnp.float32)
    np.testing.assert_allclose(found.log_probs, expected, rtol=0, atol=ABSOLUTE)
    assert found.best.shape == found.best_log_probs.shape == (6, T, 0)


@pytest.mark.parametrize("num_best", [4, 97])
def test_judge_gives_the_likeliest_tokens_best_first(tiny, log_probs, num_best):
    config, params = tiny
    found = score_tokens(params, TOKENS, MASK, TARGETS, config=config, num_best=num_best)
    order = np.argsort(-log_probs, axis=-1)[..., :num_best]
    best = np.take_along_axis(log_probs, order, axis=-1)
    np.testing.assert_allclose(found.best_log_probs, best, rtol=0, atol=ABSOLUTE)
    # Neighbours whose distance is in the last bits may change places.
    gaps = np.diff(-np.sort(-log_probs, axis=-1), axis=-1, prepend=np.inf)
    apart = np.minimum(-gaps, np.roll(-gaps, -1, axis=-1))[..., :num_best] > 2 * ABSOLUTE
    np.testing.assert_array_equal(np.asarray(found.best)[apart], order[apart])
    assert apart.mean() > 0.9 or num_best == 97


def test_judge_of_several_targets_equals_one_at_a_time(tiny):
    config, params = tiny
    together = score_tokens(params, TOKENS, MASK, TARGETS, config=config, num_best=2)
    alone = [
        score_tokens(params, TOKENS, MASK, TARGETS[k::NUM_TARGETS], config=config, num_best=2)
        for k in range(NUM_TARGETS)
    ]
    for part, (one, other) in zip(together, zip(*alone, strict=True), strict=True):
        expected = np.stack([one, other], axis=1).reshape(part.shape)
        np.testing.assert_allclose(part, expected, rtol=0, atol=ABSOLUTE)


def test_judge_does_not_hold_all_logits_at_once(tiny):
    config, params = tiny
    wide = jnp.zeros((2, 64), jnp.int32)
    program = jax.make_jaxpr(
        lambda params: score_tokens(params, TOKENS[:2], MASK[:2], wide, config=config)
    )
    text = str(program(params))
    assert "2,8,97" in text
    assert "2,64,97" not in text


def test_shifted_targets_begin_with_the_start_token_and_lack_their_last(tiny):
    found = shifted_targets(jnp.asarray(TARGETS), tiny[0])
    assert np.asarray(found)[:, 0].tolist() == [3] * 6
    np.testing.assert_array_equal(np.asarray(found)[:, 1:], TARGETS[:, :-1])


@pytest.mark.parametrize("projection_dim", [0, 7])
def test_embed_is_the_mean_of_states_projected_and_of_length_1(tiny, projection_dim):
    config, params = tiny[0].replace(projection_dim=projection_dim), dict(tiny[1])
    if projection_dim:
        kernel = np.random.default_rng(1).normal(size=(16, projection_dim)).astype(np.float32)
        params["projection"] = {"kernel": jnp.asarray(kernel)}
    states = np.asarray(encode_batch(params, TOKENS, MASK, config=config), np.float64)
    found = embed_batch(params, TOKENS, MASK, config=config)
    mean = np.stack([row[kept].mean(axis=0) for row, kept in zip(states, MASK, strict=True)])
    expected = mean @ kernel if projection_dim else mean
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_embed_of_a_row_without_tokens_is_zero_and_leaves_the_others(tiny):
    config, params = tiny
    mask = MASK.copy()
    mask[2] = False
    found = np.asarray(embed_batch(params, TOKENS, mask, config=config))
    assert not found[2].any()
    expected = np.asarray(embed_batch(params, TOKENS, MASK, config=config))
    np.testing.assert_array_equal(found[:2], expected[:2])


def test_cross_attention_weights_are_the_module_s_for_shifted_targets(tiny):
    config, params = tiny
    targets = jnp.asarray(TARGETS[::NUM_TARGETS])
    found = cross_attention_weights(params, TOKENS, MASK, targets, config=config)

    @jax.jit
    def run(bound, tokens, mask, targets):
        return bound.cross_attention_weights(tokens, targets, encoder_mask=mask)

    expected = run(bind(config, params), TOKENS, MASK, shifted_targets(targets, config))
    assert found.shape == (3, 3, 3, T, S)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
