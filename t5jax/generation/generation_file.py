"""generation_config.json of Hugging Face transformers, as a `GenerationConfig` and back."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from t5jax.fileio import JsonObject
from t5jax.generation.config import GenerationConfig, check_option_names

_log = logging.getLogger("t5jax")

# Fields with the same name and meaning, and the value with which transformers does nothing.
_SAME: dict[str, object] = {
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "bad_words_ids": (),
    "stop_strings": (),
}
# With `do_sample`; transformers samples from the 50 most likely tokens by default.
_SAMPLING: dict[str, tuple[object, object]] = {
    "top_k": (50, 0),
    "top_p": (None, 1.0),
    "min_p": (None, 0.0),
    "typical_p": (None, 1.0),
}
# Fields of transformers that change its outputs and have no counterpart, with the neutral value.
_UNSUPPORTED: dict[str, object] = {
    "constraints": None,
    "diversity_penalty": 0.0,
    "dola_layers": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": None,
    "force_words_ids": None,
    "guidance_scale": 1.0,
    "max_time": None,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "penalty_alpha": 0.0,
    "remove_invalid_values": False,
    "renormalize_logits": False,
    "sequence_bias": None,
    "token_healing": False,
    "top_h": None,
    "watermarking_config": None,
}


def from_generation_file(settings: Mapping[str, object], *, source: object) -> GenerationConfig:
    """Convert the settings of a generation_config.json.

    Settings without effect in transformers, such as `top_k` without `do_sample`, have none here.
    Those that would change its outputs and have no counterpart are named in a warning.

    Args:
      settings: contents of the file.
      source: name of the file, for messages.
    Returns:
      The generation options.
    Raises:
      ValueError: a value is invalid.

    Examples:
      >>> settings = {"num_beams": 4, "max_length": 21, "top_k": 5, "do_sample": False}
      >>> config = t5jax.generation.from_generation_file(settings, source="generation_config.json")
      >>> config.num_beams, config.max_new_tokens, config.top_k
      (4, 20, None)
    """
    given = {name: value for name, value in settings.items() if value is not None}
    fields = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if name in _SAME
    }
    if isinstance(fields.get("stop_strings"), str):
        fields["stop_strings"] = (fields["stop_strings"],)
    unsupported = {
        name for name, neutral in _UNSUPPORTED.items() if given.get(name, neutral) != neutral
    }
    for name in ("forced_eos_token_id", "eos_token_id"):
        value = given.get(name)
        if isinstance(value, list) and len(value) > 1:
            unsupported.add(name)
        if isinstance(value, list) and name in fields:
            fields[name] = value[0] if value else None
    try:
        fields |= _lengths(given)
        if given.get("do_sample"):
            if _number(fields, "num_beams", 1) > 1:
                unsupported.add("do_sample")  # beams that are sampled
            else:
                fields |= _sampling(given)
        config = GenerationConfig(**_effective(fields, {}))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source}: {error}") from error
    if unsupported:
        _log.warning(
            f"{source} sets {', '.join(sorted(unsupported))}, which t5jax does not have; outputs "
            "may differ from those of transformers"
        )
    return config


def _number(fields: Mapping[str, object], name: str, default: int) -> int:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be an integer, got {value!r:.60}.")
    return value


def _lengths(given: Mapping[str, object]) -> JsonObject:
    """Convert lengths; transformers' `max_length` and `min_length` count the start token."""
    fields: JsonObject = {}
    if "max_new_tokens" in given:
        fields["max_new_tokens"] = _number(given, "max_new_tokens", 0)
    elif "max_length" in given:
        fields["max_new_tokens"] = max(1, _number(given, "max_length", 0) - 1)
    minimum = max(
        _number(given, "min_new_tokens", 0),
        0 if "min_new_tokens" in given else _number(given, "min_length", 0) - 1,
    )
    if minimum > 0:
        fields["min_new_tokens"] = minimum
    return fields


