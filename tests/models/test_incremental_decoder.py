"""One token at a time, several beams an input, in every type: as with all targets at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5jax.models.config import ComputePolicy
from t5jax.models.t5 import abstract_params, bind
from t5jax.ops.linear import is_kernel, quantize_kernel

S, T = 9, 7
LENGTHS = (9, 5, 1)  # of three inputs
BEAMS = 2
BFLOAT16 = ComputePolicy(dtype="bfloat16")

RNG = np.random.default_rng(0)
MASK = np.arange(S) < np.array(LENGTHS)[:, None]
TOKENS = (RNG.integers(2, 97, (3, S)) * MASK).astype(np.int32)
TARGETS = RNG.integers(2, 97, (3 * BEAMS, T)).astype(np.int32)


@functools.partial(jax.jit, static_argnames=("config", "num_beams", "policy"))
def by_steps(config, params, tokens, mask, targets, num_beams, policy=ComputePolicy()):
    """[R, T, V], and the last cache, which has more room than tokens."""
    bound = bind(config, params, policy=policy)
    states = bound.encode(tokens, encoder_mask=mask)
    decoder = bound.incremental_decoder()
    step, cache = decoder.start(states, encoder_mask=mask, max_len=T + 3, num_beams=num_beams)

    def one(cache, row):
        logits, cache = step(row, cache)
        return cache, logits

    cache, logits = jax.lax.scan(one, cache, targets.T)
    return logits.swapaxes(0, 1), cache


@functools.partial(jax.jit, static_argnames=("config",))
def at_once(config, params, tokens, mask, targets):
    return bind(config, params)(tokens, targets, encoder_mask=mask)


@jax.jit
def round_kernels(params):
    """All but norms and embeddings."""
    return jax.tree.map_with_path(
        lambda path, leaf: (
            leaf if path[-1].key in ("scale", "embedding") else quantize_kernel(leaf)
        ),
        params,
    )


@pytest.fixture(scope="module")
def exact(tiny_config, tiny_params):
    """float32 logits of all rows, inputs repeated: [6, T, V]."""
    inputs = TOKENS.repeat(BEAMS, axis=0), MASK.repeat(BEAMS, axis=0)
    return np.asarray(at_once(tiny_config, tiny_params, *inputs, TARGETS))


def test_step_with_several_beams_equals_every_row_with_its_own_input(
    tiny_config, tiny_params, exact
):
    found, cache = by_steps(tiny_config, tiny_params, TOKENS, MASK, TARGETS, BEAMS)
    # Five layers of float32 sums; logits of size 1 to 4.
    np.testing.assert_allclose(found, exact, rtol=0, atol=4e-5)
    assert int(cache.position) == T
    assert [keys.shape for keys in cache.keys] == [(6, 3, T + 3, 5)] * 3
    for part in (*cache.keys, *cache.values):
        assert not np.asarray(part)[:, :, T:].any()  # room that nothing was written to
        assert np.asarray(part)[:, :, :T].any(axis=-1).all()


def test_step_of_bfloat16_is_close_and_gives_float32(tiny_config, tiny_params, exact):
    arguments = (tiny_config, tiny_params, TOKENS, MASK, TARGETS, BEAMS)
    found, cache = by_steps(*arguments, policy=BFLOAT16)
    assert found.dtype == jnp.float32
    assert {part.dtype for part in (*cache.keys, *cache.values)} == {jnp.dtype("bfloat16")}
    # Some 20 roundings of relative size 2**-9 on the way, which add up like a random walk.
    error = np.sqrt(np.mean((np.asarray(found) - exact) ** 2)) / exact.std()
    assert 1e-3 < error < 5e-2


@pytest.mark.parametrize("tied", [False, True])
def test_step_with_int8_kernels_equals_float_kernels_of_their_values(
    tiny_config, tiny_params, exact, tied
):
    config, params = tiny_config, tiny_params
    if tied:
        config = config.replace(tie_embeddings=True)
        params = {name: part for name, part in params.items() if name != "output"}
    rounded = round_kernels(params)
    widened = jax.tree.map(
        lambda leaf: leaf.dequantize(jnp.float32) if is_kernel(leaf) else leaf,
        rounded,
        is_leaf=is_kernel,
    )
    if tied:
        kernel = params["token_embedder"]["embedding"].T
        widened["output"] = {"kernel": quantize_kernel(kernel).dequantize(jnp.float32)}
    inputs = TOKENS.repeat(BEAMS, axis=0), MASK.repeat(BEAMS, axis=0)
    expected = at_once(config.replace(tie_embeddings=False), widened, *inputs, TARGETS)
    found, _ = by_steps(config, rounded, TOKENS, MASK, TARGETS, BEAMS)
    assert found.dtype == jnp.float32
    # Activations of sixteen bits, through five layers: 1e-4 of what the weights have lost.
    scale = float(np.std(expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3 * scale)
    if not tied:
        assert np.abs(np.asarray(found) - exact).max() > 2e-2 * scale


def test_incremental_decoder_fuses_queries_keys_and_values_of_every_layer(tiny_config, tiny_params):
    decoder = jax.jit(lambda params: bind(tiny_config, params).incremental_decoder())(tiny_params)
    layers = tiny_params["decoder"]["layers"]["self_attention"]
    assert len(decoder.blocks) == len(decoder.biases) == 3
    for i, block in enumerate(decoder.blocks):
        parts = [np.asarray(layers[name][i]) for name in ("query", "key", "value")]
        fused = block.self_attention.qkv.get_value()
        np.testing.assert_array_equal(fused, np.concatenate(parts, axis=1))
        assert block.self_attention.query is None


def test_incremental_decoder_holds_weights_in_the_type_that_is_computed_in(
    tiny_config, tiny_params
):
    rounded = round_kernels(tiny_params)
    for params in (tiny_params, rounded):
        lay_out = jax.jit(lambda x: bind(tiny_config, x, policy=BFLOAT16).incremental_decoder())
        decoder = lay_out(params)
        for block in decoder.blocks:
            leaves = jax.tree.leaves(block, is_leaf=is_kernel)
            kinds = {leaf.dtype.name for leaf in leaves if not is_kernel(leaf)}
            assert kinds == {"bfloat16"}
            scales = {leaf.scale.dtype.name for leaf in leaves if is_kernel(leaf)}
            assert scales <= {"float32"}


def test_step_of_a_decoder_whose_layers_have_biases_of_their_own(tiny_config):
    config = tiny_config.replace(relative_bias_per_layer=True)
    rng = np.random.default_rng(3)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), leaf.dtype),
        abstract_params(config),
    )
    inputs = TOKENS.repeat(BEAMS, axis=0), MASK.repeat(BEAMS, axis=0)
    expected = at_once(config, params, *inputs, TARGETS)
    found, _ = by_steps(config, params, TOKENS, MASK, TARGETS, BEAMS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-5)


@pytest.mark.parametrize("per_layer", [False, True])
def test_rows_at_different_positions_have_the_logits_of_whole_targets(tiny_config, per_layer):
    config = tiny_config.replace(relative_bias_per_layer=per_layer)
    rng = np.random.default_rng(4)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), leaf.dtype),
        abstract_params(config),
    )
    # Two of the six rows begin at once, the others one to three steps later.
    delay = np.array([0, 3, 1, 0, 2, 1])

    @jax.jit
    def staggered(params):
        bound = bind(config, params)
        mask = jnp.asarray(MASK)
        encoded = bound.encode(jnp.asarray(TOKENS), encoder_mask=mask)
        decoder = bound.incremental_decoder()
        step, cache = decoder.start(encoded, encoder_mask=mask, max_len=T + 2, num_beams=BEAMS)

        def one(cache, time):
            # A row that is not to go on is set back, and writes over the token that it fed.
            position = jnp.clip(time - delay, 0, T - 1)
            tokens = jnp.take_along_axis(jnp.asarray(TARGETS), position[:, None], axis=1)[:, 0]
            logits, cache = step(tokens, cache._replace(position=position))
            return cache, (position, logits)

        start = cache._replace(position=jnp.zeros(len(delay), jnp.int32))
        return jax.lax.scan(one, start, jnp.arange(T + delay.max()))[1]

    positions, logits = map(np.asarray, staggered(params))
    inputs = TOKENS.repeat(BEAMS, axis=0), MASK.repeat(BEAMS, axis=0)
    expected = np.asarray(at_once(config, params, *inputs, TARGETS))
    assert any(len(set(row)) > 2 for row in positions)
    for row in range(len(delay)):
        assert set(positions[:, row]) == set(range(T))
        # Five layers of float32 sums; logits of size 1 to 4.
        np.testing.assert_allclose(
            logits[:, row], expected[row, positions[:, row]], rtol=0, atol=4e-5
        )


def test_a_single_row_takes_a_position_of_its_own(tiny_config, tiny_params):
    def run(params, position):
        bound = bind(tiny_config, params)
        mask = jnp.asarray(MASK[:1])
        encoded = bound.encode(jnp.asarray(TOKENS[:1]), encoder_mask=mask)
        step, cache = bound.incremental_decoder().start(encoded, encoder_mask=mask, max_len=T)
        cache = cache._replace(position=position)
        for i in range(3):
            logits, cache = step(jnp.asarray(TARGETS[:1, i]), cache)
        return logits, cache.position

    expected, _ = jax.jit(run)(tiny_params, jnp.zeros((), jnp.int32))
    logits, position = jax.jit(run)(tiny_params, jnp.zeros(1, jnp.int32))
    np.testing.assert_array_equal(position, [3])
    np.testing.assert_array_equal(logits, expected)
