"""Reading parameters from files to devices, and every way in which files do not fit a config.

Files hold raw bytes that numpy wrote; names and axes of the formats are tested in test_names.py.
"""

import dataclasses
import functools
import hashlib
import itertools
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers.trees import assert_same_bits, flat

from t5jax.checkpoint.trees import shapes_by_path
from t5jax.models import t5
from t5jax.models.config import T5Config
from t5jax.models.families import FAMILIES
from t5jax.parallel.mesh import MeshConfig, make_mesh
from t5jax.parallel.sharding import infer_shardings
from t5jax.pretrained import source as sources
from t5jax.pretrained.formats import lazy_array
from t5jax.pretrained.formats.lazy_array import FileRegion, LazyArray
from t5jax.pretrained.hf.load import hf_name_map
from t5jax.pretrained.name_map import Leaf
from t5jax.pretrained.source import CheckpointSource, Weights, WrittenArray, checked_source
from t5jax.pretrained.t5x.load import t5x_name_map

FLOAT32, BFLOAT16, FLOAT16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype("float16")
DTYPES = [FLOAT32, BFLOAT16, FLOAT16]
# Eight devices divide every width that a mesh divides.
FULL = T5Config(
    vocab_size=64,
    d_model=16,
    d_kv=4,
    num_heads=2,
    d_ff=24,
    num_encoder_layers=2,
    num_decoder_layers=3,
    relative_buckets=6,
)
# Fewer parameters, of the same kinds.
CONFIG = FULL.replace(num_encoder_layers=3, num_decoder_layers=0, tie_embeddings=True)
NAMINGS = {
    "transposed": hf_name_map(gated=True),
    "straight": hf_name_map(gated=True, kind="flax_model.msgpack"),
    "scanned": t5x_name_map(scanned=True, gated=True),
}
QUERY = "encoder/layers/attention/query"


abstract_params = functools.cache(t5.abstract_params)
SHAPES = shapes_by_path(abstract_params(CONFIG))
FULL_SHAPES = shapes_by_path(abstract_params(FULL))


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch):
    """A few rows at once, as of parameters that are larger than a block; one trace of a config."""
    monkeypatch.setattr(lazy_array, "BLOCK_BYTES", 256)
    monkeypatch.setattr(sources, "abstract_params", abstract_params)


def random_values(dtype, shapes=SHAPES, seed=0):
    """Any bits but those of NaN, of which conversions may change the payload."""
    rng = np.random.default_rng(seed)
    found = {}
    for path, shape in shapes.items():
        size = int(np.prod(shape))
        values = np.frombuffer(rng.bytes(size * dtype.itemsize), dtype).copy()
        with np.errstate(invalid="ignore"):
            values[np.isnan(values)] = -0.0
        found[path] = values.reshape(shape)
    return found


def stored(path, values, form="transposed", *, config=CONFIG, dtypes=None):
    """A source of one file with these values; `dtypes` of the layers, in turn."""
    naming = NAMINGS[form]
    layout, found, content = {}, {}, b"junk"
    for ours, value in values.items():
        leaf = naming.leaf(ours, len(value))
        layout[ours] = leaf
        for i, (name, row) in enumerate(
            zip(leaf.names, value if leaf.per_layer else [value], strict=True)
        ):
            theirs = row.transpose(leaf.inverse(row.ndim))
            if dtypes is not None:
                theirs = theirs.astype(dtypes[i % len(dtypes)])
            found[name] = FileRegion(
                file=path,
                segments=((len(content), theirs.nbytes),),
                shape=theirs.shape,
                dtype=theirs.dtype,
            )
            content += theirs.tobytes()
    path.write_bytes(content)
    return CheckpointSource(
        path=path, format="raw", config=config, arrays=found, layout=layout, ignored={}, notes=()
    )


def stored_full(path, dtype, form="transposed"):
    return stored(path, random_values(dtype, FULL_SHAPES), form, config=FULL)


