"""Names of parameters in every format, against tables of them written by hand."""

import itertools
import random

import numpy as np
import pytest

from t5jax.checkpoint.trees import shapes_by_path
from t5jax.models.t5 import abstract_params
from t5jax.pretrained.hf.load import hf_name_map
from t5jax.pretrained.infer_config import mark_shared_bias
from t5jax.pretrained.mesh_tf import mesh_tf_name_map
from t5jax.pretrained.name_map import Leaf, NameMap, NameRule
from t5jax.pretrained.t5x.load import t5x_name_map

# Of one layer: ours, Hugging Face's, T5X's and Mesh TensorFlow's; {g} is "_0" in a gated layer,
# and {a} "attention".
LAYERS = {
    "encoder": """
attention/query         0.SelfAttention.q     attention/query/kernel         000/SelfAttention/q
attention/key           0.SelfAttention.k     attention/key/kernel           000/SelfAttention/k
attention/value         0.SelfAttention.v     attention/value/kernel         000/SelfAttention/v
attention/out           0.SelfAttention.o     attention/out/kernel           000/SelfAttention/o
attention_norm/scale    0.layer_norm          pre_attention_layer_norm/scale 000/layer_norm/scale
mlp/wi                  1.DenseReluDense.wi{g} mlp/wi{g}/kernel     001/DenseReluDense/wi{g}/kernel
mlp/wi_linear           1.DenseReluDense.wi_1 mlp/wi_1/kernel       001/DenseReluDense/wi_1/kernel
mlp/wo                  1.DenseReluDense.wo   mlp/wo/kernel         001/DenseReluDense/wo/kernel
mlp_norm/scale          1.layer_norm          pre_mlp_layer_norm/scale       001/layer_norm/scale
""",
    "decoder": """
self_attention/query    0.SelfAttention.q     self_attention/query/kernel    000/SelfAttention/q
self_attention/key      0.SelfAttention.k     self_attention/key/kernel      000/SelfAttention/k
self_attention/value    0.SelfAttention.v     self_attention/value/kernel    000/SelfAttention/v
self_attention/out      0.SelfAttention.o     self_attention/out/kernel      000/SelfAttention/o
self_attention_norm/scale 0.layer_norm pre_self_attention_layer_norm/scale   000/layer_norm/scale
cross_attention/query 1.EncDecAttention.q encoder_decoder_{a}/query/kernel 001/EncDecAttention/q
cross_attention/key   1.EncDecAttention.k encoder_decoder_{a}/key/kernel 001/EncDecAttention/k
cross_attention/value 1.EncDecAttention.v encoder_decoder_{a}/value/kernel 001/EncDecAttention/v
cross_attention/out   1.EncDecAttention.o encoder_decoder_{a}/out/kernel 001/EncDecAttention/o
cross_attention_norm/scale 1.layer_norm pre_cross_attention_layer_norm/scale 001/layer_norm/scale
mlp/wi                  2.DenseReluDense.wi{g} mlp/wi{g}/kernel     002/DenseReluDense/wi{g}/kernel
mlp/wi_linear           2.DenseReluDense.wi_1 mlp/wi_1/kernel       002/DenseReluDense/wi_1/kernel
mlp/wo                  2.DenseReluDense.wo   mlp/wo/kernel         002/DenseReluDense/wo/kernel
mlp_norm/scale          2.layer_norm          pre_mlp_layer_norm/scale       002/layer_norm/scale
""",
}
BIAS = {
    "hf": "{stack}.block.{i}.layer.0.SelfAttention.relative_attention_bias.weight",
    "flax": "{stack}/block/{i}/layer/0/SelfAttention/relative_attention_bias/embedding",
    "t5x": "{stack}/layers_{i}/relpos_bias/rel_embedding",
    "scanned": "{stack}/{stack}/relpos_bias/rel_embedding",
    "mesh": "{stack}/block_{i:03}/layer_000/SelfAttention/relative_attention_bias",
}
OTHERS = {
    "token_embedder/embedding": {
        "hf": "shared.weight",
        "flax": "shared/embedding",
        "t5x": "token_embedder/embedding",
        "mesh": "shared/embedding",
    },
    "encoder/final_norm/scale": {
        "hf": "encoder.final_layer_norm.weight",
        "flax": "encoder/final_layer_norm/weight",
        "t5x": "encoder/encoder_norm/scale",
        "mesh": "encoder/layer_norm/scale",
    },
    "decoder/final_norm/scale": {
        "hf": "decoder.final_layer_norm.weight",
        "flax": "decoder/final_layer_norm/weight",
        "t5x": "decoder/decoder_norm/scale",
        "mesh": "decoder/layer_norm/scale",
    },
    "encoder/relative_bias/embedding": {"t5x": "encoder/relpos_bias/rel_embedding"},
    "decoder/relative_bias/embedding": {"t5x": "decoder/relpos_bias/rel_embedding"},
    "output/kernel": {
        "hf": "lm_head.weight",
        "flax": "lm_head/kernel",
        "t5x": "decoder/logits_dense/kernel",
        "mesh": "decoder/logits/kernel",
    },
}
FORMATS = ["hf", "flax", "t5x", "scanned", "mesh"]
FAMILIES = {
    "t5": {"gated_ff": False, "tie_embeddings": True},
    "v1_1": {},
    "umt5": {"relative_bias_per_layer": True},
    "encoder": {"num_decoder_layers": 0, "tie_embeddings": True},
    "many layers": {"num_encoder_layers": 12, "num_decoder_layers": 11},
}


