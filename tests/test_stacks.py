"""Stacks: a scan over all layers is the layers one after another, in a program of one size."""

import jax
import jax.numpy as jnp
import numpy as np

from t5jax import model

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
        bound = model.bind(tiny_config, params)
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
        bound = model.bind(tiny_config, params)
        states = bound.encode(TOKENS, encoder_mask=jnp.asarray(MASK))
        x = bound.token_embedder(TARGETS)
        masks = {
            "mask": jnp.tri(T, dtype=bool)[None, None],
            "cross_mask": jnp.asarray(MASK)[:, None, None],
        }
        scanned = bound.decoder(x, states, **masks)
        for i in range(tiny_config.num_decoder_layers):
            layer = layer_of(bound.decoder, i)
            x = layer(
                x,
                layer.self_heads(x),
                layer.cross_attention.keys_values(states),
                bias=bound.decoder.relative_bias(T),
                **masks,
            )
        return scanned, bound.decoder.final_norm(x)

    scanned, looped = both(tiny_params)
    np.testing.assert_allclose(scanned, looped, atol=1e-5)


def test_program_does_not_grow_with_depth(tiny_config):
    def size(num_layers):
        config = tiny_config.replace(num_encoder_layers=num_layers, num_decoder_layers=num_layers)
        params = model.abstract_params(config)

        def logits(params):
            bound = model.bind(config, params)
            return bound(TOKENS, TARGETS, encoder_mask=jnp.asarray(MASK))

        return len(str(jax.make_jaxpr(logits)(params)).splitlines())

    assert size(2) == size(30)