def bfloat16_of(values):
    """To the nearest, ties to even, in integers."""
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return rounded.astype(np.uint16).view(BFLOAT16)


@pytest.mark.parametrize("form", NAMINGS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_params_keep_the_bits_of_the_file(tmp_path, form, dtype):
    values = random_values(dtype, FULL_SHAPES)
    values[QUERY][0, 0, :3] = [np.nan, np.inf, -0.0]
    source = stored(tmp_path / "x", values, form, config=FULL)
    assert_same_bits(flat(source.load_params()), values)
    assert source.shapes == FULL_SHAPES
    assert {path: source.dtype(path) for path in values} == dict.fromkeys(values, dtype)
    assert {path: source.num_bytes(path) for path in values} == {
        path: value.nbytes for path, value in values.items()
    }


def test_params_are_on_the_first_device(tmp_path):
    params = stored(tmp_path / "x", random_values(FLOAT32)).load_params()
    assert {leaf.devices() == {jax.local_devices()[0]} for leaf in jax.tree.leaves(params)} == {
        True
    }
    assert jax.tree.structure(params) == jax.tree.structure(abstract_params(CONFIG))


@pytest.mark.parametrize(("dtype", "kind"), list(itertools.permutations(DTYPES, 2)), ids=str)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_params_are_converted_as_numpy_does(tmp_path, dtype, kind):
    values = random_values(dtype)
    source = stored(tmp_path / "x", values)
    expected = {path: value.astype(kind) for path, value in values.items()}
    assert_same_bits(flat(source.load_params(dtype=kind)), expected)


def test_params_round_to_bfloat16_ties_to_even(tmp_path):
    values = random_values(FLOAT32)
    ties = np.arange(0x3F80, 0x3F80 + 64, dtype=np.uint32) << 16 | 0x8000
    values["encoder/layers/mlp/wi"][0, :8, :8] = ties.view(np.float32).reshape(8, 8)
    found = stored(tmp_path / "x", values).load_params(dtype=BFLOAT16)
    assert_same_bits(flat(found), {path: bfloat16_of(value) for path, value in values.items()})


@pytest.mark.parametrize("form", ["transposed", "straight"])
def test_params_of_layers_of_several_types_widen_to_float32(tmp_path, form):
    values = random_values(FLOAT16)
    values = {path: (value.astype(np.float32) * 2**-8).round(4) for path, value in values.items()}
    source = stored(tmp_path / "x", values, form, dtypes=[BFLOAT16, FLOAT32, FLOAT16])
    found = flat(source.load_params())
    for path, value in values.items():
        if "/layers/" not in path:
            assert found[path].dtype == source.dtype(path) == BFLOAT16
            continue
        assert found[path].dtype == source.dtype(path) == FLOAT32
        kinds = [BFLOAT16, FLOAT32, FLOAT16][: len(value)]
        layers = [row.astype(kind).astype(FLOAT32) for row, kind in zip(value, kinds, strict=True)]
        assert np.asarray(found[path]).tobytes() == np.stack(layers).tobytes()
        assert source.num_bytes(path) == value[0].size * sum(kind.itemsize for kind in kinds)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """An array that counts how often each of its elements is asked for."""

    array: LazyArray
    count: np.ndarray

    @property
    def file(self):
        return self.array.file

    @property
    def shape(self):
        return self.array.shape

    @property
    def dtype(self):
        return self.array.dtype

    def blocks(self, index):
        self.count[index] += 1
        yield from self.array.blocks(index)


def recorded(source):
    found = {
        name: Recorded(array, np.zeros(array.shape, int)) for name, array in source.arrays.items()
    }
    return dataclasses.replace(source, arrays=found), [array.count for array in found.values()]


MESHES = {
    "data": MeshConfig(),
    "fsdp": MeshConfig(fsdp=8),
    "tensor": MeshConfig(tensor=8),
    "fsdp and tensor": MeshConfig(fsdp=4, tensor=2),
    "cube": MeshConfig(data=2, fsdp=2, tensor=2),
}


@pytest.mark.parametrize("form", ["transposed", "scanned"])
@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES.keys())
def test_params_of_a_mesh_give_every_device_its_part(tmp_path, form, mesh):
    mesh = make_mesh(mesh)
    values = random_values(BFLOAT16, FULL_SHAPES)
    source, counts = recorded(stored(tmp_path / "x", values, form, config=FULL))
    params = source.load_params(mesh=mesh)
    rules = FAMILIES["t5"].partition_rules
    wanted = infer_shardings(abstract_params(FULL), mesh=mesh, rules=rules)
    leaves = zip(flat(params), jax.tree.leaves(params), jax.tree.leaves(wanted), strict=True)
    for path, leaf, where in leaves:
        assert leaf.sharding == where
        assert len(leaf.addressable_shards) == 8
        for shard in leaf.addressable_shards:
            assert shard.data.devices() == {shard.device}
            assert shard.data.shape == where.shard_shape(leaf.shape)
            part = values[path][shard.index]
            assert np.asarray(shard.data).tobytes() == part.tobytes()
    # Also what several devices hold is read once.
    assert all(count.min() == count.max() == 1 for count in counts)