def naming_of(form, *, gated):
    if form == "mesh":
        return mesh_tf_name_map()
    if form in ("t5x", "scanned"):
        return t5x_name_map(scanned=form == "scanned", gated=gated)
    kind = "flax_model.msgpack" if form == "flax" else "model.safetensors"
    return hf_name_map(gated=gated, kind=kind)


def names_of(path, form, config):
    """Their names of one of our parameters, by the tables above."""
    stack, _, below = path.partition("/layers/")
    layers = range(getattr(config, f"num_{path.split('/')[0]}_layers", 1))
    if path.endswith("relative_bias/embedding") and (below or form not in ("t5x", "scanned")):
        stack = path.split("/")[0]
        count = layers if below else range(1)
        names = [BIAS[form].format(stack=stack, i=i) for i in count]
        return names[:1] if form == "scanned" else names
    if not below:
        names = OTHERS[path]
        return [names["t5x" if form == "scanned" else form]]
    text = LAYERS[stack].format(g="_0" * config.gated_ff, a="attention")
    rows = [line.split() for line in text.splitlines()]
    _, in_hf, in_t5x, in_mesh = next(row for row in rows if row and row[0] == below)
    if form == "hf":
        return [f"{stack}.block.{i}.layer.{in_hf}.weight" for i in layers]
    if form == "flax":
        leaf = "weight" if in_hf.endswith("norm") else "kernel"
        slashed = in_hf.replace(".", "/")
        return [f"{stack}/block/{i}/layer/{slashed}/{leaf}" for i in layers]
    if form == "t5x":
        return [f"{stack}/layers_{i}/{in_t5x}" for i in layers]
    if form == "scanned":
        return [f"{stack}/{stack}/{in_t5x}"]
    return [f"{stack}/block_{i:03}/layer_{in_mesh}" for i in layers]


def to_ours(path, values, form):
    """An array of a file as it is here, by its description."""
    if path.endswith("relative_bias/embedding"):
        if form == "scanned" and "/layers/" in path:
            return np.moveaxis(values, (0, 1, 2), (2, 0, 1))  # [H, L, R] to [L, R, H]
        return values.T if form in ("t5x", "scanned", "mesh") else values
    if "/layers/" in path and form == "scanned":
        return np.moveaxis(values, 1, 0)
    return values.T if form == "hf" and values.ndim == 2 and "embedding" not in path else values


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_namings_write_and_read_every_parameter_by_the_tables(tiny_config, form, family):
    config = tiny_config.replace(**family)
    naming = naming_of(form, gated=config.gated_ff)
    paths = shapes_by_path(abstract_params(config))
    expected = {path: names_of(path, form, config) for path in paths}
    for path in paths:
        layers = getattr(config, f"num_{path.split('/')[0]}_layers", 1)
        leaf = naming.leaf(path, layers)
        # Mesh TensorFlow's are not written, so nobody says which layer is meant.
        if form != "mesh" or not config.gated_ff or not path.endswith("/wi"):
            assert list(leaf.names) == expected[path]

    names = [name for found in expected.values() for name in found]
    assert len(set(names)) == len(names)
    random.Random(0).shuffle(names)
    layout, rest = naming.match([*names[:5], "step", *names[5:]], source="file")
    assert rest == ["step"]
    if form != "scanned":
        mark_shared_bias(layout, keep=config.relative_bias_per_layer)
    assert {path: list(leaf.names) for path, leaf in layout.items()} == expected
    for path, leaf in layout.items():
        assert leaf.per_layer == ("/layers/" in path and form != "scanned")
        assert leaf.axes == naming.leaf(path, 1).axes


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("family", ["t5", "umt5"])
def test_namings_turn_axes_as_the_formats_describe(tiny_config, form, family):
    config = tiny_config.replace(**FAMILIES[family])
    naming = naming_of(form, gated=config.gated_ff)
    rng = np.random.default_rng(0)
    for path, shape in shapes_by_path(abstract_params(config)).items():
        leaf = naming.leaf(path, shape[0])
        one = shape[1:] if leaf.per_layer else shape
        theirs = rng.normal(size=leaf.to_theirs(one))
        ours = to_ours(path, theirs, form)
        assert ours.shape == leaf.to_ours(theirs.shape) == one
        np.testing.assert_array_equal(theirs.transpose(leaf.axes or range(theirs.ndim)), ours)
        np.testing.assert_array_equal(ours.transpose(leaf.inverse(ours.ndim)), theirs)


