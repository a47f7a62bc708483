"""T5X checkpoints of every form against what Flax, TensorStore and Orbax wrote.

`t5x_folders` writes them from T5X's names and shapes, without t5jax.
"""

import random
import re
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import serialization
from helpers import hf_folders, t5x_folders
from helpers.trees import assert_same_bits, flat

import t5jax
from t5jax.models.config import T5Config
from t5jax.pretrained.formats.lazy_array import read_array
from t5jax.pretrained.gin_config import read_gin_config
from t5jax.pretrained.t5x.load import find_t5x, open_t5x

# What differs between published T5: 1.0, 1.1, umT5, and the encoder of one.
FAMILIES = {
    "relu-tied": {"gated": False, "tied": True},
    "gated-untied": {},
    "gated-tied": {"tied": True},
    "relu-untied": {"gated": False},
    "bias of every layer": {"per_layer_bias": True},
    "encoder alone": {"decoder": False},
    "one layer": {"layers": {"encoder": 1, "decoder": 1}},
}


# Enough where the form of a file is tested and not the model.
SMALL = {"decoder": False, "layers": {"encoder": 1}}


@pytest.fixture(autouse=True)
def unchecked(own_checks):
    """Type checks of every call take most of the time, and msgpack files are read by many calls."""


def load(path, **options):
    found = find_t5x(path)
    assert found is not None
    source = open_t5x(found, **options)
    return source, flat(source.load_params())


def assert_loads(path, values, **options) -> T5Config:
    source, params = load(path, **options)
    assert_same_bits(params, t5x_folders.expected_params(values))
    return source.config


def error_of(path, root=None, action=load) -> str:
    """The message with which `path` is refused: one sentence that begins with a file's name."""
    root = path if root is None else root
    with pytest.raises(ValueError, match=re.escape(str(root))) as caught:
        action(path)
    assert type(caught.value) is ValueError
    message = str(caught.value)
    assert message.startswith(str(root))
    assert "\n" not in message
    assert len(message.replace(str(path), "")) < 400
    return message


def check_config(config, options):
    sizes = {
        "vocab_size": 97,
        "d_model": 16,
        "d_kv": 5,
        "num_heads": 3,
        "d_ff": 24,
        "relative_buckets": 8,
        "relative_max_distance": 128,
        "num_encoder_layers": options.get("layers", t5x_folders.LAYERS)["encoder"],
        "num_decoder_layers": options.get("layers", t5x_folders.LAYERS).get("decoder", 0),
    }
    if not options.get("decoder", True):
        sizes["num_decoder_layers"] = 0
    assert {name: getattr(config, name) for name in sizes} == sizes
    gated = options.get("gated", True)
    assert config.gated_ff == gated
    assert config.activation == ("gelu_tanh" if gated else "relu")
    assert config.relative_bias_per_layer == options.get("per_layer_bias", False)
    if sizes["num_decoder_layers"]:
        assert config.tie_embeddings == config.scale_logits == options.get("tied", False)


# One msgpack file.


@pytest.mark.parametrize("options", FAMILIES.values(), ids=FAMILIES.keys())
def test_msgpack_of_every_family_loads(tmp_path, options):
    values = t5x_folders.random_arrays(**options)
    file = t5x_folders.write_msgpack(tmp_path / "checkpoint_1000", values)
    source, params = load(file)
    assert_same_bits(params, t5x_folders.expected_params(values))
    check_config(source.config, options)
    assert source.format == "T5X, msgpack, separate layers"


@pytest.mark.parametrize("options", FAMILIES.values(), ids=FAMILIES.keys())
@pytest.mark.parametrize("split", [False, True], ids=["joined", "heads"])
def test_scanned_msgpack_of_every_family_loads(tmp_path, options, split):
    values = t5x_folders.random_arrays(**options)
    theirs = t5x_folders.scanned(values)
    if options.get("per_layer_bias"):
        table = theirs["decoder/decoder/relpos_bias/rel_embedding"]
        assert table.shape == (3, 3, 8)
    if split:
        theirs = t5x_folders.split_heads(theirs)
        num_layers = options.get("layers", t5x_folders.LAYERS)["encoder"]
        query, out = (theirs[f"encoder/encoder/attention/{n}/kernel"] for n in ("query", "out"))
        assert query.shape == (16, num_layers, 3, 5)
        assert out.shape == (3, num_layers, 5, 16)
    file = t5x_folders.write_msgpack(tmp_path / "checkpoint_1000", theirs)
    source, params = load(file)
    assert_same_bits(params, t5x_folders.expected_params(values))
    check_config(source.config, options)
    assert source.format == "T5X, msgpack, scanned layers"


