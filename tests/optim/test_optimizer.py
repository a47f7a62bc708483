"""Adafactor against its formula and optax, AdamW and Muon against their formulas and torch."""

import functools
import json
from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from t5jax.optim import muon
from t5jax.optim.optimizer import OptimizerConfig, make_optimizer
from t5jax.optim.schedules import ScheduleConfig

RSQRT = ScheduleConfig(name="rsqrt", learning_rate=1.0, warmup_steps=2)  # the rate moves at step 3
ADAFACTOR = OptimizerConfig(name="adafactor", schedule=RSQRT)
ADAMW = OptimizerConfig(name="adamw", schedule=RSQRT)
MUON = OptimizerConfig(name="muon", schedule=RSQRT)
# Update sizes vary by layer, so errors are measured against the largest entry of each layer. A mean
# of 32768 float32 squares and a chain of ten roundings stay below a few 1e-6.
RELATIVE = 5e-6


def rsqrt_rate(step):
    return 1.0 / np.sqrt(max(step, 2))


def is_stack(path):
    return path.startswith("layers/")


def random_run(shape, *, seed=0, steps=5):
    """A parameter and its gradients; gradients grow and shrink 30x, so that clipping acts."""
    rng = np.random.default_rng(seed)
    param = rng.normal(size=shape) * rng.choice([0.5, 2.0], size=shape)
    grads = [
        rng.normal(size=shape) * np.exp(rng.normal(size=shape)) * size
        for size in (1.0, 30.0, 0.1, 5.0, 1.0)[:steps]
    ]
    return np.asarray(param, np.float32), [np.asarray(grad, np.float32) for grad in grads]


def train(tx, params, grads):
    """Parameters after each update, by a jitted step that donates what it replaces."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.array, params)
    state = jax.jit(tx.init)(params)
    seen = []
    for grad in grads:
        params, state = step(params, state, grad)
        seen.append(jax.tree.map(np.array, params))
    return seen, state


def make(config, **kwargs):
    return make_optimizer(config, total_steps=100, stacked=is_stack, **kwargs)


def assert_same_path(got, expected, *, relative=RELATIVE):
    """Compare trajectories; the error allowed is relative to the largest entry of the parameter."""
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=relative * np.abs(other).max())


def adafactor_formula(param, grads):
    """Algorithm 4 of arXiv:1804.04235 in float64, for one parameter of rank <= 2."""
    p = param.astype(np.float64)
    rows = cols = full = 0.0
    seen = []
    for t, grad in enumerate(grads):
        g = grad.astype(np.float64)
        beta = 1 - (t + 1) ** -0.8
        square = g**2 + 1e-30
        if p.ndim == 2 and min(p.shape) >= 128:
            rows = beta * rows + (1 - beta) * square.mean(axis=1)
            cols = beta * cols + (1 - beta) * square.mean(axis=0)
            v = np.outer(rows, cols) / rows.mean()
        else:
            v = full = beta * full + (1 - beta) * square
        u = g / np.sqrt(v)
        u = u / max(1, np.sqrt((u**2).mean()) / 1.0)
        p = p - rsqrt_rate(t) * max(np.sqrt((p**2).mean()), 1e-3) * u
        seen.append(p)
    return seen


@pytest.mark.parametrize(
    "shape", [(256, 128), (128, 256), (128, 128), (130, 127), (131,), (1, 300), ()]
)
def test_adafactor_follows_the_formula(shape):
    param, grads = random_run(shape)
    got, _ = train(make(ADAFACTOR), param, grads)
    assert_same_path(got, adafactor_formula(param, grads))


@pytest.mark.parametrize("shape", [(3, 256, 128), (3, 128, 128), (200, 130, 3), (3, 40), (5,)])
def test_adafactor_treats_a_stack_as_separate_layers(shape):
    param, grads = random_run(shape)
    # Layers of unlike size: one RMS for the whole stack would be far off for most of them.
    size = np.float32(10.0) ** (np.arange(shape[0]) % 3 - 1).reshape(-1, *[1] * (len(shape) - 1))
    param, grads = param * size, [grad / size**2 for grad in grads]
    got, _ = train(make(ADAFACTOR), {"layers": {"w": param}}, [{"layers": {"w": g}} for g in grads])
    for i in range(shape[0]):
        expected = adafactor_formula(param[i], [grad[i] for grad in grads])
        assert_same_path([params["layers"]["w"][i] for params in got], expected)


def test_adafactor_moves_a_zero_parameter_by_the_floor():
    got, _ = train(make(ADAFACTOR), np.zeros((2, 2), np.float32), [np.eye(2, dtype=np.float32)])
    # Adafactor's first direction is the sign of the gradient; the floor of the RMS is 1e-3.
    np.testing.assert_allclose(got[0], -1e-3 * rsqrt_rate(0) * np.eye(2), rtol=1e-6)


def test_adafactor_agrees_with_optax_on_single_layers():
    shapes = [(256, 128), (128, 128), (7, 5), (130, 2, 129)]
    runs = {str(shape): random_run(shape) for shape in shapes}
    params = {name: param for name, (param, _) in runs.items()}
    grads = [{name: all_grads[t] for name, (_, all_grads) in runs.items()} for t in range(5)]
    # optax's own code mixes int32 steps with floats, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        tx = optax.adafactor(lambda step: 1.0 / jnp.sqrt(jnp.maximum(step, 2)))
        expected, _ = train(tx, params, grads)
    got, _ = train(make(ADAFACTOR), params, grads)
    for name in runs:
        assert_same_path([x[name] for x in got], [x[name] for x in expected])


def adamw_formula(param, grads, *, weight_decay=0.0):
    """Algorithm 1 of arXiv:1412.6980 in float64, its step size times the parameter's RMS."""
    p = param.astype(np.float64)
    m = v = 0.0
    seen = []
    for t, grad in enumerate(grads):
        g = grad.astype(np.float64)
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        u = (m / (1 - 0.9 ** (t + 1))) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-6)
        rms = max(np.sqrt((p**2).mean()), 1e-3)
        p = p - rsqrt_rate(t) * (rms * u + weight_decay * p)
        seen.append(p)
    return seen


