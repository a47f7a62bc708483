"""Options of generation: declared once, checked, and each has an effect or is refused."""

import dataclasses
import inspect
import typing

import numpy as np
import pytest

from t5jax.decoding.automaton_builders import trie
from t5jax.generation.config import GenerationConfig, GenerationOverrides, override_config

METHODS = ["generate", "generate_outputs", "stream", "generate_ids"]
FIELDS = [field.name for field in dataclasses.fields(GenerationConfig)]


def test_overrides_are_the_fields_of_the_config_with_their_types():
    fields = typing.get_type_hints(GenerationConfig)
    overrides = typing.get_type_hints(GenerationOverrides)
    assert list(overrides) == FIELDS
    assert overrides == {name: fields[name] for name in FIELDS}
    assert GenerationOverrides.__total__ is False


def test_every_option_is_documented():
    for name in FIELDS:
        # Python 3.13 takes the indentation of docstrings away.
        assert f"\n  {name}: " in inspect.cleandoc(GenerationConfig.__doc__), name


def test_overrides_replace_fields_and_leave_the_others():
    assert override_config(None, {}) == GenerationConfig()
    config = GenerationConfig(num_beams=3, max_new_tokens=5)
    assert override_config(config, {}) == config
    assert override_config(config, {"num_beams": 2}) == GenerationConfig(
        num_beams=2, max_new_tokens=5
    )
    with pytest.raises(ValueError, match=r"temperature .* got 1\.0"):
        override_config(config, {"temperature": 1.0})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("num_beam", r"'num_beam'; did you mean 'num_beams'\?"),
        ("max_tokens", "'max_tokens'; use max_new_tokens"),
        ("do_sample", "temperature"),
        ("decoder_start_token_id", "decoder_start_id"),
        ("force_words_ids", "allowed_texts"),
        ("min_length", "min_new_tokens"),
        ("num_beam_groups", "temperature"),
        ("penalty_alpha", "top_p"),
        ("stop_string", r"did you mean 'stop_strings'\?"),
        ("Temperature", r"did you mean 'temperature'\?"),
        ("xyzzy", "'xyzzy'; .*num_beams, .*truncate"),
    ],
)
def test_unknown_option_is_refused_with_a_suggestion(name, message):
    with pytest.raises(TypeError, match=message):
        override_config(None, {name: 3})


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize("method", METHODS)
def test_unknown_option_is_refused_before_anything_is_computed(t5, method):
    given = {"encoder_mask": None} if method == "generate_ids" else {}
    with pytest.raises(TypeError, match=r"did you mean 'top_p'\?"):
        getattr(t5, method)(*([None] if given else [["x"]]), **given, topp=0.5)


@pytest.mark.parametrize("method", METHODS)
def test_methods_take_a_config_and_overrides(t5, method):
    parameters = inspect.signature(getattr(t5, method)).parameters
    assert parameters["config"].default is None
    assert parameters["overrides"].annotation == typing.Unpack[GenerationOverrides]


def test_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GenerationConfig().num_beams = 3


def test_default_is_greedy():
    assert GenerationConfig().num_beams == 1
    assert GenerationConfig().sampling_params == {}
    assert GenerationConfig(num_beams=4, length_penalty=0.6).sampling_params == {}


def test_sampling_params_are_the_options_that_are_on():
    params = GenerationConfig(temperature=1.0, top_p=0.9, top_k=5, seed=3).sampling_params
    assert params == {"temperature": 1, "top_k": 5, "top_p": np.float32(0.9), "seed": 3}
    dtypes = {name: value.dtype.name for name, value in params.items()}
    assert dtypes == {
        "temperature": "float32",
        "top_k": "int32",
        "top_p": "float32",
        "seed": "int32",
    }