def test_params_of_a_mesh_are_converted(tmp_path):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    values = random_values(FLOAT32)
    found = stored(tmp_path / "x", values).load_params(mesh=mesh, dtype=BFLOAT16)
    expected = {path: bfloat16_of(value) for path, value in values.items()}
    assert_same_bits(flat(found), expected)


def test_params_refuse_a_mesh_that_does_not_divide_them(tmp_path, tiny_config):
    shapes = shapes_by_path(abstract_params(tiny_config))
    values = random_values(FLOAT32, shapes)
    source = stored(tmp_path / "x", values, config=tiny_config)
    with pytest.raises(ValueError, match="must divide every axis it shards"):
        source.load_params(mesh=make_mesh(MeshConfig(tensor=8)))


@pytest.mark.parametrize("form", ["transposed", "scanned"])
@pytest.mark.parametrize("dtype", [None, BFLOAT16], ids=str)
def test_params_read_every_element_once_and_say_so(tmp_path, form, dtype):
    source, counts = recorded(stored(tmp_path / "x", random_values(FLOAT32), form))
    told = []
    source.load_params(dtype=dtype, progress=told.append)
    assert all((count == 1).all() for count in counts)
    assert sum(told) == sum(source.num_bytes(path) for path in SHAPES)
    # The embedding, of 4096 bytes, not in one piece.
    assert max(told) <= 1024


def test_params_of_a_divided_mesh_tell_progress_of_the_same_sum(tmp_path):
    source = stored(tmp_path / "x", random_values(FLOAT16))
    told = []
    source.load_params(mesh=make_mesh(MeshConfig(fsdp=4, tensor=2)), progress=told.append)
    assert sum(told) == sum(source.num_bytes(path) for path in SHAPES)


@pytest.mark.parametrize("form", NAMINGS)
def test_params_of_odd_sizes(tmp_path, form, tiny_config):
    config = tiny_config.replace(relative_bias_per_layer=True, num_heads=1)
    values = random_values(BFLOAT16, shapes_by_path(abstract_params(config)))
    assert_same_bits(
        flat(stored(tmp_path / "x", values, form, config=config).load_params()), values
    )


def test_params_of_an_encoder_with_projection(tmp_path, tiny_config):
    config = tiny_config.replace(num_decoder_layers=0, tie_embeddings=True, projection_dim=7)
    values = random_values(FLOAT32, shapes_by_path(abstract_params(config)))
    assert values["projection/kernel"].shape == (16, 7)
    assert_same_bits(flat(stored(tmp_path / "x", values, config=config).load_params()), values)