@pytest.mark.parametrize("form", ["hf", "flax", "t5x", "scanned"])
@pytest.mark.parametrize("gated", [False, True])
def test_namings_read_either_feed_forward_layer(tiny_config, form, gated):
    config = tiny_config.replace(gated_ff=not gated)
    paths = ["encoder/layers/mlp/wi", "decoder/layers/mlp/wo"]
    paths += ["decoder/layers/mlp/wi_linear"] * (not gated)
    names = {path: names_of(path, form, config) for path in paths}
    layout, rest = naming_of(form, gated=gated).match(itertools.chain(*names.values()), source="x")
    assert rest == []
    assert {path: list(leaf.names) for path, leaf in layout.items()} == names


# Names that are read and not written.
ALTERNATIVES = {
    "mesh": {
        "encoder/block_000/layer_000/rms_norm/scale": "encoder/layers/attention_norm/scale",
        "decoder/block_000/layer_001/rms_norm/scale": "decoder/layers/cross_attention_norm/scale",
        "decoder/block_000/layer_002/rms_norm/scale": "decoder/layers/mlp_norm/scale",
        "encoder/block_000/layer_001/DenseReluDense/wi": "encoder/layers/mlp/wi",
        "encoder/block_000/layer_001/DenseReluDense/wi_0": "encoder/layers/mlp/wi",
        "decoder/block_000/layer_002/DenseReluDense/wi_1": "decoder/layers/mlp/wi_linear",
        "decoder/block_000/layer_002/DenseReluDense/wo": "decoder/layers/mlp/wo",
        "encoder/final_layer_norm/scale": "encoder/final_norm/scale",
        "encoder/rms_norm/scale": "encoder/final_norm/scale",
        "decoder/final_rms_norm/scale": "decoder/final_norm/scale",
    },
    "scanned": {
        "encoder/layers/attention/query/kernel": "encoder/layers/attention/query",
        "decoder/layers/pre_mlp_layer_norm/scale": "decoder/layers/mlp_norm/scale",
        "encoder/layers/relative_posemb/rel_embedding": "encoder/layers/relative_bias/embedding",
        "decoder/decoder/relative_posemb/rel_embedding": "decoder/layers/relative_bias/embedding",
    },
    "t5x": {
        "encoder/layers_0/relative_posemb/rel_embedding": "encoder/layers/relative_bias/embedding",
    },
}


@pytest.mark.parametrize(
    ("form", "name"), [(form, name) for form, names in ALTERNATIVES.items() for name in names]
)
def test_namings_read_other_names_too(form, name):
    layout, rest = naming_of(form, gated=True).match([name], source="file")
    assert rest == []
    ((path, leaf),) = layout.items()
    assert path == ALTERNATIVES[form][name]
    assert leaf.names == (name,)


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("hf", "shared_weight"),
        ("hf", "shared.weight\n"),
        ("hf", " shared.weight"),
        ("hf", "model.shared.weight"),
        ("hf", "encoder.block.-1.layer.0.layer_norm.weight"),
        ("hf", "encoder.block..layer.0.layer_norm.weight"),
        ("hf", "encoder.block.{}.layer.0.layer_norm.weight"),
        ("hf", "encoder.block.000000.layer.0.layer_norm.weight"),
        ("hf", "encoder.block.\u0663.layer.0.layer_norm.weight"),
        ("hf", "encoder.block.0.layer.2.layer_norm.weight"),
        ("hf", "encoder/block/0/layer/0/layer_norm/weight"),
        ("flax", "encoder.block.0.layer.0.layer_norm.weight"),
        ("mesh", "encoder/block_00/layer_000/layer_norm/scale"),
        ("mesh", "encoder/block_000000/layer_000/layer_norm/scale"),
        ("mesh", "shared/embedding_slot_vr"),
        ("t5x", "encoder/encoder/attention/query/kernel"),
        ("scanned", "encoder/layers_0/attention/query/kernel"),
        ("hf", ""),
    ],
)
def test_namings_leave_what_only_looks_alike(form, name):
    assert naming_of(form, gated=True).match([name], source="file") == ({}, [name])