@pytest.mark.parametrize("split", [False, True], ids=["joined", "heads"])
@pytest.mark.parametrize("options", [{}, {"per_layer_bias": True}], ids=["shared", "per layer"])
def test_scanned_layers_have_two_names(tmp_path, options, split):
    values = t5x_folders.random_arrays(**options)
    theirs = t5x_folders.scanned(values, scope="{stack}/layers", bias="relative_posemb")
    assert "encoder/layers/mlp/wi_0/kernel" in theirs
    theirs = t5x_folders.split_heads(theirs) if split else theirs
    assert_loads(t5x_folders.write_msgpack(tmp_path / "x", theirs), values)


def test_separate_layers_may_have_heads_of_their_own(tmp_path):
    values = t5x_folders.random_arrays()
    theirs = t5x_folders.split_heads(values)
    assert theirs["decoder/layers_2/self_attention/out/kernel"].shape == (3, 5, 16)
    assert_loads(t5x_folders.write_msgpack(tmp_path / "x", theirs), values)


def test_encoder_only_leaves_the_decoder(tmp_path):
    values = t5x_folders.random_arrays()
    own = {name: value for name, value in values.items() if not name.startswith("decoder/")}
    for i, theirs in enumerate((values, t5x_folders.scanned(values))):
        file = t5x_folders.write_msgpack(tmp_path / f"checkpoint_{i}", theirs)
        source, params = load(file, encoder_only=True)
        assert_same_bits(params, t5x_folders.expected_params(own))
        assert source.config.num_decoder_layers == 0
        reasons = {source.ignored[name] for name in theirs if name.startswith("decoder/")}
        assert reasons == {"decoder only"}


def test_optimizer_and_other_state_are_ignored(tmp_path):
    values = t5x_folders.random_arrays(**SMALL)
    tree = {"version": 3, "optimizer": {"target": t5x_folders.nested(values)}}
    tree["optimizer"]["state"] = t5x_folders.optimizer_state(values)
    # As partitioned models and models with statistics have them.
    tree["flax_mutables"] = {"intermediates": {"mean": np.ones((3,), np.float32)}}
    tree["params_axes"] = {"encoder": {"names": ["embed", "mlp"]}}
    tree["optimizer"]["target"]["__save_format_metadata__"] = {"version": np.int32(2)}
    file = t5x_folders.write_tree(tmp_path / "checkpoint_1", tree)
    source, params = load(file)
    assert_same_bits(params, t5x_folders.expected_params(values))
    ignored = source.ignored
    assert ignored["optimizer/state/step"] == "not a model parameter"
    table = "optimizer/state/param_states/token_embedder/embedding/v"
    assert ignored[table] == "not a model parameter"


def test_bfloat16_and_odd_values_keep_their_bits(tmp_path):
    values = t5x_folders.random_arrays(dtype=ml_dtypes.bfloat16)
    odd = np.array([np.nan, -0.0, np.inf, 1e-40], np.float32).astype(ml_dtypes.bfloat16)
    values["encoder/layers_1/mlp/wo/kernel"][3, :4] = odd
    assert_loads(t5x_folders.write_msgpack(tmp_path / "x", values), values)


# The genuine file.


def test_genuine_file_loads_whole(shared_data):
    """Values are those that Flax restores, which T5X uses."""
    file = shared_data / "t5x_testdata" / "test_t5_tiny.checkpoint_0"
    target = serialization.msgpack_restore(file.read_bytes())["optimizer"]["target"]
    leaves = jax.tree.leaves_with_path(target)
    keys = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves]
    values = dict(zip(keys, [leaf for _, leaf in leaves], strict=True))
    assert len(values) == 52
    config = assert_loads(file, values)
    assert config == T5Config(
        vocab_size=32128,
        d_model=8,
        d_kv=3,
        num_heads=4,
        d_ff=16,
        num_encoder_layers=2,
        num_decoder_layers=2,
        gated_ff=True,
        activation="gelu_tanh",
        tie_embeddings=False,
        scale_logits=False,
    )
    ids = np.array([[5, 9, 3, 1, 0], [7, 1, 0, 0, 0]], np.int32)
    answer = t5jax.load(file).generate_ids(ids, encoder_mask=ids > 0, max_new_tokens=4)
    assert answer.shape[0] == 2
    assert ((answer >= 0) & (answer < 32128)).all()