def _sampling(given: Mapping[str, object]) -> JsonObject:
    fields: JsonObject = {"temperature": given.get("temperature", 1.0)}
    for name, (default, neutral) in _SAMPLING.items():
        value = given.get(name, default)
        if value is not None and value != neutral:
            fields[name] = value
    return fields


def to_generation_file(config: GenerationConfig) -> JsonObject:
    """Convert generation options to the settings of a generation_config.json.

    Options that transformers lacks are left out, and so are defaults.

    Args:
      config: generation options.
    Returns:
      JSON values by name.

    Examples:
      >>> config = t5jax.GenerationConfig(temperature=0.7, top_p=0.9)
      >>> t5jax.generation.to_generation_file(config)
      {'do_sample': True, 'temperature': 0.7, 'top_k': 0, 'top_p': 0.9}
    """
    default = GenerationConfig()
    changed = {
        name: value
        for name, value in vars(config).items()
        if value != getattr(default, name) and name != "automaton"
    }
    settings: JsonObject = {
        name: changed[name]
        for name in (*_SAME, "max_new_tokens", "min_new_tokens")
        if name in changed
    }
    for name in ("suppress_tokens", "begin_suppress_tokens", "stop_strings"):
        if name in settings:
            settings[name] = list(settings[name])
    if "bad_words_ids" in settings:
        settings["bad_words_ids"] = [list(ids) for ids in settings["bad_words_ids"]]
    if config.temperature:
        settings |= {"do_sample": True, "temperature": config.temperature}
        settings |= {"top_k": config.top_k or 0}
        settings |= {
            name: changed[name] for name in ("top_p", "min_p", "typical_p") if name in changed
        }
    return settings


def merge_config(base: GenerationConfig, overrides: Mapping[str, Any]) -> GenerationConfig:
    """Replace options of a model's default, and drop those that then have no effect.

    With `num_beams=1`, for example, the model's `length_penalty` is dropped.

    Args:
      base: default of the model.
      overrides: option -> value.
    Returns:
      The validated config.
    Raises:
      TypeError: an override is unknown.
      ValueError: an override is invalid, or contradicts another.

    Examples:
      >>> base = t5jax.GenerationConfig(num_beams=4, length_penalty=0.6)
      >>> t5jax.generation.merge_config(base, {"temperature": 0.7}).num_beams
      1
    """
    check_option_names(overrides)
    default = GenerationConfig()
    changed = {
        field.name: getattr(base, field.name)
        for field in dataclasses.fields(base)
        if field.name == "automaton" or getattr(base, field.name) != getattr(default, field.name)
    }
    return GenerationConfig(**_effective(changed, overrides) | dict(overrides))


def _effective(fields: JsonObject, overrides: Mapping[str, Any]) -> JsonObject:
    """Return the fields that have an effect together with the overrides, which have priority."""
    fields = {name: value for name, value in fields.items() if name not in overrides}
    dropped: set[str] = set()
    if overrides.get("temperature"):
        dropped.add("num_beams")
    beams = overrides.get("num_beams", 1 if dropped else fields.get("num_beams", 1))
    if beams == 1:
        dropped |= {"length_penalty", "penalty_form", "early_stopping"}
    else:
        dropped.add("temperature")
    if "temperature" in dropped or not {**fields, **overrides}.get("temperature"):
        dropped |= _SAMPLING.keys()
    if any(
        {**fields, **overrides}.get(name) is not None for name in ("allowed_texts", "automaton")
    ):
        dropped.add("stop_strings")
    fields = {name: value for name, value in fields.items() if name not in dropped}
    maximum = {**fields, **overrides}.get("max_new_tokens", GenerationConfig.max_new_tokens)
    if "min_new_tokens" in fields and isinstance(maximum, int) and maximum >= 1:
        # EOS is allowed at the limit at the latest.
        forced = {**fields, **overrides}.get("forced_eos_token_id") is not None
        fields["min_new_tokens"] = min(fields["min_new_tokens"], maximum - forced)
    return fields
