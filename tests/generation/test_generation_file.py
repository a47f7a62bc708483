import dataclasses
import json

import pytest

import t5jax
from t5jax.generation.config import GenerationConfig
from t5jax.generation.generation_file import from_generation_file, merge_config, to_generation_file


def test_settings_without_effect_have_none(caplog):
    settings = {
        "temperature": 0.5,
        "top_k": 3,
        "length_penalty": 2.0,
        "early_stopping": True,
        "output_scores": True,
        "transformers_version": "4.40.0",
        "num_return_sequences": 1,
        "diversity_penalty": 0.0,
    }
    assert from_generation_file(settings, source="file") == GenerationConfig()
    assert not caplog.records


def test_settings_that_are_not_there_are_named_once(caplog):
    settings = {"num_beam_groups": 2, "penalty_alpha": 0.6, "num_beams": 2, "do_sample": True}
    config = from_generation_file(settings | {"eos_token_id": [1, 3]}, source="file")
    assert config == GenerationConfig(num_beams=2)
    (record,) = caplog.records
    assert "do_sample, eos_token_id, num_beam_groups, penalty_alpha" in record.getMessage()


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"num_beams": "4"}, "num_beams"),
        ({"num_beams": 0}, "num_beams"),
        ({"max_length": 3.5}, "max_length"),
        ({"do_sample": True, "top_p": 3.0}, "top_p"),
        ({"suppress_tokens": "all"}, "suppress_tokens"),
    ],
)
def test_settings_that_are_invalid_name_file_and_field(settings, name):
    with pytest.raises(ValueError, match=rf"(?s)file: .*{name}"):
        from_generation_file(settings, source="file")


@pytest.mark.parametrize(
    ("base", "overrides", "expected"),
    [
        ({"num_beams": 4, "length_penalty": 0.6}, {"num_beams": 1}, {}),
        ({"num_beams": 4, "length_penalty": 0.6}, {"num_beams": 2}, {"length_penalty": 0.6}),
        ({"num_beams": 4, "early_stopping": True}, {"temperature": 0.7}, {}),
        ({"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.0}, {}),
        ({"temperature": 0.7, "top_p": 0.9}, {"top_k": 3}, {"temperature": 0.7, "top_p": 0.9}),
        ({"temperature": 0.7, "top_p": 0.9}, {"num_beams": 3}, {}),
        ({"min_new_tokens": 10}, {"max_new_tokens": 5}, {"min_new_tokens": 5}),
        ({"stop_strings": ("x",)}, {"allowed_texts": ["a"]}, {}),
        ({"repetition_penalty": 1.2}, {}, {"repetition_penalty": 1.2}),
    ],
)
def test_overrides_drop_what_then_has_no_effect(base, overrides, expected):
    merged = merge_config(GenerationConfig(**base), overrides)
    assert merged == GenerationConfig(**expected | overrides)


def test_overrides_may_not_contradict_one_another():
    with pytest.raises(ValueError, match=r"temperature must be 0 with num_beams above 1, got 0\.5"):
        merge_config(GenerationConfig(), {"num_beams": 2, "temperature": 0.5})
    with pytest.raises(TypeError, match="do_sample"):
        merge_config(GenerationConfig(), {"do_sample": True})


@pytest.mark.parametrize(
    "config",
    [
        GenerationConfig(),
        GenerationConfig(num_beams=3, length_penalty=0.6, early_stopping="never"),
        GenerationConfig(temperature=0.7, top_k=5, typical_p=0.9, max_new_tokens=7),
        GenerationConfig(temperature=0.7, bad_words_ids=((3, 4),), stop_strings=("a",)),
    ],
)
def test_file_holds_the_options(config):
    settings = json.loads(json.dumps(to_generation_file(config)))
    read = dataclasses.asdict(from_generation_file(settings, source="file"))
    assert read | {"bad_words_ids": ()} == dataclasses.asdict(config) | {"bad_words_ids": ()}


def test_default_of_the_model_is_used_and_shown(t5, monkeypatch):
    default = GenerationConfig(max_new_tokens=3, suppress_tokens=(1,))
    monkeypatch.setattr(t5, "generation_config", default)
    texts = ["the baker"]
    assert t5.generate(texts) == t5.generate(texts, default)
    assert t5.generate(texts, max_new_tokens=2) == t5.generate(
        texts, dataclasses.replace(default, max_new_tokens=2)
    )
    [[output]] = t5.generate_outputs(texts)
    assert len(output.ids) == 3
    assert t5.generate(texts, t5jax.GenerationConfig(max_new_tokens=1)) == t5.generate(
        texts, max_new_tokens=1, suppress_tokens=()
    )
