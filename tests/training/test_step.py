"""One step against plain optax, and the same numbers on one device and on eight."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5jax.models.config import ComputePolicy, T5Config
from t5jax.models.t5 import bind, is_stacked
from t5jax.optim.optimizer import OptimizerConfig, make_optimizer
from t5jax.optim.schedules import ScheduleConfig, learning_rate_schedule
from t5jax.parallel.mesh import MeshConfig, make_mesh as mesh_make_mesh
from t5jax.parallel.sharding import shard_batch
from t5jax.training.evaluation import evaluate_loss, make_eval_step
from t5jax.training.loss import cross_entropy
from t5jax.training.step import (
    StepConfig,
    TrainState,
    init_state,
    make_train_step,
    state_from_trees,
    state_to_trees,
)

CONFIG = T5Config(
    vocab_size=64,
    d_model=32,
    d_ff=48,
    d_kv=8,
    num_heads=4,
    num_encoder_layers=2,
    num_decoder_layers=2,
)
SCHEDULE = ScheduleConfig(name="constant", learning_rate=0.003, warmup_steps=0)
OPTIMIZER = make_optimizer(
    OptimizerConfig(name="adafactor", schedule=SCHEDULE),
    total_steps=10,
    stacked=is_stacked,
)


def make_mesh(**axes: int) -> jax.sharding.Mesh:
    count = int(np.prod(list(axes.values())))
    return mesh_make_mesh(MeshConfig(**{"data": 1, **axes}), devices=jax.devices()[:count])


def make_batch(rows: int = 8) -> dict[str, np.ndarray]:
    """Padded on both sides, by odd lengths."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(2, 64, (rows, 12), dtype=np.int32)
    targets = rng.integers(2, 64, (rows, 6), dtype=np.int32)
    weights = np.ones((rows, 6), np.float32)
    inputs[1, 6:] = 0
    targets[2, 4:] = 0
    weights[2, 4:] = 0
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": weights,
    }


PLAIN = StepConfig()


@functools.cache
def make_step(
    config: T5Config,
    mesh: jax.sharding.Mesh,
    *,
    seed: int = 0,
    options: StepConfig = PLAIN,
    rate: ScheduleConfig = SCHEDULE,
):
    return make_train_step(
        config,
        OPTIMIZER,
        policy=ComputePolicy(),
        schedule=learning_rate_schedule(rate, total_steps=10),
        mesh=mesh,
        options=options,
        seed=seed,
    )


@functools.cache
def first_state(config: T5Config, mesh: jax.sharding.Mesh, options: StepConfig) -> TrainState:
    return init_state(config, OPTIMIZER, mesh=mesh, seed=1, options=options)


def fresh_state(
    mesh: jax.sharding.Mesh, *, config: T5Config = CONFIG, options: StepConfig = PLAIN
) -> TrainState:
    """A copy of the first state, which a step may consume."""
    state = first_state(config, mesh, options)
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding, may_alias=False), state)


@pytest.fixture(scope="module", autouse=True)
def drop_states_and_steps():
    yield
    first_state.cache_clear()
    make_step.cache_clear()


def losses(
    config: T5Config,
    mesh: jax.sharding.Mesh,
    *,
    steps: int,
    seed: int = 0,
    options: StepConfig = PLAIN,
) -> list[float]:
    state = fresh_state(mesh, config=config)
    step = make_step(config, mesh, seed=seed, options=options)
    batch = shard_batch(make_batch(), mesh=mesh)
    found = []
    for _ in range(steps):
        state, metrics = step(state, batch)
        found.append(float(metrics["loss"]))
    return found


@pytest.fixture(scope="module")
def one_device_losses() -> list[float]:
    return losses(CONFIG, make_mesh(), steps=20)


def test_train_step_lowers_the_loss(one_device_losses):
    assert one_device_losses[-1] < one_device_losses[0] - 0.1


