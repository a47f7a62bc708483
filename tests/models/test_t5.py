"""The whole model against a float64 numpy T5 that computes one row at a time, without batches,
caches, stacks or buckets from the package."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec as P

from t5jax.models.config import ComputePolicy, T5Config
from t5jax.models.families import get_family
from t5jax.models.presets import preset_fields
from t5jax.models.t5 import abstract_params, bind, init_params, is_stacked
from t5jax.parallel.mesh import MeshConfig, make_mesh
from t5jax.parallel.sharding import infer_shardings

POLICY, BFLOAT16 = ComputePolicy(), ComputePolicy(dtype="bfloat16")

# The architectures of T5 v1.1 and T5 1.0, and the other side of their switches.
VARIANTS = {
    "v1_1": {},
    "v1_0": {
        "activation": "relu",
        "gated_ff": False,
        "tie_embeddings": True,
        "scale_logits": True,
    },
    "per_layer_bias": {
        "activation": "silu",
        "tie_embeddings": True,
        "relative_bias_per_layer": True,
    },
}

# Five layers of float32 sums of up to 24 terms: the logits, of size 1 to 4, err by some 2e-6.
# Tied and unscaled logits are sqrt(d_model) = 4 times as large.
ABSOLUTE = 4e-5

# Every program runs a few times only, so LLVM need not polish it: half the time of these tests.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

S, T = 9, 17  # T is beyond relative_max_distance = 12
LENGTHS = (9, 5, 1)  # of three rows' inputs


@functools.cache
def random_params(config: T5Config):
    """Norms and biases as large as in a trained model; made by numpy, which compiles nothing."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        if "scale" in name:
            values = rng.uniform(0.5, 1.5, leaf.shape)
        elif "relative_bias" in name or "token_embedder" in name:
            values = rng.normal(size=leaf.shape)
        else:
            values = rng.normal(0, leaf.shape[-2] ** -0.5, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree.map_with_path(draw, abstract_params(config))


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, tiny_config):
    """(config, params) of each architecture."""
    config = tiny_config.replace(**VARIANTS[request.param])
    return config, random_params(config)


@pytest.fixture(scope="module")
def tiny(tiny_config):
    """(config, params) where the architecture does not matter."""
    return tiny_config, random_params(tiny_config)


@pytest.fixture(scope="module")
def batch():
    """(encoder tokens, decoder tokens, encoder mask); inputs padded on the right."""
    rng = np.random.default_rng(0)
    encoder_tokens = rng.integers(2, 97, (3, S)).astype(np.int32)
    decoder_tokens = rng.integers(2, 97, (3, T)).astype(np.int32)
    decoder_tokens[:, 0] = 0
    mask = np.arange(S) < np.array(LENGTHS)[:, None]
    return encoder_tokens * mask, decoder_tokens, mask


@functools.partial(jit, static_argnames=("config", "policy"))
def logits_of(
    config, params, encoder_tokens, decoder_tokens, mask, segments=(None, None), policy=POLICY
):
    return bind(config, params, policy=policy)(
        encoder_tokens,
        decoder_tokens,
        encoder_mask=mask,
        encoder_segment_ids=segments[0],
        decoder_segment_ids=segments[1],
    )


# The reference


def reference_bucket(offset, config, bidirectional):
    kinds = config.relative_buckets // 2 if bidirectional else config.relative_buckets
    exact, distance = kinds // 2, abs(offset) if bidirectional else max(-offset, 0)
    first = kinds if bidirectional and offset > 0 else 0
    if distance < exact:
        return first + distance
    steps = math.log(distance / exact) / math.log(config.relative_max_distance / exact)
    return first + min(exact + int(steps * (kinds - exact)), kinds - 1)


