"""A family whose blocks alternate, against its layers one after another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5jax.models import families
from t5jax.models.config import ComputePolicy
from t5jax.models.families import FAMILIES, Family, get_family
from t5jax.models.t5 import abstract_params, bind, init_params, is_stacked
from t5jax.models.transformer import DecoderBlock, EncoderBlock
from t5jax.optim.optimizer import OptimizerConfig, make_optimizer
from t5jax.optim.schedules import ScheduleConfig, learning_rate_schedule
from t5jax.parallel.mesh import MeshConfig, make_mesh
from t5jax.parallel.sharding import infer_shardings
from t5jax.training.step import StepConfig, init_state, make_train_step

S, T = 9, 7
RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(3, 97, (3, S)), jnp.int32)
TARGETS = jnp.asarray(RNG.integers(3, 97, (3, T)), jnp.int32)
MASK = jnp.arange(S)[None] < jnp.array([9, 5, 1])[:, None]


class HalvedEncoderBlock(EncoderBlock):
    """A block that adds half of what the usual one adds."""

    def __call__(self, x, **kwargs):
        return (x + super().__call__(x, **kwargs)) / 2


class HalvedDecoderBlock(DecoderBlock):
    """A block that adds half of what the usual one adds."""

    def __call__(self, x, encoder_kv, **kwargs):
        y, cache = super().__call__(x, encoder_kv, **kwargs)
        return (x + y) / 2, cache


ALTERNATING = Family(
    encoder_blocks=(EncoderBlock, HalvedEncoderBlock),
    decoder_blocks=(DecoderBlock, HalvedDecoderBlock, DecoderBlock),
    partition_rules=FAMILIES["t5"].partition_rules,
)


@pytest.fixture(scope="module", autouse=True)
def family():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(families.FAMILIES, "alternating", ALTERNATING)
        yield


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config.replace(family="alternating", num_encoder_layers=4, num_decoder_layers=3)


@pytest.fixture(scope="module")
def params(config):
    return init_params(config, jax.random.key(0))


def by_layers(config, params):
    """[B, T, V] logits, computed by plain T5 blocks one after another."""
    plain = config.replace(family="t5")

    def stacked(stack):
        layers = [stack["layers"][f"block_{i}"] for i in range(len(stack["layers"]))]
        return {
            **stack,
            # Layer 1 of all is the first of the second block, and so on.
            "layers": jax.tree.map(
                lambda *x: jnp.stack(x, axis=1).reshape(-1, *x[0].shape[1:]), *layers
            ),
        }

    model = bind(
        plain, {**params, **{name: stacked(params[name]) for name in ("encoder", "decoder")}}
    )
    x, mask = model.token_embedder(TOKENS), MASK[:, None, None]
    bias = model.encoder.relative_bias(S)
    for i in range(4):
        y = model.encoder.layer(i)(x, mask=mask, bias=bias)
        x = (x + y) / 2 if i % 2 == 1 else y
    encoded = model.encoder.final_norm(x)
    x, bias = model.token_embedder(TARGETS), model.decoder.relative_bias(T)
    masks = {"mask": jnp.tri(T, dtype=bool)[None, None], "cross_mask": mask, "bias": bias}
    for i in range(3):
        layer = model.decoder.layer(i)
        y, _ = layer(x, layer.encoder_kv(encoded), **masks)
        x = (x + y) / 2 if i == 1 else y
    return model.logits(model.decoder.final_norm(x))


@pytest.mark.parametrize("remat", ["none", "full"])
def test_alternating_blocks_equal_their_layers_one_after_another(config, params, remat):
    policy = ComputePolicy(remat=remat)

    @jax.jit
    def run(params):
        return bind(config, params, policy=policy)(TOKENS, TARGETS, encoder_mask=MASK)

    expected = jax.jit(lambda params: by_layers(config, params))(params)
    # Seven layers of float32 sums; logits of size 1 to 4.
    np.testing.assert_allclose(run(params), expected, rtol=0, atol=4e-5)


def test_alternating_blocks_decode_as_they_read(config, params):
    @jax.jit
    def both(params):
        model = bind(config, params)
        states = model.encode(TOKENS, encoder_mask=MASK)
        step, cache = model.incremental_decoder().start(states, encoder_mask=MASK, max_len=T)

        def one(cache, tokens):
            logits, cache = step(tokens, cache)
            return cache, logits

        logits = jax.lax.scan(one, cache, TARGETS.T)[1].swapaxes(0, 1)
        return logits, model(TOKENS, TARGETS, encoder_mask=MASK)

    by_steps, at_once = both(params)
    np.testing.assert_allclose(by_steps, at_once, rtol=0, atol=4e-5)


def test_cross_attention_weights_come_in_the_order_of_the_layers(config, params):
    model = bind(config, params)
    weights = model.cross_attention_weights(TOKENS, TARGETS, encoder_mask=MASK)
    assert weights.shape == (3, 3, 3, T, S)
    # The first layer sees the embedded targets alone.
    layer, mask = model.decoder.layer(0), MASK[:, None, None]
    first = layer.cross_attention_weights(
        model.token_embedder(TARGETS),
        layer.encoder_kv(model.encode(TOKENS, encoder_mask=MASK)),
        mask=jnp.tri(T, dtype=bool)[None, None],
        cross_mask=mask,
        bias=model.decoder.relative_bias(T),
    )
    np.testing.assert_allclose(weights[0], first, rtol=0, atol=1e-5)


def test_alternating_blocks_are_sharded_and_trained(config):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    shardings = infer_shardings(
        abstract_params(config), mesh=mesh, rules=get_family(config).partition_rules
    )
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(shardings)]
    assert sum("block_1" in path for path in paths) == sum("block_0" in path for path in paths)
    assert is_stacked("encoder/layers/block_1/mlp/wi")

    rate = ScheduleConfig(name="constant", learning_rate=1e-2, warmup_steps=0)
    optimizer = make_optimizer(
        OptimizerConfig(name="adafactor", schedule=rate), total_steps=8, stacked=is_stacked
    )
    state = init_state(config, optimizer, mesh=mesh, seed=0)
    step = make_train_step(
        config,
        optimizer,
        policy=ComputePolicy(),
        schedule=learning_rate_schedule(rate, total_steps=8),
        mesh=mesh,
        options=StepConfig(),
        seed=0,
    )
    rows = np.resize(np.asarray(TOKENS), (8, 16))
    batch = {
        "encoder_input_tokens": rows,
        "decoder_input_tokens": np.pad(rows, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": rows,
        "decoder_loss_weights": np.ones(rows.shape, np.float32),
    }
    losses = []
    for _ in range(8):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.5


def test_layers_must_fill_the_periods(config):
    with pytest.raises(ValueError, match=r"multiple of 3.*'alternating'.*got 4"):
        abstract_params(config.replace(num_decoder_layers=4))


def test_unknown_family_suggests_the_nearest(tiny_config):
    with pytest.raises(ValueError, match=r"unknown family 'alternate'; did you mean 'alternating'"):
        get_family(tiny_config.replace(family="alternate"))
