"""Hugging Face's config.json: what real ones say, and what the tensors beside them decide."""

import json

import pytest
from helpers import hf_folders

from t5jax.models.config import T5Config
from t5jax.pretrained.hf_config import read_hf_config, write_hf_config


def shapes(config):
    """Shapes that the weights of a config.json have, as far as they decide on something."""
    # A gated model where feed_forward_proj or is_gated_act says so; an encoder by its class.
    gated = config.get("is_gated_act", "gated" in config.get("feed_forward_proj", ""))
    decoder = config.get("architectures") != ["T5EncoderModel"]
    found = {"token_embedder/embedding": (config["vocab_size"], config["d_model"])}
    if gated:
        found["encoder/layers/mlp/wi_linear"] = (12, 16, 24)
    if decoder:
        found["decoder/final_norm/scale"] = (16,)
    if decoder and config.get("tie_word_embeddings") is False:
        found["output/kernel"] = (16, 97)
    if config.get("model_type") == "umt5":
        found["encoder/layers/relative_bias/embedding"] = (12, 8, 3)
    return found


def read(path):
    notes = []
    config = read_hf_config(path, shapes(json.loads(path.read_text())), notes=notes)
    return config, notes


def expected_config(preset, **changes):
    """Dropout in the files is that of fine-tuning, in the presets that of pre-training."""
    return T5Config.preset(preset, dropout_rate=0.1, **changes)


PUBLISHED = [
    ("t5-small", expected_config("t5-small")),
    # ComfyUI's own rendering says untied, so scaled is what it is not.
    (
        "t5-base.comfyui",
        expected_config("t5-base", tie_embeddings=False, scale_logits=False),
    ),
    ("t5-v1_1-base", expected_config("t5-v1_1-base")),
    ("flan-t5-large", expected_config("flan-t5-large")),
    ("byt5-small", expected_config("byt5-small")),
    ("byt5-large", expected_config("byt5-large")),
    ("t5-v1_1-xxl.comfyui", expected_config("t5-v1_1-xxl")),
    (
        "t5-v1_1-xxl.sd3_encoder",
        expected_config("t5-v1_1-xxl", num_decoder_layers=0, tie_embeddings=True),
    ),
    (
        "mt5-xl.hunyuandit_encoder",
        expected_config("mt5-xl", num_decoder_layers=0, tie_embeddings=True),
    ),
    ("mt5-small", expected_config("mt5-small")),
    ("umt5-base.comfyui", expected_config("umt5-base")),
    ("umt5-xxl.comfyui", expected_config("umt5-xxl")),
]


@pytest.mark.parametrize(("file", "expected"), PUBLISHED)
def test_config_of_published_models_is_read_as_the_papers_have_it(shared_data, file, expected):
    config, notes = read(shared_data / "hf_configs" / f"{file}.config.json")
    assert config == expected
    assert not notes


def test_config_covers_every_file_at_hand(shared_data):
    """No file is left out of the list above."""
    files = {p.name for p in (shared_data / "hf_configs").glob("*.config.json")}
    assert {f"{name}.config.json" for name, _ in PUBLISHED} == files


@pytest.fixture
def config_file(tmp_path):
    """Writes a config.json with some keys changed; None takes one out."""

    def write(**changes):
        keys = {k: v for k, v in {**hf_folders.CONFIG, **changes}.items() if v is not None}
        (tmp_path / "config.json").write_text(json.dumps(keys))
        return tmp_path / "config.json"

    return write


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("longt5", "its encoder uses local attention"),
        ("switch_transformers", "mixtures of experts"),
        ("t5gemma", "two Gemma models"),
        ("t5gemma2", "two Gemma models"),
        ("udop", "reads images"),
        ("pix2struct", "reads images"),
        ("bert", "a different architecture."),
        (5, "a different architecture."),
        ([], "a different architecture."),
    ],
)
def test_config_of_another_architecture_is_refused_by_name(config_file, kind, reason):
    with pytest.raises(ValueError, match=r"model_type must be one of t5, mt5, umt5") as caught:
        read(config_file(model_type=kind))
    assert f"got {kind!r}, a different architecture" in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize("family", ["mt5", "umt5"])
def test_config_of_mt5_and_umt5_is_gated_if_nothing_says_so(config_file, family):
    keys = {"model_type": family, "feed_forward_proj": None, "is_gated_act": None}
    path = config_file(**keys)
    found = {**shapes(json.loads(path.read_text())), "encoder/layers/mlp/wi_linear": (2, 16, 24)}
    config = read_hf_config(path, found, notes=[])
    assert config.activation == "gelu_tanh"
    assert config.gated_ff


def test_config_of_the_first_umt5_is_overruled_by_its_tensors(config_file):
    """They said that they have a ReLU without a gate."""
    keys = {"dense_act_fn": "relu", "is_gated_act": False, "feed_forward_proj": None}
    path = config_file(model_type="umt5", **keys)
    found = {**shapes(json.loads(path.read_text())), "encoder/layers/mlp/wi_linear": (2, 16, 24)}
    notes = []
    config = read_hf_config(path, found, notes=notes)
    assert (config.activation, config.gated_ff) == ("gelu_tanh", True)
    assert "gated, though config.json says otherwise" in notes[0]


@pytest.mark.parametrize("family", ["mt5", "umt5"])
@pytest.mark.parametrize(
    ("tie", "scale", "own_output", "scaled"),
    [
        (False, None, True, False),
        # transformers 5 writes "tied" for all of them.
        (True, None, True, False),
        (True, None, False, True),
        (None, None, False, True),
        (True, False, False, False),
        (False, True, True, True),
    ],
)
def test_config_of_mt5_and_umt5_scales_only_what_is_tied(
    config_file, family, tie, scale, own_output, scaled
):
    path = config_file(model_type=family, tie_word_embeddings=tie, scale_decoder_outputs=scale)
    found = {k: v for k, v in shapes(json.loads(path.read_text())).items() if k != "output/kernel"}
    if own_output:
        found["output/kernel"] = (16, 97)
    config = read_hf_config(path, found, notes=[])
    assert config.scale_logits is scaled
    assert config.tie_embeddings is not own_output


def test_config_has_as_many_words_as_the_embedding(config_file):
    path = config_file(vocab_size=128)
    notes = []
    found = {**shapes(json.loads(path.read_text())), "token_embedder/embedding": (97, 16)}
    assert read_hf_config(path, found, notes=notes).vocab_size == 97
    assert notes == [
        "vocab_size is 128 in config.json, but the embedding has 97 rows; using the latter."
    ]


def test_config_that_is_written_is_read_back(tmp_path, tiny_config):
    for changes in ({}, {"relative_bias_per_layer": True}, {"activation": "silu"}):
        config = tiny_config.replace(**changes)
        write_hf_config(tmp_path, config)
        raw = json.loads((tmp_path / "config.json").read_text())
        assert raw["model_type"] == ("umt5" if changes.get("relative_bias_per_layer") else "t5")
        assert read(tmp_path / "config.json")[0] == config