# In float32 1 - 0.999 is off by 5e-5, so Adam's correction, its root, by half of that.
ADAM_RELATIVE = 3e-5


# Against gradients of 1e-6, eps takes part of the step.
@pytest.mark.parametrize(("shape", "grad_size"), [((33, 20), 1.0), ((17,), 1e-6), ((), 1.0)])
def test_adamw_follows_the_formula(shape, grad_size):
    param, grads = random_run(shape)
    grads = [np.float32(grad_size) * grad for grad in grads]
    got, _ = train(make(ADAMW), param, grads)
    assert_same_path(got, adamw_formula(param, grads), relative=ADAM_RELATIVE)


def test_adamw_agrees_with_torch_scaled_by_parameter_rms():
    torch = pytest.importorskip("torch")
    param, grads = random_run((33, 20))
    p = torch.tensor(param, dtype=torch.float64, requires_grad=True)
    tx = torch.optim.AdamW([p], betas=(0.9, 0.999), eps=1e-6)
    expected = []
    for t, grad in enumerate(grads):
        rms = max(p.detach().square().mean().sqrt().item(), 1e-3)
        # torch scales the decay by the rate too; ours is not scaled by the RMS.
        tx.param_groups[0].update(lr=rsqrt_rate(t) * rms, weight_decay=0.1 / rms)
        p.grad = torch.tensor(grad, dtype=torch.float64)
        tx.step()
        expected.append(p.detach().numpy().copy())
    config = OptimizerConfig(name="adamw", schedule=RSQRT, weight_decay=0.1)
    got, _ = train(make(config), param, grads)
    assert_same_path(got, expected, relative=ADAM_RELATIVE)