def test_namings_put_a_prefix_before_every_name():
    naming = hf_name_map(gated=True, prefix="transformer.")
    names = ["transformer.shared.weight", "transformer.encoder.block.0.layer.0.layer_norm.weight"]
    layout, rest = naming.match([*names, "shared.weight"], source="file")
    assert rest == ["shared.weight"]
    assert [leaf.names for leaf in layout.values()] == [(name,) for name in names]
    assert naming.leaf("encoder/layers/attention_norm/scale", 1).names == (names[1],)


SMALL = [
    NameRule("stack/layers/w", "block.{}.w", (1, 0)),
    NameRule("stack/layers/w", "old.{}.w", (1, 0)),
    NameRule("stack/layers/b", "block.{}.b"),
    NameRule("table", "table", (2, 0, 1)),
    NameRule("table", "embeddings", (2, 0, 1)),
]


def test_match_sorts_layers_by_number():
    names = [f"block.{i}.b" for i in (10, 2, 0, 11, 1, 3, 9, 8, 7, 4, 6, 5)]
    layout, rest = NameMap(SMALL).match(["x", *names, "y.0"], source="file")
    expected = tuple(f"block.{i}.b" for i in range(12))
    assert layout == {"stack/layers/b": Leaf(expected, (), True)}
    assert rest == ["x", "y.0"]


def test_match_keeps_the_names_of_the_file():
    layout, _ = NameMap(SMALL).match(["block.00.w", "old.1.w", "embeddings"], source="file")
    assert layout["stack/layers/w"] == Leaf(("block.00.w", "old.1.w"), (1, 0), True)
    assert layout["table"] == Leaf(("embeddings",), (2, 0, 1), False)


def test_match_of_nothing_is_nothing():
    assert NameMap(SMALL).match([], source="file") == ({}, [])


@pytest.mark.parametrize("missing", range(11))
def test_match_refuses_gaps_and_names_the_missing_layer(missing):
    names = [f"block.{i}.w" for i in range(12) if i != missing]
    with pytest.raises(ValueError, match=r"^a/b must contain ") as caught:
        NameMap(SMALL).match(names, source="a/b")
    assert str(caught.value) == (
        f"a/b must contain block.{missing}.w, since it contains block.11.w; it is incomplete. "
        "Download it again."
    )


def test_match_refuses_gaps_of_any_length_at_once():
    with pytest.raises(ValueError, match=r"must contain block.00000.b, .* block.99999.b"):
        NameMap(SMALL, digits=5).match(["block.99999.b"], source="file")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("block.0.w", "block.00.w"),
        ("block.00000.w", "block.0.w"),
        ("block.0.w", "old.0.w"),
        ("embeddings", "table"),
        ("table", "table"),
    ],
)
def test_match_refuses_what_is_there_twice(first, second):
    with pytest.raises(ValueError, match=f"^file must .*, got {first} and {second}.$"):
        NameMap(SMALL).match(["x", first, "block.0.b", second], source="file")


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_leaf_is_what_match_finds(digits):
    naming = NameMap(SMALL, digits=digits)
    leaf = naming.leaf("stack/layers/w", 11)
    assert leaf.names == tuple(f"block.{i:0{digits}}.w" for i in range(11))
    assert (leaf.axes, leaf.per_layer) == ((1, 0), True)
    assert naming.match(reversed(leaf.names), source="file") == ({"stack/layers/w": leaf}, [])
    assert naming.leaf("table", 11) == Leaf(("table",), (2, 0, 1), False)
    assert naming.leaf("stack/layers/b", 0).names == ()


def test_match_counts_digits():
    names = ["block.0.b", "block.00.b", "block.000.b", "block.123456.b"]
    layout, rest = NameMap(SMALL, digits=3).match(names, source="file")
    assert layout["stack/layers/b"].names == ("block.000.b",)
    assert rest == ["block.0.b", "block.00.b", "block.123456.b"]


@pytest.mark.parametrize("ndim", range(5))
def test_leaf_axes_are_those_of_transpose(ndim):
    theirs = np.arange(120).reshape((*(2, 3, 4, 5, 1)[:ndim], -1) if ndim else (120,))
    for axes in [(), *itertools.permutations(range(theirs.ndim))]:
        leaf = Leaf(("x",), axes, False)
        ours = theirs.transpose(axes) if axes else theirs
        assert leaf.to_ours(theirs.shape) == ours.shape
        assert leaf.to_theirs(ours.shape) == theirs.shape
        np.testing.assert_array_equal(ours.transpose(leaf.inverse(ours.ndim)), theirs)
        # Indices turn like shapes.
        index = tuple(slice(n // 3, n) for n in ours.shape)
        np.testing.assert_array_equal(
            theirs[leaf.to_theirs(index)], ours[index].transpose(leaf.inverse(ours.ndim))
        )


def test_leaf_of_one_element_has_no_axes():
    leaf = Leaf(("x",), (), False)
    assert leaf.to_ours(()) == leaf.to_theirs(()) == leaf.inverse(0) == ()