SAMPLED = {"temperature": 1.0}
BEAMS = {"num_beams": 2}


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        # Types.
        ({"max_new_tokens": None}, "max_new_tokens must be an integer, got None"),
        ({"seed": None}, "seed must be an integer, got None"),
        ({"temperature": "1"}, "temperature must be a number, got '1'"),
        ({"num_beams": 2, "length_penalty": "a"}, "length_penalty must be a number, got 'a'"),
        ({"temperature": 1.0, "top_k": 2**70}, r"top_k must be less than 2\*\*31"),
        ({"stop_strings": ["\ud800"]}, "stop_strings must be Unicode"),
        ({"max_new_tokens": 10**9}, "max_new_tokens must be at most 1048576, got 1000000000"),
        ({"repetition_penalty": 1e308}, "repetition_penalty must be"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty must be"),
        ({"bad_words": (word for word in ["the"])}, "bad_words .* got <generator"),
        ({"bad_words": "the"}, "bad_words .* got 'the'"),
        ({"stop_strings": "."}, "stop_strings .* got '.'"),
        ({"allowed_texts": "yes"}, "allowed_texts .* got 'yes'"),
        ({"suppress_tokens": 5}, "suppress_tokens .* got 5"),
        ({"begin_suppress_tokens": [5.0]}, r"begin_suppress_tokens .* got 5\.0"),
        ({"bad_words_ids": [5, 6]}, "bad_words_ids .* got 5 in it"),
        ({"stop_strings": [b"x"]}, "stop_strings .* got b'x' in it"),
        ({"num_beams": 2.0}, r"num_beams .* got 2\.0"),
        ({"max_new_tokens": 4.7}, r"max_new_tokens .* got 4\.7"),
        ({**SAMPLED, "top_k": True}, "top_k .* got True"),
        # Ranges.
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_input_tokens": -1}, "max_input_tokens must be at least 1, got -1"),
        ({"num_beams": 0}, "num_beams must be at least 1, got 0"),
        ({"temperature": -1.0}, r"temperature must be at least 0, got -1\.0"),
        ({"temperature": float("nan")}, "temperature must be at least 0, got nan"),
        ({"temperature": 1e-38}, r"temperature .*1e-6, 1e6.* got 1e-38"),
        ({"seed": -1}, "seed .* got -1"),
        ({**BEAMS, "length_penalty": float("inf")}, "length_penalty .* got inf"),
        ({**BEAMS, "penalty_form": "log"}, "penalty_form .* got 'log'"),
        ({**BEAMS, "early_stopping": "soon"}, "early_stopping .* got 'soon'"),
        ({**SAMPLED, "top_k": 0}, "top_k must be at least 1, got 0"),
        ({**SAMPLED, "top_p": 0.0}, r"top_p must be in \(0, 1\], got 0\.0"),
        ({**SAMPLED, "typical_p": 1.1}, r"typical_p must be in \(0, 1\], got 1\.1"),
        ({**SAMPLED, "min_p": -0.1}, r"min_p must be in \[0, 1\], got -0\.1"),
        ({"min_new_tokens": -1}, "min_new_tokens must be at least 0, got -1"),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size must be at least 0, got -2"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty must be in .*got 0\.0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty must be in .*got nan"),
        ({"bad_words": ["the", ""]}, "bad_words .* the empty text"),
        ({"stop_strings": [""]}, "stop_strings .* the empty text"),
        ({"stop_strings": ["x" * 1001]}, "stop_strings .* 1000 .* got 1001"),
        ({"bad_words_ids": [[5], []]}, "bad_words_ids .* the empty sequence"),
        ({"allowed_texts": []}, "allowed_texts .* got none"),
        # Options without effect.
        ({"top_k": 5}, "top_k .* got top_k=5"),
        ({**BEAMS, "min_p": 0.5}, r"min_p .* got min_p=0\.5"),
        ({"length_penalty": 0.6}, r"length_penalty .* num_beams above 1, got 0\.6"),
        ({"penalty_form": "gnmt"}, "penalty_form .* num_beams above 1, got 'gnmt'"),
        ({"early_stopping": "never"}, "early_stopping .* num_beams above 1, got 'never'"),
        # Contradictions.
        ({**BEAMS, **SAMPLED}, r"temperature .* num_beams .* got 1\.0"),
        ({"max_new_tokens": 5, "min_new_tokens": 6}, "min_new_tokens .* max_new_tokens = 5, got 6"),
        (
            {"min_new_tokens": 3, "max_new_tokens": 3, "forced_eos_token_id": 1},
            "min_new_tokens .* max_new_tokens .* got 3 and 3",
        ),
        ({"forced_bos_token_id": 5, "suppress_tokens": [4, 5]}, "forced_bos_token_id = 5"),
        ({"forced_eos_token_id": 1, "suppress_tokens": [1]}, "forced_eos_token_id = 1"),
        ({"allowed_texts": ["the"], "stop_strings": ["b"]}, "stop_strings .* allowed_texts"),
    ],
)
def test_config_refuses_what_is_wrong_has_no_effect_or_contradicts(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        GenerationConfig(**options)


def test_config_refuses_two_automata():
    automaton = trie([[5]], eos_id=1, vocab_size=97)
    with pytest.raises(ValueError, match="allowed_texts and automaton"):
        GenerationConfig(allowed_texts=["yes"], automaton=automaton)