@pytest.mark.parametrize("mesh", [None, MeshConfig(fsdp=4, tensor=2)], ids=["one", "mesh"])
def test_params_may_be_donated(tmp_path, mesh):
    """Memory that the device shares with numpy is not written to or freed too early."""
    values = random_values(FLOAT16)
    values = {path: np.nan_to_num(value.astype(FLOAT32)) for path, value in values.items()}
    source = stored(tmp_path / "x", values)
    kept = source.load_params(mesh=mesh and make_mesh(mesh))

    @functools.partial(jax.jit, donate_argnums=0)
    def donating(params):
        return jax.tree.map(lambda x: x * x.dtype.type(0.5), params)

    for _ in range(2):
        params = source.load_params(mesh=mesh and make_mesh(mesh))
        for _ in range(2):
            params = donating(params)
            # Takes the place of what was freed.
            junk = [np.full(value.shape, np.nan, np.float32) for value in values.values()]
            del junk
        halved = {path: value * np.float32(0.25) for path, value in values.items()}
        assert_same_bits(flat(params), halved)
    assert_same_bits(flat(kept), values)


@pytest.mark.parametrize("mesh", [None, MeshConfig(fsdp=4, tensor=2)], ids=["one", "mesh"])
@pytest.mark.parametrize("form", ["transposed", "scanned"])
def test_params_of_a_cut_file_name_it(tmp_path, mesh, form):
    file = tmp_path / "x"
    source = stored(file, random_values(FLOAT32), form)
    content = file.read_bytes()
    for length in (0, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match=f"^{file} ends within its data at byte {length}"):
            source.load_params(mesh=mesh and make_mesh(mesh))


@pytest.mark.parametrize(
    ("dtype", "calls"), [(None, 1), (FLOAT32, 1), (BFLOAT16, 0), (FLOAT16, 0)], ids=str
)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_params_are_checked_unless_they_were_rounded(tmp_path, dtype, calls):
    values = random_values(FLOAT32)
    seen = []
    source = dataclasses.replace(stored(tmp_path / "x", values), check=seen.append)
    params = source.load_params(dtype=dtype)
    assert len(seen) == calls
    assert all(given is params for given in seen)


def test_params_that_fail_their_check_are_not_returned(tmp_path):
    def check(params):
        raise ValueError("another sum")

    source = dataclasses.replace(stored(tmp_path / "x", random_values(FLOAT32)), check=check)
    with pytest.raises(ValueError, match="another sum"):
        source.load_params()


@pytest.mark.parametrize("form", ["transposed", "scanned"])
@pytest.mark.parametrize("dtype", [None, BFLOAT16], ids=str)
def test_weights_are_the_params_one_by_one(tmp_path, form, dtype):
    values = random_values(FLOAT32)
    told = []
    weights = stored(tmp_path / "x", values, form).weights(dtype=dtype, progress=told.append)
    assert weights.shapes == SHAPES
    assert weights.dtypes == dict.fromkeys(SHAPES, dtype or FLOAT32)
    assert told == []
    expected = values if dtype is None else {p: bfloat16_of(v) for p, v in values.items()}
    assert_same_bits({path: weights.read(path) for path in SHAPES}, expected)
    assert sum(told) == sum(value.nbytes for value in values.values())


@pytest.mark.parametrize("form", NAMINGS)
@pytest.mark.parametrize("threads", [1, 3, 8, 100])
def test_read_is_the_same_with_any_number_of_threads(tmp_path, monkeypatch, form, threads):
    monkeypatch.setattr(sources, "_THREADS", threads)
    values = random_values(FLOAT32)
    source = stored(tmp_path / "x", values, form)
    for path in (QUERY, "token_embedder/embedding", "encoder/final_norm/scale"):
        assert_same_bits({path: source.read(path, dtype=FLOAT32)}, {path: values[path]})


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return stored_full(tmp_path_factory.mktemp("source") / "x", FLOAT32)