def test_adamw_decays_matrices_and_spares_vectors_also_in_stacks():
    config = OptimizerConfig(name="adamw", schedule=RSQRT, weight_decay=0.1)
    shapes = {"layers/scale": (3, 20), "layers/w": (3, 9, 20), "norm": (20,), "embedding": (30, 20)}
    runs = {name: random_run(shape) for name, shape in shapes.items()}
    grads = [{name: all_grads[t] for name, (_, all_grads) in runs.items()} for t in range(5)]
    got, _ = train(make(config), {name: param for name, (param, _) in runs.items()}, grads)

    for name, decay in (("norm", 0.0), ("embedding", 0.1)):
        expected = adamw_formula(*runs[name], weight_decay=decay)
        assert_same_path([params[name] for params in got], expected, relative=ADAM_RELATIVE)
    for name, decay in (("layers/scale", 0.0), ("layers/w", 0.1)):
        param, all_grads = runs[name]
        for i in range(3):
            expected = adamw_formula(param[i], [grad[i] for grad in all_grads], weight_decay=decay)
            layer = [params[name][i] for params in got]
            assert_same_path(layer, expected, relative=ADAM_RELATIVE)


def muon_formula(param, grads, *, momentum):
    """One matrix in float64: the singular values of the momentum go through the polynomial."""
    p = param.astype(np.float64)
    m = 0.0
    seen = []
    for t, grad in enumerate(grads):
        g = grad.astype(np.float64)
        m = momentum * m + (1 - momentum) * g
        ahead = momentum * m + (1 - momentum) * g
        u, s, v = np.linalg.svd(ahead, full_matrices=False)
        s = s / np.sqrt((s**2).sum())
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        direction = 0.2 * np.sqrt(max(p.shape)) * (u * s) @ v
        rms = max(np.sqrt((p**2).mean()), 1e-3)
        p = p - rsqrt_rate(t) * (rms * direction + 0.1 * p)
        seen.append(p)
    return seen


# The polynomial stretches what is near zero 3.4445 times, five times over, roundings too.
MUON_RELATIVE = 5e-5


@pytest.mark.parametrize(
    ("shape", "momentum"),
    [((3, 20, 12), 0.95), ((2, 12, 20), 0.8), ((2, 16, 16), 0.95), ((2, 1, 7), 0.0)],
)
def test_muon_follows_the_formula(shape, momentum):
    param, grads = random_run(shape)
    # Layers of unlike size: each must have its own norm, and its own RMS.
    size = np.float32(10.0) ** (np.arange(shape[0]) % 3 - 1).reshape(-1, 1, 1)
    param, grads = param * size, [grad / size**2 for grad in grads]
    config = OptimizerConfig(name="muon", schedule=RSQRT, weight_decay=0.1, momentum=momentum)
    got, _ = train(make(config), {"layers/w": param}, [{"layers/w": grad} for grad in grads])
    for i in range(shape[0]):
        expected = muon_formula(param[i], [grad[i] for grad in grads], momentum=momentum)
        layer = [params["layers/w"][i] for params in got]
        assert_same_path(layer, expected, relative=MUON_RELATIVE)


def test_muon_agrees_with_torch_scaled_by_parameter_rms():
    torch = pytest.importorskip("torch", minversion="2.9")
    param, grads = random_run((24, 40))
    p = torch.tensor(param, requires_grad=True)
    tx = torch.optim.Muon([p], momentum=0.95, adjust_lr_fn="match_rms_adamw")
    expected = []
    for t, grad in enumerate(grads):
        rms = max(p.detach().square().mean().sqrt().item(), 1e-3)
        # torch scales the decay by the rate too; ours is not scaled by the RMS.
        tx.param_groups[0].update(lr=rsqrt_rate(t) * rms, weight_decay=0.1 / rms)
        p.grad = torch.tensor(grad)
        tx.step()
        expected.append(p.detach().numpy().copy())
    config = OptimizerConfig(name="muon", schedule=RSQRT, weight_decay=0.1)
    grads = [{"layers/w": grad[None]} for grad in grads]
    got, _ = train(make(config), {"layers/w": param[None]}, grads)
    # torch multiplies in bfloat16, whose eight bits leave some percent in a direction.
    assert_same_path([x["layers/w"][0] for x in got], expected, relative=1e-2)