# A folder of Zarr.

ZARR = {
    "as written": {},
    "without metadata": {"metadata_files": False},
    "many chunks": {"chunks": 7},
    "many chunks without metadata": {"chunks": 7, "metadata_files": False},
    "some inline": {"inline": ("scale", "rel_embedding")},
    "gfile": {"driver": "gfile"},
    "gcs": {"driver": "gcs", "metadata_files": False},
    "no prefix": {"prefix": "optimizer.target"},
}


@pytest.mark.parametrize("form", ZARR.values(), ids=ZARR.keys())
def test_zarr_folder_loads(tmp_path, form):
    values = t5x_folders.random_arrays(**SMALL)
    folder = t5x_folders.write_zarr(tmp_path / "checkpoint_1000", values, **form)
    assert_loads(folder, values)


@pytest.mark.parametrize("scan", [False, True], ids=["separate", "scanned"])
def test_zarr_folder_of_several_layers_loads(tmp_path, scan):
    values = t5x_folders.random_arrays()
    theirs = t5x_folders.scanned(values) if scan else values
    folder = t5x_folders.write_zarr(tmp_path / "checkpoint_1000", theirs, chunks=13)
    source, params = load(folder)
    assert_same_bits(params, t5x_folders.expected_params(values))
    layers = "scanned" if scan else "separate"
    assert source.format == f"T5X, Zarr, {layers} layers"


@pytest.mark.parametrize("metadata_files", [True, False])
@pytest.mark.parametrize("version", [2, 3])
def test_zarr_folder_of_bfloat16_keeps_its_bits(tmp_path, version, metadata_files):
    """Version 2 has them as uint16."""
    values = t5x_folders.random_arrays(dtype=ml_dtypes.bfloat16, **SMALL)
    folder = t5x_folders.write_zarr(
        tmp_path / "x", values, version=version, metadata_files=metadata_files
    )
    assert_loads(folder, values)


@pytest.mark.parametrize("metadata_files", [True, False])
def test_zarr_folder_of_version_2_may_be_called_bfloat16(tmp_path, metadata_files):
    values = t5x_folders.random_arrays(dtype=ml_dtypes.bfloat16, **SMALL)
    folder = t5x_folders.write_zarr(
        tmp_path / "x",
        values,
        version=2,
        metadata_files=metadata_files,
        change=lambda spec: {**spec, "dtype": "bfloat16"},
    )
    assert_loads(folder, values)


@pytest.mark.parametrize("metadata_files", [True, False])
def test_zarr_folder_is_where_the_checkpoint_is(tmp_path, metadata_files):
    """Whatever path it was written to, only its last part counts."""
    values = t5x_folders.random_arrays(**SMALL)
    places = ["/data/runs/", "../", "../../other/", "gs/bucket/", "./", ""]

    def elsewhere(spec):
        path = random.Random(spec["kvstore"]["path"]).choice(places) + spec["kvstore"]["path"]
        return {**spec, "kvstore": {"driver": "file", "path": path}}

    folder = tmp_path / "in" / "checkpoint_5"
    t5x_folders.write_zarr(folder, values, change=elsewhere, metadata_files=metadata_files)
    assert_loads(folder, values)
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert_loads(moved, values)


