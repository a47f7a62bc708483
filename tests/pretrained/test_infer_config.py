"""What the shapes of parameters say, for every published T5 and for nonsense."""

import dataclasses
import functools

import numpy as np
import pytest
from helpers import hf_folders
from hypothesis import given, settings, strategies as st

from t5jax.checkpoint.trees import shapes_by_path
from t5jax.models.config import T5Config
from t5jax.models.presets import preset_fields
from t5jax.models.t5 import abstract_params
from t5jax.pretrained.formats.lazy_array import FileRegion
from t5jax.pretrained.hf.load import hf_name_map
from t5jax.pretrained.infer_config import (
    drop_decoder,
    infer_fields,
    infer_shapes,
    infer_switches,
    mark_shared_bias,
)
from t5jax.pretrained.name_map import Leaf

BIAS = "encoder/relative_bias/embedding"
LAYER_BIAS = "encoder/layers/relative_bias/embedding"
# What no shape tells; activation and scaling follow from a rule that UL2 breaks in one.
UNSEEN = {
    *("relative_max_distance", "norm_epsilon", "dropout_rate", "pad_id", "eos_id"),
    *("decoder_start_id", "family"),
}


@functools.cache
def shapes_of(config):
    return shapes_by_path(abstract_params(config))


def arrays_of(shapes, tmp_path):
    """Arrays of these shapes, whose files do not exist."""
    return {
        name: FileRegion(
            file=tmp_path / "missing",
            segments=((0, 2 * int(np.prod(shape))),),
            shape=shape,
            dtype=np.dtype(np.float16),
        )
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def tiny_shapes(tiny_config):
    return shapes_of(tiny_config)


@pytest.mark.parametrize("name", preset_fields())
def test_fields_recover_every_preset(name):
    config = T5Config.preset(name)
    found = infer_fields(shapes_of(config), source="file")
    assert found.keys() == {field.name for field in dataclasses.fields(config)} - UNSEEN
    expected = {name: getattr(config, name) for name in found}
    if "ul2" in name:
        assert expected["activation"] == "silu"
        expected["activation"] = "gelu_tanh"
    assert found == expected
    changes = {name: getattr(config, name) for name in ("activation", *UNSEEN)}
    assert T5Config(**found).replace(**changes) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_embeddings": True, "scale_logits": True},
        {"gated_ff": False, "activation": "relu"},
        {"relative_bias_per_layer": True},
        {"num_decoder_layers": 0, "tie_embeddings": True, "scale_logits": True},
        {
            "num_decoder_layers": 0,
            "tie_embeddings": True,
            "scale_logits": True,
            "projection_dim": 7,
        },
        {"num_encoder_layers": 1, "num_decoder_layers": 1, "relative_bias_per_layer": True},
        {"num_heads": 1, "d_kv": 1, "d_model": 1, "d_ff": 1},
    ],
)
def test_fields_recover_other_architectures(tiny_config, changes):
    config = tiny_config.replace(**changes)
    found = infer_fields(shapes_of(config), source="file")
    assert T5Config(**found, relative_max_distance=12) == config


def test_switches_are_the_fields_that_say_which_parameters_there_are(tiny_config):
    found = infer_switches(shapes_of(tiny_config.replace(num_decoder_layers=1)))
    assert found == {
        "vocab_size": 97,
        "gated_ff": True,
        "tie_embeddings": False,
        "projection_dim": 0,
        "relative_bias_per_layer": False,
    }


def error_of(shapes) -> str:
    with pytest.raises(ValueError, match=r"^a/file must ") as caught:
        infer_fields(shapes, source="a/file")
    assert type(caught.value) is ValueError
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "path",
    ["token_embedder/embedding", "encoder/layers/attention/query", "encoder/layers/mlp/wi", BIAS],
)
@pytest.mark.parametrize("shape", [None, (), (4,), (4, 5, 6, 7)])
def test_fields_name_what_they_lack(tiny_shapes, path, shape):
    shapes = {**tiny_shapes, path: shape}
    if shape is None:
        del shapes[path]
    shown = "none" if shape is None else str(shape)
    assert f"but {path} has shape {shown}." in error_of(shapes)


def test_fields_of_layers_with_tables_need_one_for_each(tiny_config):
    shapes = shapes_of(tiny_config.replace(relative_bias_per_layer=True))
    assert f"but {LAYER_BIAS} has shape (8, 3)." in error_of({**shapes, LAYER_BIAS: (8, 3)})


def test_fields_of_nothing_are_an_error():
    assert "token_embedder/embedding has shape none" in error_of({})


@pytest.mark.parametrize(("heads", "joined"), [(0, 15), (4, 15), (16, 15)])
def test_fields_refuse_heads_that_do_not_divide_kernels(tiny_shapes, heads, joined):
    shapes = {**tiny_shapes, BIAS: (8, heads), "encoder/layers/attention/query": (2, 16, joined)}
    message = error_of(shapes)
    assert f"a multiple of the {heads} heads of its relative bias, got {joined}." in message


SHAPES = st.lists(st.integers(0, 6), max_size=4).map(tuple)
PATHS = [
    *("token_embedder/embedding", "encoder/layers/attention/query", "encoder/layers/mlp/wi"),
    *(BIAS, LAYER_BIAS, "decoder/layers/self_attention/query", "output/kernel"),
    *("projection/kernel", "encoder/layers/mlp/wi_linear"),
]