@pytest.mark.parametrize(
    "axes",
    [
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        pytest.param({"fsdp": 8}, marks=pytest.mark.slow),
        {"data": 2, "tensor": 4},
        {"fsdp": 2, "tensor": 2, "sequence": 2},
    ],
)
def test_train_step_is_the_same_on_many_devices(axes, one_device_losses):
    # Sums are taken in another order: a few units in the last place of a loss near 4.
    np.testing.assert_allclose(
        losses(CONFIG, make_mesh(**axes), steps=20), one_device_losses, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("axes", [pytest.param({}, marks=pytest.mark.slow), {"data": 2}])
def test_train_step_in_parts_is_that_of_the_whole_batch(axes, one_device_losses):
    options = StepConfig(accumulate=4, vocab_chunks=3)
    found = losses(CONFIG, make_mesh(**axes), steps=20, options=options)
    np.testing.assert_allclose(found, one_device_losses, rtol=0, atol=1e-5)


def test_train_step_leaves_frozen_parameters_and_keeps_no_moments_of_them():
    options = StepConfig(frozen=("encoder", "relative_bias"))
    mesh = make_mesh()
    state = fresh_state(mesh, options=options)
    before = jax.tree.map(np.asarray, state.params)
    assert jax.tree.leaves(state.opt_state)
    assert not any("encoder/" in path or "relative_bias" in path for path in paths(state.opt_state))
    step = make_step(CONFIG, mesh, options=options)
    state, metrics = step(state, shard_batch(make_batch(), mesh=mesh))
    assert metrics["grad_norm"] > 0
    for path, was in jax.tree.leaves_with_path(before):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        now = state.params
        for key in path:
            now = now[key.key]
        frozen = name.startswith("encoder") or "relative_bias" in name
        assert np.array_equal(was, now) == frozen, name


def paths(tree) -> list[str]:
    leaves = jax.tree.leaves_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def test_train_step_skips_what_is_not_finite_and_goes_on():
    mesh = make_mesh()
    state = fresh_state(mesh)
    ramp = dataclasses.replace(SCHEDULE, warmup_steps=4)
    step = make_step(CONFIG, mesh, rate=ramp)
    good = shard_batch(make_batch(), mesh=mesh)
    weights = make_batch()["decoder_loss_weights"]
    weights[0, 0] = np.nan
    bad = shard_batch({**make_batch(), "decoder_loss_weights": weights}, mesh=mesh)
    before = jax.tree.map(np.asarray, (state.params, state.opt_state))
    state, metrics = step(state, bad)
    assert metrics["skipped"] == 1
    assert state.step == 1
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state), before)
    state, metrics = step(state, good)
    assert metrics["skipped"] == 0
    first = SCHEDULE.learning_rate / 4  # no update came before
    np.testing.assert_allclose(metrics["learning_rate"], first, rtol=1e-6)
    assert np.isfinite(metrics["loss"])
    alone = fresh_state(mesh)
    alone, _ = step(alone, good)
    jax.tree.map(np.testing.assert_array_equal, state.params, alone.params)


def test_train_step_averages_parameters():
    options = StepConfig(ema_decay=0.75, spike_factor=10.0)
    mesh = make_mesh()
    state = fresh_state(mesh, options=options)
    step = make_step(CONFIG, mesh, options=options)
    batch = shard_batch(make_batch(), mesh=mesh)
    expected = jax.tree.map(np.asarray, state.params)
    for _ in range(3):
        state, _ = step(state, batch)
        expected = jax.tree.map(lambda m, x: 0.75 * m + 0.25 * x, expected, state.params)
    # Four roundings of numbers below 4.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), state.ema_params, expected
    )
    trees = state_to_trees(state)
    assert set(trees) == {"params", "optimizer", "average", "norms"}
    jax.tree.map(np.testing.assert_array_equal, state_from_trees(state.step, trees), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"z_loss": -1.0}, "z_loss must be at least 0, got -1.0; T5 uses 1e-4"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0; 0.1 is usual"),
        ({"label_smoothing": -0.1}, r"label_smoothing must be in \[0, 1\), got -0.1"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"vocab_chunks": 0}, "vocab_chunks must be at least 1"),
        ({"spike_factor": 1.0}, "spike_factor must be above 1"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \(0, 1\)"),
    ],
)
def test_step_config_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        StepConfig(**options)


def test_train_step_refuses_shapes_that_do_not_divide():
    mesh = make_mesh(sequence=4)
    state = fresh_state(mesh)
    batch = shard_batch(make_batch(), mesh=mesh)
    with pytest.raises(ValueError, match=r"sequence = 4 must divide the length of decoder.*, 6"):
        make_step(CONFIG, mesh)(state, batch)
    step = make_step(CONFIG, make_mesh(data=2), options=StepConfig(accumulate=8))
    with pytest.raises(ValueError, match=r"multiple of accumulate x data x fsdp = 8 x 2, got 8"):
        step(state, batch)