def test_zarr_folder_reads_nothing_outside(tmp_path):
    """An array that lies elsewhere is missing, though its path leads there."""
    values = t5x_folders.random_arrays(**SMALL)
    folder, other = tmp_path / "checkpoint_5", tmp_path / "other"
    own = "target.token_embedder.embedding"

    def absolute(spec):
        path = spec["kvstore"]["path"]
        path = f"{other}/{path}" if path.startswith(own) else path
        return {**spec, "kvstore": {"driver": "file", "path": path}}

    for metadata_files in (True, False):
        shutil.rmtree(other, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        t5x_folders.write_zarr(folder, values, change=absolute, metadata_files=metadata_files)
        other.mkdir()
        (folder / own).rename(other / own)
        assert own in error_of(folder)


@pytest.mark.parametrize("name", ["..", "/", "", "a\0b", "."])
def test_zarr_folder_refuses_paths_that_name_no_folder(tmp_path, name):
    values = t5x_folders.random_arrays(**SMALL)
    folder = t5x_folders.write_zarr(
        tmp_path / "x",
        values,
        change=lambda spec: {**spec, "kvstore": {"driver": "file", "path": name}},
    )
    error_of(folder)


SPECS = {
    "another driver": lambda spec: {**spec, "driver": "n5"},
    "no path": lambda spec: {**spec, "kvstore": {"driver": "file"}},
    "no store": lambda spec: {**spec, "kvstore": None},
    "no shape": lambda spec: {**spec, "metadata": {}},
    "no metadata": lambda spec: {**spec, "metadata": None},
    "an array for metadata": lambda spec: {**spec, "metadata": np.zeros(3, np.float32)},
    "an array in metadata": lambda spec: {
        **spec,
        "metadata": {**spec["metadata"], "order": np.zeros(3, np.float32)},
    },
    "bytes": lambda spec: {**spec, "metadata": {**spec["metadata"], "order": b"C"}},
    "blosc": lambda spec: {**spec, "metadata": {**spec["metadata"], "compressor": {"id": "blosc"}}},
    "infinite": lambda spec: {**spec, "metadata": {**spec["metadata"], "shape": [float("inf")]}},
    "huge": lambda spec: {
        **spec,
        "metadata": {**spec["metadata"], "shape": [1 << 62], "chunks": [1 << 62]},
    },
    "many chunks": lambda spec: {
        **spec,
        "metadata": {**spec["metadata"], "shape": [1 << 62], "chunks": [1]},
    },
    "other type": lambda spec: {**spec, "dtype": "int32"},
    "no type": lambda spec: {**spec, "dtype": "?"},
}


@pytest.mark.parametrize("change", SPECS.values(), ids=SPECS.keys())
def test_zarr_folder_refuses_specifications_that_fit_nothing(tmp_path, change):
    values = t5x_folders.random_arrays(**SMALL)
    folder = t5x_folders.write_zarr(tmp_path / "x", values, change=change, metadata_files=False)
    error_of(folder)


def test_missing_chunk_is_an_error_not_zeros(tmp_path):
    values = t5x_folders.random_arrays(**SMALL)
    folder = t5x_folders.write_zarr(tmp_path / "x", values, chunks=7)
    own = folder / "target.encoder.layers_0.mlp.wo.kernel"
    (own / "2.1").unlink()
    assert error_of(folder).startswith(f"{own} must have all chunks of an array of [24, 16], got")


def test_damaged_chunk_is_an_error(tmp_path):
    values = t5x_folders.random_arrays(**SMALL)
    folder = t5x_folders.write_zarr(tmp_path / "x", values)
    own = folder / "target.encoder.layers_0.attention.out.kernel"
    content = bytearray((own / "0.0").read_bytes())
    content[len(content) // 2] ^= 4
    for damage in (bytes(content), content[: len(content) // 2], b"", b"text"):
        (own / "0.0").write_bytes(damage)
        assert error_of(folder).startswith((f"{own} is damaged (", f"{own} cannot hold an array"))


def test_shape_of_another_model_is_named(tmp_path):
    values = t5x_folders.random_arrays()
    values["decoder/layers_1/mlp/wi_1/kernel"] = np.zeros((16, 25), np.float32)
    message = error_of(t5x_folders.write_msgpack(tmp_path / "x", values))
    assert "decoder/layers_1/mlp/wi_1/kernel must have shape (16, 24)" in message
    assert "(16, 25)" in message


@pytest.mark.parametrize(
    "name",
    [
        "encoder/layers_1/mlp/wi_1/kernel",
        "decoder/layers_1/mlp/wo/kernel",
        "decoder/layers_2/self_attention/out/kernel",
        "decoder/layers_0/encoder_decoder_attention/key/kernel",
        "decoder/layers_2/pre_cross_attention_layer_norm/scale",
        "encoder/encoder_norm/scale",
        "decoder/decoder_norm/scale",
        "decoder/relpos_bias/rel_embedding",
    ],
)
def test_missing_array_is_named(tmp_path, name):
    values = t5x_folders.random_arrays()
    del values[name]
    message = error_of(t5x_folders.write_msgpack(tmp_path / "x", values))
    assert name in message


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("encoder/relpos_bias/rel_embedding", "encoder/relative_bias/embedding"),
        ("encoder/encoder/attention/query/kernel", "encoder/layers/attention/query"),
        ("encoder/encoder/mlp/wo/kernel", "encoder/encoder/mlp/wo/kernel"),
        ("decoder/decoder/mlp/wi_0/kernel", "decoder/decoder/mlp/wi_0/kernel"),
        ("decoder/decoder/self_attention/value/kernel", "decoder/decoder/self_attention/value"),
        ("token_embedder/embedding", "token_embedder/embedding"),
    ],
)
def test_missing_scanned_array_is_named(tmp_path, name, told):
    values = t5x_folders.scanned(t5x_folders.random_arrays())
    del values[name]
    assert told in error_of(t5x_folders.write_msgpack(tmp_path / "x", values))


@pytest.mark.parametrize("scan", [False, True], ids=["separate", "scanned"])
def test_array_too_many_is_an_error(tmp_path, scan):
    values = t5x_folders.random_arrays(**SMALL)
    theirs = t5x_folders.scanned(values) if scan else dict(values)
    theirs["encoder/side_relpos_bias/rel_embedding"] = np.zeros((3, 8), np.float32)
    message = error_of(t5x_folders.write_msgpack(tmp_path / "x", theirs))
    assert "encoder/side_relpos_bias/rel_embedding" in message


@pytest.mark.parametrize("name", ["q_wi_fused", "kv_fused", "o_wo_fused"])
@pytest.mark.parametrize("scan", [False, True], ids=["separate", "scanned"])
def test_fused_layers_are_refused(tmp_path, name, scan):
    values = t5x_folders.random_arrays(**SMALL)
    values["encoder/layers_0/" + name + "/kernel"] = np.zeros((16, 3, 5), np.float32)
    theirs = t5x_folders.scanned(values) if scan else values
    message = error_of(t5x_folders.write_msgpack(tmp_path / "x", theirs))
    assert "got parallel layers with" in message


def test_other_trees_are_refused(tmp_path):
    file = tmp_path / "checkpoint_1"
    for tree in ({"a": np.zeros(3)}, {"version": 3, "optimizer": {}}, {"a": None}):
        t5x_folders.write_tree(file, tree)
        assert "token_embedder/embedding" in error_of(file)
    values = t5x_folders.random_arrays(**SMALL)
    twice = {"one": t5x_folders.nested(values), "two": t5x_folders.nested(values)}
    t5x_folders.write_tree(file, twice)
    assert "must contain one T5" in error_of(file)


def test_damaged_msgpack_is_an_error_or_right(tmp_path):
    values = t5x_folders.random_arrays(**SMALL)
    folder = t5x_folders.write_zarr(tmp_path / "x", values, metadata_files=False)
    file = folder / "checkpoint"
    original = file.read_bytes()
    rng = random.Random(0)
    for i in range(60):
        content = bytearray(original)
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        file.write_bytes(content[: rng.randrange(len(content))] if i % 4 == 0 else content)
        try:
            found = find_t5x(folder)
            source = open_t5x(found) if found else None
        except ValueError as error:
            assert type(error) is ValueError  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
            continue
        if source is not None:
            assert source.shapes.keys() == t5x_folders.expected_params(values).keys()


# Orbax.

EXTRA = {
    "flax_mutables": {"statistics": {"mean": np.ones((3,), np.float32)}},
    "params_axes": {"token_embedder": {"axes": np.ones((2,), np.int32)}},
}
ORBAX = {"ocdbt": {}, "ocdbt zarr3": {"use_zarr3": True}, "folders": {"use_ocdbt": False}}


@pytest.mark.parametrize("scan", [False, True], ids=["separate", "scanned"])
def test_old_orbax_loads(tmp_path, scan):
    values = t5x_folders.random_arrays()
    theirs = t5x_folders.scanned(values) if scan else values
    folder = t5x_folders.write_old_orbax(tmp_path / "checkpoint_1000", theirs)
    source, params = load(folder)
    assert_same_bits(params, t5x_folders.expected_params(values))
    check_config(source.config, {})
    assert source.ignored["_optimizer/state/step"] == "not a model parameter"


def test_old_orbax_lacks_an_array(tmp_path):
    folder = t5x_folders.write_old_orbax(tmp_path / "x", t5x_folders.random_arrays(**SMALL))
    name = "_optimizer.target.encoder.layers_0.mlp.wo.kernel"
    shutil.rmtree(folder / name)
    assert f"{folder} must contain the array {name!r}" in error_of(folder)


@pytest.mark.parametrize("options", ORBAX.values(), ids=ORBAX.keys())
def test_new_orbax_loads(tmp_path, options):
    values = t5x_folders.random_arrays(tied=True)
    theirs = t5x_folders.split_heads(t5x_folders.scanned(values))
    folder = t5x_folders.write_orbax(tmp_path / "checkpoint_9", theirs, extra=EXTRA, **options)
    source, params = load(folder)
    assert_same_bits(params, t5x_folders.expected_params(values))
    check_config(source.config, {"tied": True})
    assert source.format == "T5X, Orbax, scanned layers"


def test_new_orbax_of_bfloat16_keeps_its_bits(tmp_path):
    values = t5x_folders.random_arrays(dtype=ml_dtypes.bfloat16)
    theirs = t5x_folders.scanned(values)
    assert_loads(t5x_folders.write_orbax(tmp_path / "x", theirs, use_zarr3=True), values)


def test_orbax_item_of_a_step_loads(tmp_path):
    """As Orbax's manager writes it: the folder around the item has metadata as well."""
    values = t5x_folders.random_arrays()
    step = tmp_path / "run" / "checkpoint_1000"
    t5x_folders.write_orbax(step / "state", t5x_folders.scanned(values))
    (step / "_CHECKPOINT_METADATA").write_text('{"item_handlers": {"state": "?"}}')
    (step / "metrics").mkdir()
    for path in (step, step / "state", tmp_path / "run"):
        assert find_t5x(path) == step / "state"
        assert_loads(path, values)


# Where checkpoints lie, and what lies beside them.


def test_find_takes_the_newest_of_a_run(tmp_path):
    old, new = (
        t5x_folders.random_arrays(seed=1, **SMALL),
        t5x_folders.random_arrays(seed=2, **SMALL),
    )
    t5x_folders.write_zarr(tmp_path / "checkpoint_9", old)
    t5x_folders.write_zarr(tmp_path / "checkpoint_10", new)
    # Interrupted, and other things of a run.
    (tmp_path / "checkpoint_11").mkdir()
    (tmp_path / "checkpoint_12.tmp-1").mkdir()
    (tmp_path / "train").mkdir()
    assert find_t5x(tmp_path) == tmp_path / "checkpoint_10"
    assert_loads(tmp_path, new)
    assert_loads(tmp_path / "checkpoint_9", old)
    config, params, _ = t5jax.pretrained.open.load_pretrained(tmp_path)
    assert_same_bits(flat(params), t5x_folders.expected_params(new))
    check_config(config, SMALL)


def test_find_knows_what_is_none(tmp_path):
    assert find_t5x(tmp_path) is None
    assert find_t5x(tmp_path / "missing") is None
    text = tmp_path / "checkpoint"
    text.write_text('model_checkpoint_path: "model.ckpt-1"')
    assert find_t5x(text) is None
    assert find_t5x(tmp_path) is None
    text.write_bytes(b"")
    assert find_t5x(text) is None


GIN = {
    "network.T5Config.mlp_activations = ('gelu', 'linear')": "gelu_tanh",
    "network.T5Config.mlp_activations = ('swish', 'linear')": "silu",
    "network.T5Config.mlp_activations = ('relu',)": "relu",
    "network.T5Config.mlp_activations = ('silu', 'linear')": "silu",
    "network.T5Config.mlp_activations = \\\n    ('swish',\n     'linear')": "silu",
    "dense.MlpBlock.activations = ('swish', 'linear')": "silu",
    "encoder/DenseReluDense.activation = ['swish', 'linear']": "silu",
    "decoder/DenseReluDense.activation = ['gelu', 'linear']": "gelu_tanh",
    "DenseReluDense.activation = 'relu'": "relu",
    "# nothing of it\nMIXTURE = 'gelu'": "gelu_tanh",
    "# nothing: mlp_activations = ('swish', 'linear')": "gelu_tanh",
}


@pytest.mark.parametrize("text", GIN, ids=range(len(GIN)))
@pytest.mark.parametrize("place", ["run/checkpoint_1", "run"])
def test_activation_is_that_of_the_gin_file(tmp_path, text, place):
    values = t5x_folders.expected_params(t5x_folders.random_arrays(**SMALL))
    shapes = {name: value.shape for name, value in values.items()}
    folder = tmp_path / "run" / "checkpoint_1"
    folder.mkdir(parents=True)
    name = "operative_config.gin" if "DenseRelu" in text else "config.gin"
    before = "# Parameters:\nnetwork.T5Config.dropout_rate = 0.0\n"
    (tmp_path / place / name).write_text(f"{before}{text}\nx.y = ['relu']\n")
    notes = []
    config = read_gin_config([folder, folder.parent], shapes, source=folder, notes=notes)
    assert config.activation == GIN[text]
    assert any("assumed to be gelu_tanh" in note for note in notes) == ("nothing" in text)


def test_open_source_reads_the_gin_file_beside(tmp_path):
    file = t5x_folders.write_msgpack(tmp_path / "x", t5x_folders.random_arrays(**SMALL))
    assert open_t5x(file).config.activation == "gelu_tanh"
    (tmp_path / "config.gin").write_text(f"{list(GIN)[1]}\n")
    source = open_t5x(file)
    assert source.config.activation == "silu"
    assert source.notes == (
        "sizes were inferred from the arrays; pad_id is assumed to be 0 and eos_id 1.",
    )


def test_config_of_ours_beside_is_believed(tmp_path):
    values = t5x_folders.random_arrays(layers={"encoder": 1, "decoder": 1})
    folder = t5x_folders.write_zarr(tmp_path / "checkpoint_1", values)
    guessed = open_t5x(folder).config
    ours = guessed.replace(activation="silu", scale_logits=True, relative_max_distance=12, eos_id=2)
    (tmp_path / "config.json").write_text(ours.to_json())
    assert open_t5x(folder).config == ours
    assert open_t5x(folder, encoder_only=True).config == ours.replace(num_decoder_layers=0)


def test_config_of_hugging_face_beside_is_believed(tmp_path):
    values = t5x_folders.random_arrays()
    folder = t5x_folders.write_zarr(tmp_path / "checkpoint_1", values)
    config = {**hf_folders.CONFIG, "feed_forward_proj": "gated-silu", "tie_word_embeddings": False}
    hf_folders.write(tmp_path, config, {})
    (tmp_path / "model.safetensors").unlink()
    found = assert_loads(folder, values)
    assert (found.activation, found.relative_max_distance) == ("silu", 12)
    assert not found.scale_logits


def test_config_of_another_model_is_an_error(tmp_path):
    values = t5x_folders.random_arrays(**SMALL)
    folder = t5x_folders.write_zarr(tmp_path / "checkpoint_1", values)
    config = open_t5x(folder).config
    (tmp_path / "config.json").write_text(config.replace(d_ff=25).to_json())
    assert "must have shape (16, 25)" in error_of(folder)


def test_source_reads_parts_and_reports_bytes(tmp_path):
    values = t5x_folders.random_arrays(**SMALL)
    source = open_t5x(t5x_folders.write_zarr(tmp_path / "x", values, chunks=7))
    told = []
    params = flat(source.load_params(progress=told.append))
    assert sum(told) == sum(value.nbytes for value in values.values())
    path = "encoder/layers/mlp/wo"
    np.testing.assert_array_equal(source.read(path, dtype=np.dtype(np.float32)), params[path])
    norm = read_array(source.arrays["encoder/encoder_norm/scale"])
    np.testing.assert_array_equal(norm, params["encoder/final_norm/scale"])


def test_config_of_another_project_above_the_run_is_not_read(tmp_path):
    folder = tmp_path / "run" / "checkpoint_1"
    folder.mkdir(parents=True)
    t5x_folders.write_msgpack(folder / "checkpoint", t5x_folders.random_arrays(**SMALL))
    (tmp_path / "config.json").write_text('{"d_model": "not of this model"}')
    expected = open_t5x(folder).config
    (tmp_path / "run" / "config.json").write_text('{"theme": "dark"}')  # nor is this a model's
    assert open_t5x(folder).config == expected


def test_optimizer_that_was_not_copied_is_not_missed(tmp_path):
    folder = tmp_path / "checkpoint_1"
    t5x_folders.write_zarr(folder, t5x_folders.random_arrays(**SMALL))
    whole = open_t5x(folder)
    tree = serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    spec = tree["optimizer"]["target"]["token_embedder"]["embedding"]
    absent = {**spec, "kvstore": {"driver": "file", "path": "state.param_states.x.v_row"}}
    tree["optimizer"]["state"]["param_states"] = {"x": {"v_row": absent}}
    t5x_folders.write_tree(folder / "checkpoint", tree)
    source = open_t5x(folder)
    assert any("param_states" in name for name in source.ignored)
    assert_same_bits(source.load_params(), whole.load_params())
