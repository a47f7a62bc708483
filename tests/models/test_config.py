"""Every published size against its parameter count, and every way to write a config wrongly."""

import dataclasses
import functools
import json
import math

import jax
import pytest

from t5jax.models.config import ComputePolicy, T5Config, pad_vocab, read_compute_fields
from t5jax.models.presets import preset_fields
from t5jax.models.t5 import abstract_params

# Parameters of the released checkpoints.
PARAMETERS = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "t5-v1_1-small": 76_961_152,
    "t5-v1_1-base": 247_577_856,
    "t5-v1_1-large": 783_150_080,
    "t5-v1_1-xl": 2_849_757_184,
    "t5-v1_1-xxl": 11_135_332_352,
    "t5-small-lm-adapt": 76_961_152,
    "t5-base-lm-adapt": 247_577_856,
    "t5-large-lm-adapt": 783_150_080,
    "t5-xl-lm-adapt": 2_849_757_184,
    "t5-xxl-lm-adapt": 11_135_332_352,
    "flan-t5-small": 76_961_152,
    "flan-t5-base": 247_577_856,
    "flan-t5-large": 783_150_080,
    "flan-t5-xl": 2_849_757_184,
    "flan-t5-xxl": 11_135_332_352,
    "mt5-small": 300_176_768,
    "mt5-base": 582_401_280,
    "mt5-large": 1_229_581_312,
    "mt5-xl": 3_742_619_648,
    "mt5-xxl": 12_921_057_280,
    "byt5-small": 299_637_760,
    "byt5-base": 581_653_248,
    "byt5-large": 1_228_183_552,
    "byt5-xl": 3_737_801_728,
    "byt5-xxl": 12_906_899_328,
    "umt5-small": 306_601_984,
    "umt5-base": 592_043_520,
    "umt5-xl": 3_768_356_864,
    "umt5-xxl": 12_972_531_712,
    "ul2": 19_459_613_696,
    "flan-ul2": 19_459_613_696,
}

# Family: activation, gated, tied, scaled, bias in every layer, dropout of pre-training.
SWITCHES = {
    "t5-small": ("relu", False, True, True, False, 0.1),
    "t5-11b": ("relu", False, True, True, False, 0.1),
    "t5-v1_1-base": ("gelu_tanh", True, False, False, False, 0.0),
    "t5-base-lm-adapt": ("gelu_tanh", True, False, False, False, 0.0),
    "flan-t5-xxl": ("gelu_tanh", True, False, False, False, 0.0),
    "mt5-small": ("gelu_tanh", True, False, False, False, 0.0),
    "byt5-small": ("gelu_tanh", True, False, False, False, 0.0),
    "umt5-xl": ("gelu_tanh", True, False, False, True, 0.0),
    "flan-ul2": ("silu", True, True, True, False, 0.0),
}


@functools.cache
def count_parameters(config: T5Config) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(config)))