def test_muon_leaves_embeddings_and_vectors_to_adam():
    shapes = {"layers/scale": (3, 20), "layers/relative_bias/embedding": (3, 9, 4)}
    shapes |= {"token_embedder/embedding": (30, 20), "output/kernel": (20, 30), "norm": (20,)}
    shapes |= {"layers/w": (3, 9, 20)}
    runs = {name: random_run(shape) for name, shape in shapes.items()}
    params = {name: param for name, (param, _) in runs.items()}
    grads = [{name: all_grads[t] for name, (_, all_grads) in runs.items()} for t in range(5)]
    options = {"schedule": RSQRT, "b1": 0.8, "b2": 0.98, "eps": 1e-3}
    got, state = train(make(OptimizerConfig(name="muon", **options)), params, grads)
    expected, _ = train(make(OptimizerConfig(name="adamw", **options)), params, grads)
    assert set(state.moments.pop("layers/w")) == {"momentum"}
    for name in state.moments:
        assert_same_path([x[name] for x in got], [x[name] for x in expected])
        assert set(state.moments[name]) == {"mu", "nu"}


def test_muon_goes_layer_by_layer_where_that_is_no_slower(monkeypatch):
    """As on accelerators, where whole stacks of a mesh would be gathered."""
    param, grads = random_run((3, 12, 20))
    grads = [{"layers/w": grad} for grad in grads]
    expected, _ = train(make(MUON), {"layers/w": param}, grads)
    monkeypatch.setattr(muon, "on_cpu", lambda: False)
    got, _ = train(make(MUON), {"layers/w": param}, grads)
    assert_same_path([x["layers/w"] for x in got], [x["layers/w"] for x in expected])


def test_muon_leaves_a_layer_without_gradient_where_it_is():
    param, (grad, *_) = random_run((2, 12, 20))
    grad[1] = 0
    (got,), _ = train(make(MUON), {"layers/w": param}, [{"layers/w": grad}])
    np.testing.assert_array_equal(got["layers/w"][1], param[1])
    assert np.abs(got["layers/w"][0] - param[0]).max() > 0.01


def test_muon_refuses_parameters_without_matrices_of_layers():
    with pytest.raises(ValueError, match=r"muon must have .*, got none"):
        make(MUON).init({"embedding": jnp.ones((3, 4)), "layers/scale": jnp.ones((2, 3))})


def test_adafactor_keeps_the_axes_of_parameters_in_their_moments():
    params = {
        "layers": {
            "wi": jnp.zeros((3, 128, 512)),
            "q": jnp.zeros((3, 128, 128)),
            "s": jnp.zeros((3, 8)),
        },
        "embedding": jnp.zeros((1000, 128)),
        "rank3": jnp.zeros((130, 2, 129)),
        "small": jnp.zeros((512, 127)),
        "scalar": jnp.zeros(()),
    }
    state = jax.eval_shape(make(ADAFACTOR).init, params)
    assert jax.tree.map(lambda moment: moment.shape, state.moments) == {
        "layers": {
            "wi": {"row": (3, 128, 1), "col": (3, 1, 512)},
            "q": {"row": (3, 128, 1), "col": (3, 1, 128)},
            "s": {"full": (3, 8)},
        },
        "embedding": {"row": (1, 128), "col": (1000, 1)},
        "rank3": {"row": (1, 2, 129), "col": (130, 2, 1)},
        "small": {"full": (512, 127)},
        "scalar": {"full": ()},
    }
    assert (state.count.shape, state.count.dtype) == ((), jnp.int32)


@pytest.mark.parametrize("config", [ADAFACTOR, ADAMW, MUON], ids=lambda config: config.name)
def test_state_keeps_its_structure_and_counts_updates(config):
    param, grads = random_run((3, 129, 130))
    tx = make(config)
    fresh = jax.eval_shape(tx.init, {"layers": {"w": param}})
    _, state = train(tx, {"layers": {"w": param}}, [{"layers": {"w": grad}} for grad in grads])
    assert jax.tree.structure(state) == jax.tree.structure(fresh)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), fresh
    )
    assert int(state.count) == 5