def error_of(source, form="transposed", *, unknown=()) -> str:
    with pytest.raises(ValueError, match=f"^{re.escape(str(source.path))}") as caught:
        checked_source(source, NAMINGS[form], unknown=unknown)
    assert type(caught.value) is ValueError
    message = str(caught.value)
    assert "\n" not in message
    assert len(message.replace(str(source.path), "")) < 400
    return message.removeprefix(str(source.path))


def without(source, *paths):
    layout = {path: leaf for path, leaf in source.layout.items() if path not in paths}
    return dataclasses.replace(source, layout=layout)


def with_leaf(source, path, leaf):
    return dataclasses.replace(source, layout={**source.layout, path: leaf})


def with_array(source, name, shape, dtype=FLOAT32):
    size = int(np.prod(shape)) * dtype.itemsize
    array = FileRegion(file=source.path, segments=((0, size),), shape=shape, dtype=dtype)
    return dataclasses.replace(source, arrays={**source.arrays, name: array})


@pytest.mark.parametrize("form", NAMINGS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_checked_returns_what_fits(tmp_path, form, dtype):
    source = stored_full(tmp_path / "x", dtype, form)
    assert checked_source(source, NAMINGS[form], unknown=[]) is source


def test_checked_reads_no_values(tmp_path):
    source = stored_full(tmp_path / "x", FLOAT32)
    source.path.unlink()
    assert checked_source(source, NAMINGS["transposed"], unknown=[]) is source


@pytest.mark.parametrize(
    ("path", "name", "shape"),
    [
        ("token_embedder/embedding", "shared.weight", (64, 16)),
        ("encoder/final_norm/scale", "encoder.final_layer_norm.weight", (16,)),
        (QUERY, "encoder.block.0.layer.0.SelfAttention.q.weight", (8, 16)),
        ("decoder/layers/mlp/wo", "decoder.block.0.layer.2.DenseReluDense.wo.weight", (16, 24)),
        ("output/kernel", "lm_head.weight", (64, 16)),
    ],
)
def test_checked_names_what_is_missing(good, path, name, shape):
    assert error_of(without(good, path)) == (
        f" must contain {name} of shape {shape}, got none; it is incomplete, or its config belongs "
        "to another model."
    )


def test_checked_refuses_to_lack_any_parameter(good):
    for path in FULL_SHAPES:
        assert "got none; it is incomplete" in error_of(without(good, path))


def test_checked_names_what_is_computed_first(good):
    missing = ["output/kernel", "decoder/layers/self_attention/key", "encoder/layers/mlp/wo"]
    assert "encoder.block.0.layer.1.DenseReluDense.wo" in error_of(without(good, *missing))
    missing.append("token_embedder/embedding")
    assert "shared.weight" in error_of(without(good, *missing))


def test_checked_names_the_layer_after_the_last(good):
    path = "decoder/layers/cross_attention/out"
    leaf = good.layout[path]
    for count in (1, 2):
        message = error_of(with_leaf(good, path, leaf._replace(names=leaf.names[:count])))
        name = f"decoder.block.{count}.layer.1.EncDecAttention.o.weight"
        assert message.startswith(f" must contain {name} of shape (16, 8), got none")


@pytest.mark.parametrize("shape", [(16, 8), (8, 15), (8,), (8, 16, 1), (2, 8, 16), (), (0, 16)])
def test_checked_refuses_other_shapes(good, shape):
    name = "encoder.block.1.layer.0.SelfAttention.q.weight"
    assert error_of(with_array(good, name, shape)) == (
        f": {name} must have shape (8, 16) to match its config, got {shape}; they belong "
        "to different models."
    )


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "bool", "float8_e4m3fn"])
def test_checked_refuses_other_types(good, kind):
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    name = "decoder.block.2.layer.2.DenseReluDense.wi_1.weight"
    message = error_of(with_array(good, name, (24, 16), dtype))
    assert message.startswith(f": {name} must have dtype float32, bfloat16, float16, got {kind};")


def test_checked_names_a_wrong_layer_before_a_missing_one(good):
    leaf = good.layout[QUERY]
    short = with_leaf(good, QUERY, leaf._replace(names=leaf.names[:1]))
    assert "must have shape (8, 16)" in error_of(with_array(short, leaf.names[0], (8, 17)))


