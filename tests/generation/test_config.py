"""Options: each has one name and one type, and an unknown one gets a suggestion."""

import dataclasses
import inspect
import pydoc
import typing

import pytest

from t5jax.generation.config import GenerationConfig, GenerationOverrides, Strategy, show_options
from t5jax.generation.constraints import Constraints
from t5jax.text2text import Text2Text

METHODS = ["generate", "answers", "stream", "generate_ids"]
FIELDS = [field.name for field in dataclasses.fields(GenerationConfig)]


def test_given_has_the_fields_of_options_with_their_types():
    fields = typing.get_type_hints(GenerationConfig)
    given = typing.get_type_hints(GenerationOverrides)
    assert set(given) == set(FIELDS)
    for name in FIELDS:
        assert given[name] == fields[name], name
    assert GenerationOverrides.__total__ is False


def test_options_are_those_of_strategy_constraints_and_limits():
    parts = {field.name for part in (Strategy, Constraints) for field in dataclasses.fields(part)}
    limits = {"max_new_tokens", "batch_size", "max_input_tokens", "truncate"}
    assert set(FIELDS) == parts | limits
    assert not parts & limits


def test_every_option_is_documented():
    """In the class that has it, by name."""
    for part in (Strategy, Constraints, GenerationConfig):
        for name in vars(part)["__annotations__"]:
            # Python 3.13 takes the indentation of docstrings away.
            assert f"\n  {name}: " in inspect.cleandoc(part.__doc__), name


def test_options_of_nothing_are_the_defaults():
    assert GenerationConfig.of({}) == GenerationConfig()
    assert GenerationConfig().max_new_tokens == 64
    assert GenerationConfig.of({"num_beams": 3}) == GenerationConfig(num_beams=3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("num_beam", r"unknown option 'num_beam'; did you mean 'num_beams'\?"),
        ("max_tokens", r"unknown option 'max_tokens'; did you mean 'max_(new|input)_tokens'\?"),
        ("stop_string", r"did you mean 'stop_strings'\?"),
        ("Temperature", r"did you mean 'temperature'\?"),
        ("xyzzy", "unknown option 'xyzzy'; there are .*num_beams, .*truncate"),
    ],
)
def test_unknown_option_is_refused_with_a_suggestion(name, message):
    with pytest.raises(TypeError, match=message):
        GenerationConfig.of({name: 3})


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize("method", METHODS)
def test_unknown_option_is_refused_before_anything_is_computed(t5, method):
    given = {"encoder_mask": None} if method == "generate_ids" else {}
    with pytest.raises(TypeError, match=r"did you mean 'top_p'\?"):
        getattr(t5, method)(*([None] if given else [["x"]]), **given, topp=0.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_input_tokens": -1}, "max_input_tokens must be at least 1, got -1"),
        (
            {"max_new_tokens": 5, "min_new_tokens": 6},
            "min_new_tokens must be at most max_new_tokens = 5, got 6",
        ),
        # Of the parts, which have tests of their own.
        ({"num_beams": 2, "temperature": 1.0}, "temperature must be 0 with beams"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0, got 0.0; 1.0 is none"),
    ],
)
def test_options_refuse_what_is_out_of_range_or_contradicts(given, message):
    with pytest.raises(ValueError, match=message):
        GenerationConfig.of(given)


def test_options_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GenerationConfig().num_beams = 3


# Help.


@pytest.mark.parametrize("method", METHODS)
def test_help_and_completion_list_every_option_with_its_default(t5, method):
    shown = pydoc.render_doc(getattr(t5, method), renderer=pydoc.plaintext)
    parameters = inspect.signature(getattr(t5, method)).parameters
    for field in dataclasses.fields(GenerationConfig):
        assert f"{field.name}:" in shown
        assert parameters[field.name].default == field.default
        assert parameters[field.name].kind is inspect.Parameter.KEYWORD_ONLY
    assert "options" not in parameters
    assert "max_new_tokens: int = 64" in shown
    assert getattr(Text2Text, method).__doc__.splitlines()[0] in shown


def test_shown_leaves_named_parameters_as_they_are():
    def function(first: int, *, num_beams: int = 7, **given):
        return first, num_beams, given

    wrapped = show_options(function)
    parameters = inspect.signature(wrapped).parameters
    assert [*parameters][:2] == ["first", "num_beams"]
    assert parameters["num_beams"].default == 7
    assert [*parameters].count("num_beams") == 1
    assert wrapped(1, top_k=3) == (1, 7, {"top_k": 3})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bad_words": (word for word in ["the"])}, "bad_words must be a list, got <generator"),
        ({"suppress_tokens": 5}, "suppress_tokens must be a list, got 5"),
        ({"bad_words_ids": [5, 6]}, "bad_words_ids must be a list of lists of ids, got 5 in it"),
        ({"stop_strings": [b"x"]}, "stop_strings must be a list of texts, got b'x' in it"),
        ({"num_beams": 2.0}, "num_beams must be a whole number, got 2.0"),
        ({"max_new_tokens": 4.7}, "max_new_tokens must be a whole number, got 4.7"),
        ({"top_k": True, "temperature": 1.0}, "top_k must be a whole number, got True"),
        ({"temperature": 1e-38}, r"temperature must be 0 or in \[1e-6, 1e6\], got 1e-38"),
        (
            {"min_new_tokens": 3, "max_new_tokens": 3, "forced_eos_token_id": 1},
            "min_new_tokens must be less than max_new_tokens for a token to be forced",
        ),
    ],
)
def test_options_refuse_what_would_be_misread(own_checks, given, message):
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**given)