@pytest.mark.parametrize("config", [ADAFACTOR, ADAMW, MUON], ids=lambda config: config.name)
def test_moments_are_float32_and_updates_bfloat16_for_bfloat16_parameters(config):
    param, (grad,) = random_run((2, 129, 130), steps=1)
    param, narrow = (x.astype(jnp.bfloat16) for x in (param, grad))
    if config.name == "muon":  # an orthogonal direction would magnify the gradient's rounding
        grad = narrow.astype(np.float32)
    tx = make(config)
    exact, _ = train(tx, {"layers/w": param.astype(np.float32)}, [{"layers/w": grad}])
    got, state = train(tx, {"layers/w": param}, [{"layers/w": narrow}])
    assert got[0]["layers/w"].dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(state)} == {np.dtype("int32"), np.dtype("float32")}
    # The gradient, the update and the sum are each rounded to bfloat16's 8 bits.
    assert_same_path(
        [got[0]["layers/w"].astype(np.float32)], [exact[0]["layers/w"]], relative=2**-7
    )


@pytest.mark.parametrize("config", [ADAFACTOR, ADAMW, MUON], ids=lambda config: config.name)
def test_clip_norm_acts_on_the_norm_over_all_parameters(config):
    a, a_grads = random_run((2, 6, 5), seed=1)
    b, b_grads = random_run((9,), seed=2)
    grads = [{"layers/a": x, "b": y} for x, y in zip(a_grads, b_grads, strict=True)]
    norms = [np.sqrt((x**2).sum() + (y**2).sum()) for x, y in zip(a_grads, b_grads, strict=True)]
    limit = float(np.median(norms))  # some gradients are above it, some below
    clipped = [
        {name: g * min(1.0, limit / norm) for name, g in grad.items()}
        for grad, norm in zip(grads, norms, strict=True)
    ]
    tx = make(OptimizerConfig(name=config.name, schedule=RSQRT, clip_norm=limit))
    got, state = train(tx, {"layers/a": a, "b": b}, grads)
    expected, plain_state = train(make(config), {"layers/a": a, "b": b}, clipped)
    relative = MUON_RELATIVE if config.name == "muon" else RELATIVE
    for name in ("layers/a", "b"):
        path, other = ([x[name] for x in each] for each in (got, expected))
        assert_same_path(path, other, relative=relative)
    # A run may be resumed with another limit: the state does not depend on it.
    assert jax.tree.structure(state) == jax.tree.structure(plain_state)


def test_stacked_is_asked_by_slash_joined_path():
    asked = set()
    params = {
        "encoder": {"layers": [jnp.ones((2, 3)), jnp.ones((2,))]},
        "embedding": jnp.ones((3,)),
    }
    tx = make_optimizer(ADAFACTOR, total_steps=1, stacked=lambda path: bool(asked.add(path)))
    jax.eval_shape(lambda params: tx.update(params, tx.init(params), params), params)
    assert asked == {"encoder/layers/0", "encoder/layers/1", "embedding"}


@pytest.mark.parametrize("config", [ADAFACTOR, ADAMW, MUON], ids=lambda config: config.name)
def test_update_is_the_same_when_sharded(config):
    param, grads = random_run((2, 256, 128))
    tx = make(config)
    grads = [{"layers": {"w": grad}} for grad in grads]
    expected, _ = train(tx, {"layers": {"w": param}}, grads)

    # What axes of type Explicit divide cannot be multiplied along without being told how.
    kind = AxisType.Auto if config.name == "muon" else AxisType.Explicit
    mesh = jax.make_mesh((jax.device_count(),), ("fsdp",), (kind,))
    spec = (None, "fsdp", None)

    def sharding(x):  # the parameter's own rule, with axes of size 1 left whole
        whole = [1] * 3 if x.ndim == 0 else x.shape
        axes = [None if size == 1 else axis for size, axis in zip(whole, spec, strict=True)]
        return NamedSharding(mesh, P(*axes[: x.ndim]))

    shapes = {"layers": {"w": jax.ShapeDtypeStruct(param.shape, param.dtype)}}
    state_sharding = jax.tree.map(sharding, jax.eval_shape(tx.init, shapes))
    param_sharding = jax.tree.map(sharding, shapes)
    step = jax.jit(
        tx.update,
        in_shardings=(param_sharding, state_sharding, param_sharding),
        out_shardings=(param_sharding, state_sharding),
    )
    params = jax.device_put({"layers": {"w": param}}, param_sharding)
    state = jax.jit(tx.init, out_shardings=state_sharding)(params)
    for grad, expect in zip(grads, expected, strict=True):
        updates, state = step(jax.tree.map(jnp.asarray, grad), state, params)
        params = optax.apply_updates(params, updates)
        # The sums are taken in another order.
        relative = MUON_RELATIVE if config.name == "muon" else RELATIVE
        one, other = (x["layers"]["w"] for x in (params, expect))
        assert_same_path([np.asarray(one)], [other], relative=relative)