@settings(max_examples=100, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(PATHS), st.none() | SHAPES, max_size=4))
def test_fields_of_any_shapes_are_found_or_an_error(tiny_shapes, changes):
    shapes = {
        path: shape for path, shape in {**tiny_shapes, **changes}.items() if shape is not None
    }
    try:
        found = infer_fields(shapes, source="file")
    except ValueError:
        error_of(shapes)
        return
    assert all(isinstance(value, int | str) for value in found.values())


@pytest.mark.parametrize(
    "options", [{}, {"gated": True, "head": True}, {"gated": True, "decoder": False}]
)
def test_shapes_are_those_of_the_model(tmp_path, options):
    """Of a Hugging Face file, whose names and shapes were written down without this library."""
    theirs = hf_folders.shapes(hf_folders.CONFIG, **options)
    layout, rest = hf_name_map(gated="gated" in options).match(theirs, source="file")
    assert rest == []
    mark_shared_bias(layout, keep=False)
    found = infer_shapes(layout, arrays_of(theirs, tmp_path))
    decoder = options.get("decoder", True)
    tied = "head" not in options
    config = T5Config(
        vocab_size=97,
        d_model=16,
        d_kv=5,
        num_heads=3,
        d_ff=24,
        num_encoder_layers=2,
        num_decoder_layers=3 if decoder else 0,
        gated_ff="gated" in options,
        activation="gelu_tanh" if "gated" in options else "relu",
        tie_embeddings=tied,
        scale_logits=tied,
        relative_buckets=8,
    )
    assert found == shapes_of(config)
    assert T5Config(**infer_fields(found, source="file")) == config


def test_shapes_tell_the_first_layer_alone(tmp_path):
    arrays = arrays_of({"w.0": (2, 3), "w.1": (5, 7), "all": (3, 4, 5), "flat": (9,)}, tmp_path)
    layout = {
        "layers/w": Leaf(("w.0", "w.1"), (1, 0), True),
        "layers/same": Leaf(("w.0", "w.1"), (), True),
        "scanned": Leaf(("all",), (1, 2, 0), False),
    }
    found = {"layers/w": (2, 3, 2), "layers/same": (2, 2, 3), "scanned": (4, 5, 3)}
    assert infer_shapes(layout, arrays) == found


def test_shapes_of_arrays_with_other_axes_are_as_they_are(tmp_path):
    arrays = arrays_of({"w.0": (4,), "all": (), "more": (1, 2, 3, 4)}, tmp_path)
    layout = {
        "layers/w": Leaf(("w.0",), (1, 0), True),
        "none": Leaf(("all",), (1, 2, 0), False),
        "more": Leaf(("more",), (1, 2, 0), False),
    }
    found = {"layers/w": (4,), "none": (), "more": (1, 2, 3, 4)}
    assert infer_shapes(layout, arrays) == found


def table(*names):
    return Leaf(names, (1, 0), True)


def test_share_bias_moves_tables_of_first_layers():
    layout = {"encoder/layers/relative_bias/embedding": table("e0"), "other": table("x", "y")}
    layout["decoder/layers/relative_bias/embedding"] = table("d0")
    mark_shared_bias(layout, keep=False)
    assert layout == {
        "other": table("x", "y"),
        "encoder/relative_bias/embedding": Leaf(("e0",), (1, 0), False),
        "decoder/relative_bias/embedding": Leaf(("d0",), (1, 0), False),
    }


@pytest.mark.parametrize(
    ("encoder", "decoder", "keep"),
    [
        (table("e0", "e1"), table("d0", "d1"), False),
        # A stack of one layer beside one of two, all with tables of their own.
        (table("e0", "e1"), table("d0"), False),
        (table("e0"), table("d0", "d1"), False),
        (table("e0"), table("d0"), True),
    ],
)
def test_share_bias_leaves_tables_that_layers_own(encoder, decoder, keep):
    layout = {
        "encoder/layers/relative_bias/embedding": encoder,
        "decoder/layers/relative_bias/embedding": decoder,
    }
    before = dict(layout)
    mark_shared_bias(layout, keep=keep)
    assert layout == before


def test_share_bias_leaves_tables_that_are_shared_already():
    layout = {BIAS: Leaf(("e",), (1, 0), False)}
    mark_shared_bias(layout, keep=False)
    assert layout == {BIAS: Leaf(("e",), (1, 0), False)}
    mark_shared_bias({}, keep=False)


def test_keep_encoder_moves_the_decoder_to_what_is_ignored(tiny_config):
    layout = {path: Leaf((f"{path}.0", f"{path}.1"), (), False) for path in shapes_of(tiny_config)}
    decoder = [path for path in layout if path.split("/")[0] in ("decoder", "output")]
    assert len(decoder) == 17
    ignored = {"step": "not a model parameter"}
    drop_decoder(layout, ignored)
    encoder_only = tiny_config.replace(num_decoder_layers=0, tie_embeddings=True)
    assert layout.keys() == shapes_of(encoder_only).keys()
    expected = {f"{path}.{i}": "decoder only" for path in decoder for i in (0, 1)}
    assert ignored == {"step": "not a model parameter"} | expected