def reference_logits(config, params, encoder_tokens, decoder_tokens):
    """[T, V] float64 for one unpadded row; as the papers have it (arXiv:1910.10683, 2002.05202)."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    activation = {
        "relu": lambda x: np.maximum(x, 0),
        "silu": lambda x: x / (1 + np.exp(-x)),
        "gelu_tanh": lambda x: x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
    }[config.activation]

    def norm(x, weights):
        mean_square = np.mean(x**2, axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + config.norm_epsilon) * weights["scale"]

    def attention(x, states, weights, bias):
        result = 0
        for n in range(config.num_heads):
            part = slice(n * config.d_kv, (n + 1) * config.d_kv)
            queries, keys = x @ weights["query"][:, part], states @ weights["key"][:, part]
            scores = queries @ keys.T + bias[n]
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
            result = result + scores @ states @ weights["value"][:, part] @ weights["out"][part]
        return result

    def feed_forward(x, weights):
        hidden = activation(x @ weights["wi"])
        if config.gated_ff:
            hidden = hidden * (x @ weights["wi_linear"])
        return hidden @ weights["wo"]

    def bias(stack, layer, length, bidirectional):
        owner = stack["layers"] if config.relative_bias_per_layer else stack
        table = owner["relative_bias"]["embedding"]
        table = table[layer] if config.relative_bias_per_layer else table
        result = np.zeros((config.num_heads, length, length))
        for query in range(length):
            for key in range(length):
                row = reference_bucket(key - query, config, bidirectional)
                result[:, query, key] = table[row]
                if key > query and not bidirectional:
                    result[:, query, key] = -np.inf
        return result

    table = params["token_embedder"]["embedding"]
    states = table[encoder_tokens]
    encoder = params["encoder"]
    for i in range(config.num_encoder_layers):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], encoder["layers"])
        h = norm(states, layer["attention_norm"])
        states = states + attention(h, h, layer["attention"], bias(encoder, i, len(h), True))
        states = states + feed_forward(norm(states, layer["mlp_norm"]), layer["mlp"])
    states = norm(states, encoder["final_norm"])

    x = table[decoder_tokens]
    decoder = params["decoder"]
    for i in range(config.num_decoder_layers):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], decoder["layers"])
        h = norm(x, layer["self_attention_norm"])
        x = x + attention(h, h, layer["self_attention"], bias(decoder, i, len(h), False))
        h = norm(x, layer["cross_attention_norm"])
        x = x + attention(h, states, layer["cross_attention"], np.zeros(config.num_heads))
        x = x + feed_forward(norm(x, layer["mlp_norm"]), layer["mlp"])
    x = norm(x, decoder["final_norm"])
    if config.scale_logits:
        x = x / math.sqrt(config.d_model)
    return x @ (table.T if config.tie_embeddings else params["output"]["kernel"])


# What it computes


def test_t5_logits_equal_float64(variant, batch):
    config, params = variant
    logits = logits_of(config, params, *batch)
    assert logits.dtype == jnp.float32
    for row, length in enumerate(LENGTHS):
        expected = reference_logits(config, params, batch[0][row, :length], batch[1][row])
        np.testing.assert_allclose(logits[row], expected, atol=ABSOLUTE)


@functools.partial(jit, static_argnames=("config", "policy"))
def logits_by_steps(config, params, encoder_tokens, decoder_tokens, mask, *, policy=POLICY):
    """[B, T, V] and the last cache; it has more room than tokens, as when a loop stops early."""
    bound = bind(config, params, policy=policy)
    states = bound.encode(encoder_tokens, encoder_mask=mask)
    step, cache = bound.incremental_decoder().start(states, encoder_mask=mask, max_len=T + 3)

    def one(cache, tokens):
        logits, cache = step(tokens, cache)
        return cache, logits

    cache, logits = jax.lax.scan(one, cache, decoder_tokens.T)
    return logits.swapaxes(0, 1), cache


def test_t5_decoding_equals_teacher_forcing_at_every_position(variant, batch):
    config, params = variant
    logits, cache = logits_by_steps(config, params, *batch)
    np.testing.assert_allclose(logits, logits_of(config, params, *batch), atol=ABSOLUTE)
    assert cache.position == T


def test_t5_padding_on_the_left_equals_padding_on_the_right(variant, batch):
    config, params = variant
    encoder_tokens, decoder_tokens, mask = batch
    left = [
        np.array(list(map(np.roll, part, S - np.array(LENGTHS)))) for part in (encoder_tokens, mask)
    ]
    assert left[1][:, -1].all()
    np.testing.assert_allclose(
        logits_of(config, params, left[0], decoder_tokens, left[1]),
        logits_of(config, params, *batch),
        atol=ABSOLUTE,
    )


def test_t5_padded_row_equals_row_alone(tiny, batch):
    encoder_tokens, decoder_tokens, mask = batch
    alone = (encoder_tokens[1:2, :5], decoder_tokens[1:2], mask[1:2, :5])
    assert LENGTHS[1] == 5
    np.testing.assert_allclose(
        logits_of(*tiny, *alone)[0], logits_of(*tiny, *batch)[1], atol=ABSOLUTE
    )


def test_t5_ids_of_padding_do_not_matter(tiny, batch):
    encoder_tokens, decoder_tokens, mask = batch
    changed = np.where(mask, encoder_tokens, np.int32(55))
    np.testing.assert_array_equal(
        logits_of(*tiny, changed, decoder_tokens, mask), logits_of(*tiny, *batch)
    )


@pytest.mark.parametrize("position", [0, 8, T - 1])
def test_t5_logits_do_not_see_later_targets(variant, batch, position):
    config, params = variant
    encoder_tokens, decoder_tokens, mask = batch
    changed = decoder_tokens.copy()
    changed[:, position] = 96 - changed[:, position]
    before = np.asarray(logits_of(config, params, *batch))
    after = np.asarray(logits_of(config, params, encoder_tokens, changed, mask))
    # Masked weights are exactly 0, so nothing rounds differently.
    np.testing.assert_array_equal(after[:, :position], before[:, :position])
    assert np.abs(after - before)[:, position:].max(axis=(0, 2)).min() > 1e-3


def test_t5_input_without_tokens_is_finite_and_leaves_other_rows(tiny, batch):
    encoder_tokens, decoder_tokens, mask = batch
    blind = mask.copy()
    blind[0] = False
    found = np.asarray(logits_of(*tiny, encoder_tokens, decoder_tokens, blind))
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[1:], logits_of(*tiny, *batch)[1:])


def test_t5_packed_examples_have_the_logits_of_separate_ones(tiny):
    rng = np.random.default_rng(1)
    inputs = [rng.integers(2, 97, n).astype(np.int32) for n in (4, 5)]
    targets = [rng.integers(2, 97, n).astype(np.int32) for n in (7, 6)]
    pads = np.zeros(2, np.int32)
    packed = (np.concatenate([*inputs, pads])[None], np.concatenate([*targets, pads])[None])
    segments = (
        np.repeat([1, 2, 0], [4, 5, 2]).astype(np.int32)[None],
        np.repeat([1, 2, 0], [7, 6, 2]).astype(np.int32)[None],
    )
    logits = np.asarray(logits_of(*tiny, *packed, segments[0] > 0, segments))[0]
    assert np.isfinite(logits).all()
    parts = map(functools.partial(reference_logits, *tiny), inputs, targets)
    np.testing.assert_allclose(logits[:13], np.concatenate([*parts]), atol=ABSOLUTE)


def test_t5_segment_ids_of_one_side_are_refused(tiny, batch):
    bound = bind(*tiny)
    with pytest.raises(ValueError, match="segment ids must be given for both"):
        bound.decode(
            jnp.asarray(batch[1]),
            jnp.zeros((3, S, 16)),
            encoder_mask=jnp.asarray(batch[2]),
            decoder_segment_ids=jnp.ones((3, T), jnp.int32),
        )


@pytest.mark.parametrize(
    "compute", [logits_of, lambda *args, policy: logits_by_steps(*args, policy=policy)[0]]
)
def test_t5_bfloat16_logits_are_float32_and_close(tiny, batch, compute):
    config, params = tiny
    exact = np.asarray(logits_of(config, params, *batch))
    half = compute(config, params, *batch, policy=BFLOAT16)
    assert half.dtype == jnp.float32
    # Some 20 roundings of relative size 2**-9 on the way, which add up like a random walk.
    error = np.sqrt(np.mean((np.asarray(half) - exact) ** 2)) / exact.std()
    assert 1e-3 < error < 5e-2


def test_t5_bfloat16_states_and_cache_are_bfloat16(tiny, batch):
    config, params = tiny
    encoder_tokens, _, mask = map(jnp.asarray, batch)

    def start(params):
        bound = bind(config, params, policy=BFLOAT16)
        states = bound.encode(encoder_tokens, encoder_mask=mask)
        return states, bound.incremental_decoder().start(states, encoder_mask=mask, max_len=4)[1]

    states, cache = jax.eval_shape(start, params)
    found = {leaf.dtype for leaf in (states, *cache.keys, *cache.values)}
    assert found == {jnp.dtype("bfloat16")}


def test_t5_unknown_id_becomes_nan(tiny, batch):
    encoder_tokens, decoder_tokens, mask = batch
    wrong = encoder_tokens.copy()
    wrong[0, 2] = 97
    logits = np.asarray(logits_of(*tiny, wrong, decoder_tokens, mask))
    assert np.isnan(logits[0]).all()
    assert np.isfinite(logits[1:]).all()


@pytest.mark.parametrize("token", [-1, -100])
def test_t5_negative_id_becomes_nan(tiny, batch, token):
    encoder_tokens, decoder_tokens, mask = batch
    wrong = decoder_tokens.copy()
    wrong[0, 5] = token
    logits = np.asarray(logits_of(*tiny, encoder_tokens, wrong, mask))
    assert np.isnan(logits[0, 5:]).all()
    assert np.isfinite(logits[1:]).all()


@functools.partial(jit, static_argnames="config")
def states_and_logits_with_dropout(config, params, encoder_tokens, decoder_tokens, mask, key):
    bound = bind(config, params)
    states = bound.encode(encoder_tokens, encoder_mask=mask, dropout_key=key)
    return states, bound(encoder_tokens, decoder_tokens, encoder_mask=mask, dropout_key=key)


def dropout_key(seed):
    return jax.random.key(seed, impl="unsafe_rbg")  # compiles fastest


def test_t5_dropout_needs_a_key_and_repeats_with_it(tiny, batch):
    config, params = tiny[0].replace(dropout_rate=0.3), tiny[1]
    evaluated = np.asarray(logits_of(config, params, *batch))
    np.testing.assert_array_equal(evaluated, logits_of(*tiny, *batch))
    first, again, other = (
        np.asarray(states_and_logits_with_dropout(config, params, *batch, dropout_key(seed))[1])
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 0.1
    assert np.abs(first - evaluated).mean() > 0.1


def test_t5_dropout_of_final_states_is_shared_by_positions_in_the_decoder_alone(tiny, batch):
    # The first logits are the decoder's states themselves.
    params = changed(tiny[1], "output/kernel", jnp.eye(16, 97))
    config = tiny[0].replace(dropout_rate=0.3)
    states, logits = states_and_logits_with_dropout(config, params, *batch, dropout_key(0))
    encoder, decoder = np.asarray(states) == 0, np.asarray(logits)[..., :16] == 0
    np.testing.assert_array_equal(decoder, decoder[:, :1].repeat(T, axis=1))
    assert len({row.tobytes() for row in decoder[:, 0]}) == 3
    assert len({state.tobytes() for row in encoder for state in row}) > 20
    for dropped in (encoder, decoder[:, 0]):
        assert 0.1 < dropped.mean() < 0.5


def test_t5_dropout_differs_between_layers(tiny, batch):
    config, params = tiny[0].replace(dropout_rate=0.3), tiny[1]
    encoder_tokens, _, mask = (part[:1] for part in batch)

    @jit
    @jax.grad
    def total(params, encoder_tokens, mask, key):
        bound = bind(config, params)
        return bound.encode(encoder_tokens, encoder_mask=mask, dropout_key=key).sum()

    gradient = total(params, encoder_tokens, mask, dropout_key(0))
    # A hidden unit that is dropped at all positions leaves a row of zeros, an output a column.
    untouched = np.asarray(gradient["encoder"]["layers"]["mlp"]["wo"]) == 0
    hidden, outputs = untouched.all(axis=2), untouched.all(axis=1)
    for dropped in (hidden, outputs):
        assert 0.1 < dropped.mean() < 0.5
        assert not np.array_equal(dropped[0], dropped[1])


# Gradients


def weighted_sum(logits):
    """Some scalar of [T, V] whose gradient is nowhere zero."""
    factors = np.sin(np.arange(math.prod(logits.shape), dtype=np.float32))
    return (logits * factors.reshape(logits.shape)).sum()


@functools.cache
def value_and_gradient(config, remat="none"):
    """Of `weighted_sum` for the first row of `batch`, as a function of params and batch."""

    @jit
    @jax.value_and_grad
    def total(params, encoder_tokens, decoder_tokens, mask):
        model = bind(config, params, policy=ComputePolicy(remat=remat))
        logits = model(encoder_tokens, decoder_tokens, encoder_mask=mask)
        return weighted_sum(logits[0])

    return total


@pytest.mark.parametrize("name", ["v1_1", "per_layer_bias"])
def test_t5_bias_gradient_equals_finite_differences(tiny_config, batch, name):
    config = tiny_config.replace(**VARIANTS[name])
    params = random_params(config)
    _, gradient = value_and_gradient(config)(params, *batch)

    def difference(path, index, epsilon=1e-5):
        totals = []
        for change in (epsilon, -epsilon):
            moved = jax.tree.map(lambda leaf: np.array(leaf, np.float64), params)
            functools.reduce(dict.__getitem__, path, moved)[index] += change
            totals.append(weighted_sum(reference_logits(config, moved, batch[0][0], batch[1][0])))
        return (totals[0] - totals[1]) / (2 * epsilon)

    layers = ("layers",) if config.relative_bias_per_layer else ()
    for stack in ("encoder", "decoder"):
        path = (stack, *layers, "relative_bias", "embedding")
        found = np.asarray(functools.reduce(dict.__getitem__, path, gradient))
        # A later key at distance 0 there is none, so its row of the encoder's table serves nobody.
        used = np.arange(8) != 4 if stack == "encoder" else np.ones(8, bool)
        np.testing.assert_array_equal(
            (found != 0).all(axis=-1), np.broadcast_to(used, found.shape[:-1])
        )
        for row in (0, 3, 7):
            index = (1, row, 2) if layers else (row, 2)
            # float32 sums over 1649 logits of size 1.
            np.testing.assert_allclose(found[index], difference(path, index), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_t5_remat_leaves_loss_and_gradients(tiny, batch, remat):
    config, params = tiny
    value, gradient = value_and_gradient(config)(params, *batch)
    again, recomputed = value_and_gradient(config, remat)(params, *batch)
    np.testing.assert_allclose(again, value, rtol=1e-5)
    # Fused differently, float32 sums differ in their last bits.
    for (path, expected), found in zip(
        jax.tree.leaves_with_path(gradient), jax.tree.leaves(recomputed), strict=True
    ):
        scale = float(jnp.abs(expected).max())
        assert scale > 0, path
        np.testing.assert_allclose(found, expected, atol=2e-5 * scale, err_msg=str(path))


def test_t5_remat_keeps_less_for_the_backward_pass(tiny, batch):
    config, params = tiny
    batch = [jnp.asarray(part) for part in batch]

    def kept(remat):
        def logits(params):
            bound = bind(config, params, policy=ComputePolicy(remat=remat))
            return bound(*batch[:2], encoder_mask=batch[2])

        backward = jax.eval_shape(lambda params: jax.vjp(logits, params)[1], params)
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(backward))

    assert kept("none") > 1.2 * kept("dots") > 1.44 * kept("full")


# Parameters


@pytest.fixture(scope="module")
def initial():
    """Large enough that a standard deviation is known to a few per cent."""
    config = T5Config(
        vocab_size=3000,
        d_model=96,
        d_ff=160,
        d_kv=24,
        num_heads=5,
        num_encoder_layers=3,
        num_decoder_layers=2,
    )
    init = jit(init_params, static_argnums=0)
    return config, init(config, jax.random.key(0))


def test_init_params_has_the_statistics_of_t5x(initial):
    config, params = initial
    d, f, h, j = config.d_model, config.d_ff, config.d_kv, config.num_heads * config.d_kv
    bound = math.sqrt(6 / (config.relative_buckets + config.num_heads))
    deviations = {
        "token_embedder/embedding": 1,
        "attention/query": (d * h) ** -0.5,
        "attention/key": d**-0.5,
        "attention/value": d**-0.5,
        "attention/out": j**-0.5,
        "mlp/wi": d**-0.5,
        "mlp/wi_linear": d**-0.5,
        "mlp/wo": f**-0.5,
        "output/kernel": d**-0.5,
        "relative_bias/embedding": bound / math.sqrt(3),
    }
    seen = set()
    for keys, leaf in jax.tree.leaves_with_path(params):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        assert leaf.dtype == jnp.float32
        if path.endswith("norm/scale"):
            assert np.all(np.asarray(leaf) == 1), path
            continue
        (name,) = [name for name in deviations if path.endswith(name)]
        seen.add(name)
        layers = np.asarray(leaf) if "layers" in path else np.asarray(leaf)[None]
        for layer in layers:
            # Five standard errors; those of a uniform's and truncated normal's are smaller.
            tolerance = 5 / math.sqrt(2 * layer.size)
            np.testing.assert_allclose(layer.std(), deviations[name], rtol=tolerance, err_msg=path)
            assert abs(layer.mean()) < 5 * deviations[name] / math.sqrt(layer.size), path
        if "mlp" in path or name == "output/kernel":
            # Cut at two standard deviations of the normal before the cut, 1 / 0.8796 of it after.
            assert np.abs(layers).max() <= 2 / 0.8796 * deviations[name] * 1.001, path
        if "attention" in path:
            assert np.abs(layers).max() > 3 * deviations[name], path
        if name == "relative_bias/embedding":
            assert 0.9 * bound < np.abs(layers).max() <= bound, path
    assert seen == set(deviations)


def test_init_params_draws_every_parameter_anew(initial):
    _, params = initial
    drawn = [
        np.asarray(layer).ravel()[:60].tobytes()
        for keys, leaf in jax.tree.leaves_with_path(params)
        if not str(keys).count("scale")
        for layer in (leaf if "layers" in str(keys) else leaf[None])
    ]
    assert len(set(drawn)) == len(drawn)


def test_init_params_of_v1_1_gives_the_loss_of_a_guess(initial):
    config, params = initial
    tokens = np.random.default_rng(0).integers(2, 3000, (4, 33)).astype(np.int32)
    logits = logits_of(config, params, tokens, tokens, np.ones(tokens.shape, bool))
    targets = np.roll(tokens, -1, axis=1)
    chosen = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), targets[..., None], -1)
    # Logits of variance 1 cost half a nat on top of ln V = 8.0.
    np.testing.assert_allclose(-chosen.mean(), math.log(3000), rtol=0.1)


def test_init_params_of_a_tied_model_has_no_output(tiny_config):
    assert "output" in abstract_params(tiny_config)
    assert "output" not in abstract_params(tiny_config.replace(tie_embeddings=True))


def test_t5_splits_without_shared_references(variant):
    config, params = variant
    _, state = nnx.split(bind(config, params), graph=False)
    split = nnx.to_pure_dict(state)
    assert jax.tree.structure(split) == jax.tree.structure(params)
    for given, found in zip(jax.tree.leaves(params), jax.tree.leaves(split), strict=True):
        assert found is given


def changed(params, path, leaf):
    """A copy of the nested dict with one leaf set, or taken out where `leaf` is None."""
    owner = copy = jax.tree.map(lambda x: x, params)
    *parents, name = path.split("/")
    for parent in parents:
        owner = owner.setdefault(parent, {})
    if leaf is None:
        del owner[name]
    else:
        owner[name] = leaf
    return copy


def test_bind_names_missing_parameter_and_its_shape(tiny):
    wrong = changed(tiny[1], "decoder/layers/mlp/wo", None)
    with pytest.raises(ValueError, match=r"decoder/layers/mlp/wo of shape \(3, 24, 16\)"):
        bind(tiny[0], wrong)


def test_bind_names_parameter_of_wrong_shape_and_both_shapes(tiny):
    wrong = changed(tiny[1], "encoder/layers/attention/out", jnp.zeros((2, 16, 15)))
    message = r"encoder/layers/attention/out .*\(2, 15, 16\).* got \(2, 16, 15\); .*another config"
    with pytest.raises(ValueError, match=message):
        bind(tiny[0], wrong)


def test_bind_names_parameter_it_has_no_use_for(tiny):
    wrong = changed(tiny[1], "decoder/lm_head/kernel", jnp.zeros((16, 97)))
    with pytest.raises(ValueError, match=r"decoder/lm_head/kernel.*does not use"):
        bind(tiny[0], wrong)
    with pytest.raises(ValueError, match=r"output/kernel.*does not use"):
        bind(tiny[0].replace(tie_embeddings=True), tiny[1])


def test_bind_takes_bfloat16_params(tiny, batch):
    config, params = tiny
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    whole = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    np.testing.assert_allclose(
        logits_of(config, half, *batch), logits_of(config, whole, *batch), atol=ABSOLUTE
    )


def test_bind_leaves_params_as_they_were(tiny):
    before = jax.tree.structure(tiny[1])
    bind(*tiny)
    assert jax.tree.structure(tiny[1]) == before
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tiny[1]))


def test_t5_without_decoder_encodes_and_nothing_else(tiny, batch):
    encoder_tokens, decoder_tokens, mask = map(jnp.asarray, batch)
    config = tiny[0].replace(num_decoder_layers=0)
    assert set(abstract_params(config)) == {"token_embedder", "encoder"}
    params = {name: tiny[1][name] for name in ("token_embedder", "encoder")}
    bound = bind(config, params)
    whole = bind(*tiny)
    states = bound.encode(encoder_tokens, encoder_mask=mask)
    np.testing.assert_allclose(
        states, whole.encode(encoder_tokens, encoder_mask=mask), atol=ABSOLUTE
    )
    with pytest.raises(ValueError, match=r"must have a decoder.*num_decoder_layers = 0; use"):
        bound(encoder_tokens, decoder_tokens, encoder_mask=mask)
    with pytest.raises(ValueError, match="must have a decoder"):
        bound.incremental_decoder().start(states, encoder_mask=mask, max_len=4)


# Which axis of a parameter, without its layer axis, lies on which axis of the mesh.
INWARD, OUTWARD = ("fsdp", "tensor"), ("tensor", "fsdp")
LAYOUT = {
    "token_embedder/embedding": OUTWARD,
    "output/kernel": INWARD,
    "query": INWARD,
    "key": INWARD,
    "value": INWARD,
    "out": OUTWARD,
    "wi": INWARD,
    "wi_linear": INWARD,
    "wo": OUTWARD,
    "scale": (None,),
    "relative_bias/embedding": (None, None),
}


def test_partition_rules_lay_out_every_parameter_of_every_preset():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    every = {T5Config.preset(name) for name in preset_fields()}
    used = set()
    for config in every:
        params = abstract_params(config)
        found = infer_shardings(params, mesh=mesh, rules=get_family(config).partition_rules)
        leaves = zip(jax.tree.leaves_with_path(params), jax.tree.leaves(found), strict=True)
        for (keys, leaf), where in leaves:
            path = jax.tree_util.keystr(keys, simple=True, separator="/")
            (name,) = [name for name in LAYOUT if f"/{path}".endswith(f"/{name}")]
            used.add(name)
            layer_axis = (None,) if "layers" in path.split("/") else ()
            assert is_stacked(path) == bool(layer_axis)
            assert len(layer_axis + LAYOUT[name]) == leaf.ndim, path
            expected = NamedSharding(mesh, P(*layer_axis, *LAYOUT[name]))
            assert where.is_equivalent_to(expected, leaf.ndim), path
    assert used == set(LAYOUT)