@pytest.mark.parametrize("count", [1, 3, 1000])
def test_checked_refuses_unknown_names(good, count):
    unknown = [f"tensor.{i:04}" for i in reversed(range(count))]
    assert error_of(good, unknown=unknown) == (
        f" contains {count} tensors that a T5 of its config does not use, first tensor.0000; it "
        "has another architecture or size."
    )


@pytest.mark.parametrize("name", ["x" * 10_000, "a\nb", "\x1b[2J", "Ü\u2028"])
def test_checked_shows_unknown_names_in_one_short_line(good, name):
    message = error_of(good, unknown=[name])
    assert message.isprintable()


def test_checked_refuses_layers_beyond_the_config(good):
    beyond = dataclasses.replace(good, config=FULL.replace(num_encoder_layers=1))
    # All of a layer: four kernels of attention, three of the other part, two norms.
    first = "encoder.block.1.layer.0.SelfAttention.k.weight"
    assert error_of(beyond).startswith(
        f" contains 9 tensors that a T5 of its config does not use, first {first}; it has another"
    )


def test_checked_refuses_parameters_that_the_config_does_not_have(good):
    tied = dataclasses.replace(good, config=FULL.replace(tie_embeddings=True))
    assert "1 tensors that a T5 of its config does not use, first lm_head" in error_of(tied)
    extra = with_leaf(good, "projection/kernel", Leaf(("2_Dense/linear.weight",), (1, 0), False))
    assert "first 2_Dense/linear.weight; it has" in error_of(extra)


@pytest.mark.parametrize("layers", [1, 3])
def test_checked_compares_layers_that_lie_in_one_array(tmp_path, layers):
    source = stored_full(tmp_path / "x", FLOAT32, "scanned")
    other = dataclasses.replace(source, config=FULL.replace(num_encoder_layers=layers))
    assert f"must have shape (16, {layers}, 8) to match its config, got (16, 2, 8)" in error_of(
        other, "scanned"
    )


def test_weights_of_params_are_as_they_are_in_memory():
    params = {
        "encoder": {"layers": {"w": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)}},
        "table": np.array([[1, np.nan]], np.float32),
        "scalar": jnp.float16(2),
    }
    weights = Weights.from_params(params)
    assert weights.shapes == {"encoder/layers/w": (2, 3), "table": (1, 2), "scalar": ()}
    assert weights.dtypes == {"encoder/layers/w": BFLOAT16, "table": FLOAT32, "scalar": FLOAT16}
    expected = {
        "encoder/layers/w": np.arange(6).reshape(2, 3).astype(BFLOAT16),
        "table": np.array([[1, np.nan]], np.float32),
        "scalar": np.array(2, np.float16),
    }
    assert_same_bits({path: weights.read(path) for path in expected}, expected)


def test_weights_of_params_gather_what_is_divided(tmp_path):
    values = random_values(FLOAT32)
    params = stored(tmp_path / "x", values).load_params(
        mesh=make_mesh(MeshConfig(fsdp=4, tensor=2))
    )
    weights = Weights.from_params(params)
    assert weights.shapes == SHAPES
    assert_same_bits({path: weights.read(path) for path in SHAPES}, values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_written_has_the_checksum_of_the_elements_in_order(dtype):
    values = random_values(dtype, {"x": (3, 4, 5)})["x"]
    views = [values, values.T, values[::2, 1:3], values[:, :, 3], values[0, 0, 0], values[:0]]
    for view in [*views, np.asfortranarray(values), np.broadcast_to(values[0, 0], (2, 5))]:
        view = np.asarray(view)
        found = WrittenArray.from_values("theirs", "ours", view)
        # tobytes copies to the order of rows first.
        digest = hashlib.sha256(view.tobytes()).hexdigest()
        assert found == ("theirs", "ours", view.shape, dtype.name, digest)