def test_presets_are_those_with_a_published_count():
    assert set(preset_fields()) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_preset_has_published_parameter_count(name):
    assert count_parameters(T5Config.preset(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", SWITCHES)
def test_preset_has_switches_of_its_family(name):
    preset = T5Config.preset(name)
    assert SWITCHES[name] == (
        preset.activation,
        preset.gated_ff,
        preset.tie_embeddings,
        preset.scale_logits,
        preset.relative_bias_per_layer,
        preset.dropout_rate,
    )


@pytest.mark.parametrize("name", PARAMETERS)
def test_preset_shares_constants_of_all_families(name):
    preset = T5Config.preset(name)
    assert (preset.relative_buckets, preset.relative_max_distance) == (32, 128)
    assert preset.norm_epsilon == 1e-6
    assert (preset.pad_id, preset.eos_id, preset.decoder_start_id) == (0, 1, 0)


def test_preset_takes_hub_ids_and_changes():
    assert T5Config.preset("google/flan-t5-xl") == T5Config.preset("flan-t5-xl")
    assert T5Config.preset("google-t5/t5-small") == T5Config.preset("t5-small")
    assert T5Config.preset("t5-small", dropout_rate=0.0).dropout_rate == 0.0


def test_preset_unknown_suggests_nearest():
    with pytest.raises(ValueError, match=r"unknown preset 'flan-t5-smal'.*'flan-t5-small'"):
        T5Config.preset("flan-t5-smal")


def test_preset_unlike_any_lists_all():
    with pytest.raises(ValueError, match=r"unknown preset 'bert'.*t5-small.*umt5-xxl"):
        T5Config.preset("bert")


def test_presets_hands_out_copies():
    first, second = preset_fields(), preset_fields()
    assert first is not second
    assert all(first[name] is not second[name] for name in first)


def test_config_json_round_trip(tiny_config):
    changed = tiny_config.replace(activation="gelu_erf", gated_ff=False, dropout_rate=0.1, eos_id=2)
    assert T5Config.from_json(changed.to_json()) == changed
    assert json.loads(changed.to_json()) == dataclasses.asdict(changed)


def test_config_from_json_fills_in_defaults(tiny_config):
    fields = json.loads(tiny_config.to_json())
    defaults = {f.name for f in dataclasses.fields(T5Config)} - {"vocab_size", "d_model", "d_ff"}
    defaults -= {"num_heads", "num_encoder_layers", "num_decoder_layers"}
    required = {name: value for name, value in fields.items() if name not in defaults}
    loaded = T5Config.from_json(json.dumps(required))
    assert loaded.vocab_size == 97
    assert loaded.d_kv == 64
    assert loaded.relative_buckets == 32
    assert loaded.gated_ff is True


def test_config_from_file_names_file(tmp_path, tiny_config):
    path = tmp_path / "config.json"
    path.write_text(tiny_config.to_json())
    assert T5Config.from_file(path) == tiny_config
    path.write_text(tiny_config.to_json().replace('"d_ff": 24', '"d_ff": -24'))
    with pytest.raises(ValueError, match=r"config\.json: d_ff must be at least 1, got -24"):
        T5Config.from_file(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"here must be JSON"),
        ("[1]", r"here must be a JSON object, got list"),
        ('{"d_modle": 8}', r"here: unknown field 'd_modle'; did you mean 'd_model'\?"),
        ('{"d_model": 8}', r"here lacks vocab_size, d_ff, num_heads, num_encoder_layers"),
    ],
)
def test_config_from_json_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        T5Config.from_json(text, source="here")


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, r"vocab_size must be at least 1, got 0"),
        ({"d_model": 0}, r"d_model must be at least 1, got 0"),
        ({"d_ff": -1}, r"d_ff must be at least 1, got -1"),
        ({"d_kv": 0}, r"d_kv must be at least 1, got 0"),
        ({"num_heads": 0}, r"num_heads must be at least 1, got 0"),
        ({"num_encoder_layers": 0}, r"num_encoder_layers must be at least 1, got 0"),
        ({"num_decoder_layers": -1}, r"num_decoder_layers .* got -1; 0 makes an encoder-only"),
        ({"relative_buckets": 2}, r"relative_buckets must be even .* got 2; T5 uses 32"),
        ({"relative_buckets": 7}, r"relative_buckets must be even .* got 7; T5 uses 32"),
        ({"relative_max_distance": 4}, r"exceed relative_buckets / 2 = 4, got 4; T5 uses 128"),
        ({"dropout_rate": 1.0}, r"dropout_rate must be in \[0, 1\), got 1\.0"),
        ({"dropout_rate": -0.1}, r"dropout_rate must be in \[0, 1\), got -0\.1"),
        ({"dropout_rate": math.nan}, r"dropout_rate must be in \[0, 1\), got nan"),
        ({"norm_epsilon": 0.0}, r"norm_epsilon must be positive, got 0\.0; use 1e-6"),
        ({"norm_epsilon": math.nan}, r"norm_epsilon must be positive.* got nan; use 1e-6"),
        ({"pad_id": 97}, r"pad_id must be in \[0, vocab_size = 97\), got 97"),
        ({"eos_id": -1}, r"eos_id must be in \[0, vocab_size = 97\), got -1"),
        ({"decoder_start_id": 100}, r"decoder_start_id must be in .*97\), got 100"),
        ({"activation": "gelu"}, r"unknown activation 'gelu'; .*gelu_tanh"),
        ({"activation": "swish"}, r"unknown activation 'swish'; use one of relu, gelu_tanh"),
        ({"activation": None}, r"activation must be of type string, got None"),
        ({"d_model": 16.0}, r"d_model must be of type int, got 16\.0"),
        ({"d_model": True}, r"d_model must be of type int, got True"),
        ({"gated_ff": 1}, r"gated_ff must be of type bool, got 1"),
        ({"dropout_rate": "0.1"}, r"dropout_rate must be of type float, got '0\.1'"),
    ],
)
def test_config_refuses(tiny_config, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config.replace(**changes)


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"remat": "ful"}, r"unknown remat 'ful'; did you mean 'full'\?"),
        ({"attention": "dense"}, r"unknown attention 'dense'; use one of auto, plain"),
        ({"dtype": "bfloat"}, r"unknown dtype 'bfloat'; did you mean 'bfloat16'\?"),
        ({"dtype": None}, r"unknown dtype None; use one of float32, bfloat16"),
    ],
)
def test_compute_policy_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        ComputePolicy().replace(**changes)


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize("name", ["float16", "fp16", "half"])
def test_compute_policy_refuses_float16_with_the_reason(name):
    with pytest.raises(ValueError, match=rf"'{name}'.*overflows float16.*bfloat16 or float32"):
        ComputePolicy(dtype=name)


def test_config_of_an_older_version_holds_the_policy_beside_it(tmp_path, tiny_config):
    fields = {**json.loads(tiny_config.to_json()), "dtype": "bfloat16", "remat": "full"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    assert T5Config.from_file(path) == tiny_config
    assert read_compute_fields(path) == {"dtype": "bfloat16", "remat": "full"}
    path.write_text(tiny_config.to_json())
    assert read_compute_fields(path) == {}


@pytest.mark.usefixtures("own_checks")
def test_config_boundary_values_are_accepted(tiny_config):
    assert tiny_config.replace(num_decoder_layers=0).num_decoder_layers == 0
    assert tiny_config.replace(dropout_rate=0).dropout_rate == 0
    changed = tiny_config.replace(relative_buckets=4, relative_max_distance=3)
    assert (changed.relative_buckets, changed.relative_max_distance) == (4, 3)
    assert tiny_config.replace(pad_id=96).pad_id == 96


def test_config_replace_leaves_original_and_is_hashable(tiny_config):
    changed = tiny_config.replace(d_ff=25)
    assert (changed.d_ff, tiny_config.d_ff) == (25, 24)
    assert len({tiny_config, changed, changed.replace(d_ff=24)}) == 2


@pytest.mark.parametrize(
    ("num_tokens", "rows"),
    # T5, mT5, umT5 and ByT5 as released; then the two sides of a multiple.
    [(32100, 32128), (250100, 250112), (256300, 256384), (259, 384), (384, 384), (385, 512)],
)
def test_pad_vocab_gives_released_tables(num_tokens, rows):
    assert pad_vocab(num_tokens) == rows