def test_train_step_equals_grad_and_optax():
    """The first update, from jax.grad and optax.adafactor on each layer by itself."""
    mesh = make_mesh()
    state, before = fresh_state(mesh), first_state(CONFIG, mesh, PLAIN).params
    batch = make_batch()
    arrays = jax.tree.map(jnp.asarray, batch)

    def mean_loss(params):
        logits = bind(CONFIG, params)(
            arrays["encoder_input_tokens"],
            arrays["decoder_input_tokens"],
            encoder_mask=arrays["encoder_input_tokens"] != 0,
        )
        targets, weights = arrays["decoder_target_tokens"], arrays["decoder_loss_weights"]
        result = cross_entropy(logits, targets, weights, z_loss=1e-4, label_smoothing=0.0)
        return result.total / result.weight

    expected, grads = jax.jit(jax.value_and_grad(mean_loss))(before)
    reference = optax.adafactor(0.003, multiply_by_parameter_scale=True, clipping_threshold=1.0)
    wi, wi_grad = before["encoder"]["layers"]["mlp"]["wi"], grads["encoder"]["layers"]["mlp"]["wi"]
    state, metrics = make_step(CONFIG, mesh)(state, shard_batch(batch, mesh=mesh))
    for layer in range(2):
        with jax.numpy_dtype_promotion("standard"):
            update, _ = reference.update(wi_grad[layer], reference.init(wi[layer]), wi[layer])
        found = state.params["encoder"]["layers"]["mlp"]["wi"][layer]
        np.testing.assert_allclose(found, wi[layer] + update, rtol=0, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-5)
    np.testing.assert_allclose(metrics["learning_rate"], 0.003)


@pytest.mark.parametrize(
    "axes",
    [pytest.param({}, marks=pytest.mark.slow), {"fsdp": 2, "tensor": 2, "sequence": 2}],
)
def test_train_step_smooths_targets_and_evaluations_do_not(axes):
    """The loss and the norm of its gradient, from whole logits by optax."""
    mesh = make_mesh(**axes)
    state = fresh_state(mesh)
    before = jax.tree.map(np.asarray, state.params)
    arrays = jax.tree.map(jnp.asarray, make_batch())
    targets, weights = arrays["decoder_target_tokens"], arrays["decoder_loss_weights"]

    def mean_losses(params):
        logits = bind(CONFIG, params)(
            arrays["encoder_input_tokens"],
            arrays["decoder_input_tokens"],
            encoder_mask=arrays["encoder_input_tokens"] != 0,
        )
        plain = jax.nn.one_hot(targets, CONFIG.vocab_size)
        entropies = [
            jnp.sum(weights * optax.softmax_cross_entropy(logits, labels)) / weights.sum()
            for labels in (optax.smooth_labels(plain, 0.2), plain)
        ]
        return entropies[0], entropies[1]

    reference = jax.jit(jax.value_and_grad(mean_losses, has_aux=True))
    (smoothed, plain), grads = reference(before)
    options = StepConfig(z_loss=0.0, label_smoothing=0.2, vocab_chunks=3)
    batch = shard_batch(make_batch(), mesh=mesh)
    found = make_eval_step(CONFIG, policy=ComputePolicy(), mesh=mesh)(state.params, batch)
    _, metrics = make_step(CONFIG, mesh, options=options)(state, batch)
    np.testing.assert_allclose(metrics["loss"], smoothed, rtol=2e-6)
    np.testing.assert_allclose(metrics["cross_entropy"], plain, rtol=2e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-5)
    assert found.total == found.cross_entropy
    np.testing.assert_allclose(found.total / found.weight, plain, rtol=2e-6)


def test_train_step_draws_dropout_from_seed_and_step():
    config = CONFIG.replace(dropout_rate=0.2, num_encoder_layers=1, num_decoder_layers=1)
    mesh = make_mesh()
    first = losses(config, mesh, steps=2)
    assert losses(config, mesh, steps=2) == first
    assert losses(config, mesh, steps=1, seed=1)[0] != first[0]


def test_evaluate_weights_tokens_not_batches():
    mesh = make_mesh()
    state = fresh_state(mesh)
    whole = make_batch()
    parts = [{k: v[:2] for k, v in whole.items()}, {k: v[2:] for k, v in whole.items()}]
    step = make_eval_step(CONFIG, policy=ComputePolicy(), mesh=mesh)
    one = evaluate_loss(step, state.params, [whole], mesh=mesh)
    two = evaluate_loss(step, state.params, parts, mesh=mesh)
    assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
    assert one["accuracy"] == pytest.approx(two["accuracy"])
    assert one["loss"] == pytest.approx(np.log(64), rel=0.1)


def test_device_batch_refuses_rows_that_do_not_divide():
    mesh = make_mesh(data=4, fsdp=2)
    with pytest.raises(ValueError, match="multiple of data x fsdp = 8, got 6"):
        shard_batch(make_batch(rows=6), mesh=mesh)


def test_init_state_is_born_sharded():
    mesh = make_mesh(fsdp=4, tensor=2)
    state = first_state(CONFIG, mesh, PLAIN)
    wi = state.params["encoder"]["layers"]["mlp"]["wi"]
    assert wi.shape == (2, 32, 48)
    assert {shard.data.shape for shard in wi.addressable_shards} == {(2, 8, 24)}
    alone = init_state(CONFIG, OPTIMIZER, mesh=make_mesh(), seed=1)
    np.testing.assert_array_equal(wi, alone.params["encoder"]["layers"]["mlp"]["wi"])
