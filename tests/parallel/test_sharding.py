"""Meshes, rules, and a model computed on eight devices as on one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from t5jax.models.config import T5Config
from t5jax.models.families import FAMILIES
from t5jax.models.t5 import abstract_params, bind, is_stacked
from t5jax.optim.optimizer import OptimizerConfig, make_optimizer
from t5jax.optim.schedules import ScheduleConfig
from t5jax.parallel.mesh import MeshConfig, make_mesh
from t5jax.parallel.sharding import BATCH_SPEC, Sharder, infer_shardings, num_shards, on_cpu
from t5jax.training.loss import cross_entropy

RULES = FAMILIES["t5"].partition_rules


@pytest.fixture(scope="module")
def cube():
    """Eight devices, two along every axis."""
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


def test_make_mesh_of_one_device_is_all_ones():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "sequence": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1, 1)),
        (MeshConfig(fsdp=4), (2, 4, 1, 1)),
        (MeshConfig(fsdp=2, tensor=2), (2, 2, 1, 2)),
        (MeshConfig(data=1, fsdp=-1, tensor=2), (1, 4, 1, 2)),
        (MeshConfig(data=2, fsdp=2, tensor=-1), (2, 2, 1, 2)),
        (MeshConfig(data=8, fsdp=-1), (8, 1, 1, 1)),
    ],
)
def test_make_mesh_gives_remaining_devices_to_minus_one(config, shape):
    mesh = make_mesh(config)
    assert mesh.axis_names == ("data", "fsdp", "sequence", "tensor")
    assert mesh.devices.shape == shape
    assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
    ("config", "product"),
    [
        (MeshConfig(fsdp=3), "fsdp=3"),
        (MeshConfig(fsdp=16), "fsdp=16 x sequence=1 x tensor=1 = 16"),
        (MeshConfig(data=2, tensor=2), "data=2 x fsdp=1 x sequence=1 x tensor=2 = 4"),
    ],
)
def test_make_mesh_refuses_axes_that_do_not_fit_the_devices(config, product):
    with pytest.raises(ValueError, match=rf"number of devices, 8, got .*{product}"):
        make_mesh(config)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"fsdp": 0}, "mesh axis fsdp must be positive or -1, got 0"),
        ({"tensor": -2}, "mesh axis tensor must be positive or -1, got -2"),
        ({"data": -1, "fsdp": -1}, "at most one mesh axis may be -1"),
    ],
)
def test_mesh_config_refuses(sizes, message):
    with pytest.raises(ValueError, match=message):
        MeshConfig(**sizes)


@dataclasses.dataclass(frozen=True)
class SliceDevice:
    """What a mesh wants to know of a device that is not here."""

    id: int
    slice_index: int
    process_index: int = 0
    device_kind: str = "none"
    platform: str = "none"


def test_make_mesh_divides_dcn_axes_over_slices():
    devices = [SliceDevice(i, slice_index=i % 2) for i in range(8)]
    shape = make_mesh(MeshConfig(data=2, fsdp=4, dcn_data=2), devices).devices
    assert shape.shape == (2, 4, 1, 1)
    assert {d.slice_index for d in shape[0].flat} == {0}
    assert {d.slice_index for d in shape[1].flat} == {1}
    shape = make_mesh(MeshConfig(data=2, fsdp=4, dcn_fsdp=2), devices).devices
    for row in shape[:, :, 0, 0]:
        assert [d.slice_index for d in row] == [0, 0, 1, 1]


def test_make_mesh_refuses_dcn_axes_that_are_not_the_slices():
    devices = [SliceDevice(i, slice_index=i // 4) for i in range(8)]
    with pytest.raises(ValueError, match="number of slices, 2, got 4 x 1"):
        make_mesh(MeshConfig(dcn_data=4), devices)
    with pytest.raises(
        ValueError, match="mesh axis fsdp must be a multiple of dcn_fsdp = 2, got 1"
    ):
        make_mesh(MeshConfig(dcn_fsdp=2), devices)
    with pytest.raises(ValueError, match="dcn_data must be at least 1, got 0"):
        MeshConfig(dcn_data=0)


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_shardings_follow_the_first_rule_that_covers_whole_parts_of_the_path(cube):
    tree = {
        "mlp": {"wi": array(4, 6), "wi_linear": array(4, 6)},
        "other_mlp": {"wi": array(4, 6)},
        "deep": {"mlp": {"wi": {"row": array(4, 6)}}},
    }
    rules = [("mlp/wi", P("fsdp", "tensor")), ("wi|wi_linear", P(None, "data"))]
    found = jax.tree.map(lambda where: where.spec, infer_shardings(tree, mesh=cube, rules=rules))
    assert found == {
        "mlp": {"wi": P("fsdp", "tensor"), "wi_linear": P(None, "data")},
        "other_mlp": {"wi": P(None, "data")},
        "deep": {"mlp": {"wi": {"row": P("fsdp", "tensor")}}},
    }


def test_shardings_leave_scalars_and_axes_of_size_1_whole(cube):
    tree = {"count": array(), "kernel": {"row": array(4, 1), "col": array(1, 6), "full": array(4)}}
    rules = [("row|col", P("fsdp", "tensor")), ("full", P("tensor"))]
    found = infer_shardings(tree, mesh=cube, rules=rules)
    expected = {
        "count": P(),
        "kernel": {"row": P("fsdp", None), "col": P(None, "tensor"), "full": P("tensor")},
    }
    for leaf, where, spec in zip(
        *map(jax.tree.leaves, (tree, found)),
        jax.tree.leaves(expected, is_leaf=lambda x: isinstance(x, P)),
        strict=True,
    ):
        assert where.is_equivalent_to(NamedSharding(cube, spec), leaf.ndim)


def test_shardings_on_one_device_ask_for_no_divisor():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    shardings = infer_shardings({"w": array(97, 15)}, mesh=mesh, rules=[("w", P("tensor", "fsdp"))])
    assert shardings["w"].shard_shape((97, 15)) == (97, 15)


def test_shardings_take_two_mesh_axes_for_one_array_axis(cube):
    rules = [("w", P(("data", "fsdp")))]
    (where,) = jax.tree.leaves(infer_shardings({"w": array(8, 3)}, mesh=cube, rules=rules))
    assert where.shard_shape((8, 3)) == (2, 3)
    with pytest.raises(ValueError, match=r"w has shape \(6, 3\).*divisor of 6"):
        infer_shardings({"w": array(6, 3)}, mesh=cube, rules=rules)


def test_shardings_refuse_path_without_rule(cube):
    with pytest.raises(ValueError, match=r"no sharding rule matches a/kernel of shape \(4, 6\)"):
        infer_shardings({"a": {"kernel": array(4, 6)}}, mesh=cube, rules=[("kern", P())])


def test_shardings_refuse_axis_that_mesh_does_not_divide(tiny_config, cube):
    params = abstract_params(tiny_config)
    message = r"mesh axis tensor = 2 .* has shape \(.*15.*\); choose a divisor of 15"
    with pytest.raises(ValueError, match=message):
        infer_shardings(params, mesh=cube, rules=RULES)


def test_shardings_refuse_rule_of_more_axes_than_array(cube):
    with pytest.raises(ValueError, match=r"b has shape \(4,\), fewer axes than"):
        infer_shardings({"b": array(4)}, mesh=cube, rules=[("b", P("fsdp", "tensor"))])


# Every width divides by two, and matrices reach the size from which Adafactor factors moments.
WIDE = T5Config(
    vocab_size=256,
    d_model=128,
    d_ff=130,
    d_kv=32,
    num_heads=4,
    num_encoder_layers=2,
    num_decoder_layers=3,
    relative_buckets=8,
    relative_max_distance=12,
)


@pytest.mark.parametrize(
    ("name", "moments"),
    [("adafactor", {"row", "col", "full"}), ("muon", {"momentum", "mu", "nu"})],
)
def test_shardings_of_moments_follow_their_parameters(cube, name, moments):
    constant = ScheduleConfig(name="constant", learning_rate=1e-3, warmup_steps=0)
    config = OptimizerConfig(name=name, schedule=constant)
    tx = make_optimizer(config, total_steps=1, stacked=is_stacked)
    params = abstract_params(WIDE)
    state = jax.eval_shape(tx.init, params)
    found = infer_shardings({"opt_state": state}, mesh=cube, rules=RULES)["opt_state"]
    assert found.count.is_equivalent_to(NamedSharding(cube, P()), 0)

    kinds = set()
    of_params = infer_shardings(params, mesh=cube, rules=RULES)
    for path, leaf in jax.tree.leaves_with_path(state.moments):
        *parameter, name = (key.key for key in path)
        kinds.add(name)
        where, owner, moment = of_params, params, found.moments
        for key in parameter:
            where, owner, moment = where[key], owner[key], moment[key]
        spec = (*where.spec, *[None] * owner.ndim)[: owner.ndim]
        expected = [axis if n > 1 else None for axis, n in zip(spec, leaf.shape, strict=True)]
        assert moment[name].is_equivalent_to(NamedSharding(cube, P(*expected)), leaf.ndim)
        if name == "row":
            assert leaf.size < owner.size
    assert kinds == moments


def test_sharder_without_a_mesh_leaves_activations_as_they_are():
    x = jnp.ones((3, 5, 7))
    assert Sharder().constrain_activations(x) is x
    assert Sharder().num_shards() == 1
    assert Sharder.from_context() == Sharder()
    assert Sharder().platform == jax.default_backend()


def test_sharder_divides_examples_and_positions():
    mesh = make_mesh(MeshConfig(data=2, fsdp=1, sequence=2, tensor=2))
    x = np.arange(4 * 6 * 3, dtype=np.float32).reshape(4, 6, 3)
    constrained = jax.jit(Sharder(mesh).constrain_activations)(x)
    assert {shard.data.shape for shard in constrained.addressable_shards} == {(2, 3, 3)}
    np.testing.assert_array_equal(constrained, x)
    with jax.set_mesh(mesh):
        same = jax.jit(lambda x: Sharder.from_context().constrain_activations(x))(x)
        assert Sharder.from_context().num_shards() == Sharder(mesh).num_shards() == 2
    assert same.sharding.is_equivalent_to(constrained.sharding, 3)


def test_model_finds_the_mesh_that_it_is_given_or_that_is_set(cube):
    config = WIDE.replace(num_encoder_layers=1, num_decoder_layers=1)
    params = abstract_params(config)
    assert bind(config, params).sharder == Sharder()
    assert bind(config, params, sharder=Sharder(cube)).encoder.sharder == Sharder(cube)
    with jax.set_mesh(cube):
        model = bind(config, params)
    for layer in (model.encoder, model.decoder.layers.cross_attention, model.encoder.layers.mlp):
        assert dict(layer.sharder.mesh.shape) == dict(cube.shape)


def test_platform_is_that_of_the_devices_of_the_mesh(cube):
    assert on_cpu()
    assert Sharder(cube).platform == Sharder(cube.abstract_mesh).platform == "cpu"
    # Such as those that a plan compiles for.
    absent = [
        SliceDevice(i, slice_index=0, device_kind="TPU v5 lite", platform="tpu") for i in range(8)
    ]
    devices = np.array(absent, dtype=object).reshape(cube.devices.shape)
    mesh = jax.sharding.Mesh(devices, cube.axis_names, axis_types=cube.axis_types)
    assert Sharder(mesh).platform == "tpu"


def test_num_shards_is_the_product_of_axes(cube):
    assert num_shards(cube) == 4
    assert num_shards(cube, ("tensor",)) == 2
    assert num_shards(cube, ("data", "fsdp", "sequence", "tensor")) == 8
    assert num_shards(cube, ("elsewhere",)) == num_shards(cube, ()) == 1


def test_sharded_model_equals_one_device(cube):
    config = WIDE.replace(vocab_size=64, d_model=16, d_ff=24, d_kv=6, num_heads=2)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32),
        abstract_params(config),
    )
    encoder_tokens = rng.integers(2, 64, (8, 9)).astype(np.int32)
    targets = rng.integers(2, 64, (8, 7)).astype(np.int32)
    mask = np.arange(9) < rng.integers(1, 10, (8, 1))
    weights = (np.arange(7) < rng.integers(1, 8, (8, 1))).astype(np.float32)
    batch = (encoder_tokens, np.roll(targets, 1, axis=1), mask, targets, weights)

    def compute(params, encoder_tokens, decoder_tokens, mask, targets, weights):
        logits = bind(config, params)(encoder_tokens, decoder_tokens, encoder_mask=mask)
        return logits, cross_entropy(logits, targets, weights, z_loss=1e-4, label_smoothing=0.0)

    where = infer_shardings(params, mesh=cube, rules=RULES)
    of_batch = NamedSharding(cube, BATCH_SPEC)
    placed = jax.device_put(params, where), jax.device_put(batch, of_batch)
    wi = placed[0]["decoder"]["layers"]["mlp"]["wi"]
    assert {shard.data.shape for shard in wi.addressable_shards} == {(3, 8, 12)}
    assert {shard.data.shape for shard in placed[1][0].addressable_shards} == {(2, 9)}

    on_one = jax.jit(compute)(params, *batch)
    on_eight = jax.jit(compute, in_shardings=(where, *[of_batch] * 5))(placed[0], *placed[1])
    assert len(on_eight[0].sharding.device_set) == 8
    # Sums are split between devices, so float32 adds them in another order.
    np.testing.assert_allclose(on_eight[0], on_one[0], atol=1e-5)
    for eight, one in zip(on_eight[1], on_one[1], strict=True):
        np.testing.assert_allclose(eight, one, rtol=1e-5)