# Muon's steps have a fifth of the size.
@pytest.mark.parametrize(("name", "rate"), [("adafactor", 0.1), ("adamw", 0.1), ("muon", 0.5)])
def test_optimizer_minimises_a_quadratic(name, rate):
    target, _ = random_run((2, 4, 6), seed=3)  # two layers
    schedule = ScheduleConfig(name="cosine", learning_rate=rate, warmup_steps=10)
    tx = make_optimizer(
        OptimizerConfig(name=name, schedule=schedule, clip_norm=1.0),
        total_steps=200,
        stacked=lambda path: True,
    )

    def loss(params):
        return jnp.sum(jnp.square(params - target))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = jnp.ones((2, 4, 6))
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=200))(
        (start, tx.init(start))
    )
    assert loss(params) < 1e-3 * loss(start)


def test_update_refuses_to_work_without_parameters():
    tx = make(ADAFACTOR)
    params = {"w": jnp.ones((2,))}
    with pytest.raises(ValueError, match=r"params must be the parameters.*got None"):
        tx.update(params, tx.init(params))


def test_make_refuses_a_schedule_that_does_not_fit_the_run():
    schedule = ScheduleConfig(name="cosine", learning_rate=0.1, warmup_steps=100)
    config = OptimizerConfig(name="adamw", schedule=schedule)
    with pytest.raises(ValueError, match="total_steps must be more than warmup_steps=100"):
        make(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adafactor", "b1": 0.8}, "b1 must be left out for adafactor, got 0.8"),
        ({"name": "adafactor", "weight_decay": 0.1}, "it is an option of adamw and muon"),
        ({"name": "adamw", "momentum": 0.9}, "momentum must be left out for adamw, got 0.9; it is"),
        ({"name": "muon", "decay_exponent": 0.7}, "it is an option of adafactor"),
        ({"name": "muon", "momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0; 0.95 is"),
        ({"name": "adamw", "decay_exponent": 0.7}, "decay_exponent must be left out for adamw"),
        ({"name": "adamw", "clip_threshold": 2.0}, "it is an option of adafactor"),
        ({"name": "adafactor", "decay_exponent": 0.0}, r"in \(0, 1\], got 0.0; 0.8 is usual"),
        ({"name": "adafactor", "clip_threshold": -1.0}, "clip_threshold must be > 0, got -1.0"),
        ({"name": "adamw", "b1": 1.0}, r"b1 must be in \[0, 1\), got 1.0"),
        ({"name": "adamw", "b2": -0.1}, r"b2 must be in \[0, 1\), got -0.1"),
        ({"name": "adamw", "eps": 0.0}, "eps must be > 0 and finite, got 0.0"),
        ({"name": "adamw", "weight_decay": float("nan")}, "weight_decay must be >= 0.*got nan"),
        ({"name": "adamw", "clip_norm": 0.0}, "clip_norm must be > 0 or None, got 0.0"),
    ],
)
def test_config_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(schedule=RSQRT, **options)


def test_config_refuses_an_unknown_name():
    config = OptimizerConfig(name="adamw", schedule=RSQRT)
    object.__setattr__(config, "name", "adam")  # run-time type checks would refuse it before us
    message = "name must be one of adafactor, adamw, muon, got 'adam'; T5"
    with pytest.raises(ValueError, match=message):
        config.__post_init__()


def test_config_survives_json():
    config = OptimizerConfig(name="adamw", schedule=RSQRT, b2=0.98, clip_norm=1.0)
    read = json.loads(json.dumps(asdict(config)))
    assert OptimizerConfig(**(read | {"schedule": ScheduleConfig(**read["schedule"])})) == config
