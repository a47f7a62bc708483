"""Stacks: a scan over all layers is the layers one after another, in a program of one size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5jax.models.t5 import abstract_params, bind

S, T = 9, 17
RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(3, 97, (3, S)), jnp.int32)
TARGETS = jnp.asarray(RNG.integers(3, 97, (3, T)), jnp.int32)
MASK = np.arange(S) < np.array([9, 5, 1])[:, None]


def layer_of(stack, i):
    return jax.tree.map(lambda leaf: leaf[i], stack.layers)


def test_encoder_scan_equals_loop_over_sliced_layers(tiny_config, tiny_params):
    @jax.jit
    def both(params):
        bound = bind(tiny_config, params)
        x = bound.token_embedder(TOKENS)
        mask = jnp.asarray(MASK)[:, None, None]
        scanned = bound.encoder(x, mask=mask)
        for i in range(tiny_config.num_encoder_layers):
            bias = bound.encoder.relative_bias(S)
            x = layer_of(bound.encoder, i)(x, mask=mask, bias=bias)
        return scanned, bound.encoder.final_norm(x)

    scanned, looped = both(tiny_params)
    np.testing.assert_allclose(scanned, looped, atol=1e-5)


def test_decoder_scan_equals_loop_over_sliced_layers(tiny_config, tiny_params):
    @jax.jit
    def both(params):
        bound = bind(tiny_config, params)
        states = bound.encode(TOKENS, encoder_mask=jnp.asarray(MASK))
        x = bound.token_embedder(TARGETS)
        masks = {
            "mask": jnp.tri(T, dtype=bool)[None, None],
            "cross_mask": jnp.asarray(MASK)[:, None, None],
        }
        scanned = bound.decoder(x, states, **masks)
        for i in range(tiny_config.num_decoder_layers):
            layer = layer_of(bound.decoder, i)
            bias = bound.decoder.relative_bias(T)
            x, _ = layer(x, layer.encoder_kv(states), bias=bias, **masks)
        return scanned, bound.decoder.final_norm(x)

    scanned, looped = both(tiny_params)
    np.testing.assert_allclose(scanned, looped, atol=1e-5)


def test_program_does_not_grow_with_depth(tiny_config):
    def size(num_layers):
        config = tiny_config.replace(num_encoder_layers=num_layers, num_decoder_layers=num_layers)
        params = abstract_params(config)

        def logits(params):
            bound = bind(config, params)
            return bound(TOKENS, TARGETS, encoder_mask=jnp.asarray(MASK))

        return len(str(jax.make_jaxpr(logits)(params)).splitlines())

    assert size(2) == size(30)


@pytest.mark.parametrize("per_layer", [False, True])
def test_cross_attention_weights_are_the_softmax_of_queries_and_keys_in_every_layer(
    tiny_config, per_layer
):
    config = tiny_config.replace(relative_bias_per_layer=per_layer)
    rng = np.random.default_rng(1)
    # No scale is 0, and scores are of size 1.
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 3 + 0.1, leaf.dtype),
        abstract_params(config),
    )

    @jax.jit
    def run(params):
        bound = bind(config, params)
        mask = jnp.asarray(MASK)
        weights = bound.cross_attention_weights(TOKENS, TARGETS, encoder_mask=mask)
        # Cross-attention's input in every layer: the output of one that adds nothing after it.
        muted = bind(config, jax.tree.map_with_path(mute, params))
        states = bound.encode(TOKENS, encoder_mask=mask)
        masks = {"mask": jnp.tri(T, dtype=bool)[None, None], "cross_mask": mask[:, None, None]}
        x = bound.token_embedder(TARGETS)
        asked = []
        for i in range(config.num_decoder_layers):
            layer, quiet = layer_of(bound.decoder, i), layer_of(muted.decoder, i)
            bias = (layer if per_layer else bound.decoder).relative_bias(T)
            kv = layer.encoder_kv(states)
            asked.append(quiet(x, kv, bias=bias, **masks)[0])
            x, _ = layer(x, kv, bias=bias, **masks)
        return weights, states, asked

    def mute(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return leaf * 0 if name.endswith(("cross_attention/out", "mlp/wo")) else leaf

    found, states, asked = jax.tree.map(np.asarray, run(params))
    assert (found.shape, found.dtype) == ((3, 3, 3, T, S), np.float32)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=0, atol=1e-6)
    for row, kept in enumerate(MASK):
        assert not found[:, row, ..., ~kept].any()
    layers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["decoder"]["layers"])
    for i, x in enumerate(asked):
        x = x.astype(np.float64)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon)
        x = x * layers["cross_attention_norm"]["scale"][i]
        query = (x @ layers["cross_attention"]["query"][i]).reshape(3, T, 3, 5)
        key = (states.astype(np.float64) @ layers["cross_attention"]["key"][i]).reshape(3, S, 3, 5)
        scores = np.einsum("btnh,bsnh->bnts", query, key)
        weights = np.where(MASK[:, None, None], np.exp(scores), 0.0)
        weights /= weights.sum(-1, keepdims=True)
        # Scores of size 1 to 10, each with an error of some 1e-6.
        np.testing.assert_allclose(found[i], weights, rtol=0, atol=1e-5)
        assert weights.std() > 0.05  # nothing that every kernel would give
