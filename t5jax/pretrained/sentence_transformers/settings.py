"""Settings of sentence-transformers folders: length limit, lower case, prompts, similarity."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict, cast

from t5jax.errors import shorten
from t5jax.fileio import JsonObject, read_json_object
from t5jax.models import SIMILARITIES, Similarity
from t5jax.pretrained.model_folder import CONFIG_FILE

ENCODER_FILE = "sentence_bert_config.json"
MODEL_FILE = "config_sentence_transformers.json"

# Names of the first file in versions before 2.0.
_ENCODER_FILES = (
    ENCODER_FILE,
    *(
        f"sentence_{name}_config.json"
        for name in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
    ),
)
_TOKENIZER_FILE = "tokenizer_config.json"

_LENGTHS = {_TOKENIZER_FILE: "model_max_length", CONFIG_FILE: "max_position_embeddings"}
_MODEL_TYPES = ("SentenceTransformer",)

# Settings with the only values that a T5 encoder supports.
_REQUIRED: dict[str, tuple[object, ...]] = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings", None),
    "tokenizer_name_or_path": (None,),
}
_TEXT = ({"method": "forward", "method_output_name": "last_hidden_state"},)
# Settings that do not change what `encode` returns; the lengths are those of `encode_query`.
_IGNORED = {"unpad_inputs", "query_length", "document_length", "query_expansion", "backend"}
# Arguments of transformers, old and new names; only the length limit changes an embedding.
_MODEL = {"dtype", "torch_dtype", "attn_implementation", "device_map", "low_cpu_mem_usage"}
_TOKENIZER = {"model_max_length", "use_fast", "padding_side"}
_ARGUMENTS = {
    "model_args": _MODEL,
    "model_kwargs": _MODEL,
    "tokenizer_args": _TOKENIZER,
    "processor_kwargs": _TOKENIZER,
    "config_args": {"use_cache"},
    "config_kwargs": {"use_cache"},
}
_CALL = {"max_length", "truncation", "padding", "pad_to_multiple_of", "return_tensors"}
_CUTS = (True, "longest_first", "only_first")


class Settings(TypedDict):
    """Fields of `SentenceEncoder` other than its layers."""

    max_tokens: int | None
    lower_case: bool
    prompts: dict[str, str]
    default_prompt_name: str | None
    similarity: Similarity | None
    truncate_dim: int | None


def read_settings(path: Path, encoder: Path) -> Settings:
    """Read the settings of a sentence encoder.

    Args:
      path: path of the folder.
      encoder: folder of the T5 encoder.
    Returns:
      The settings.
    Raises:
      ValueError: a file is damaged, or a setting is not supported.
    """
    file = next((encoder / name for name in _ENCODER_FILES if (encoder / name).is_file()), None)
    settings = read_json_object(file) if file is not None else {}
    if file is not None:
        _check_encoder_settings(file, settings)
    lower_case = settings.get("do_lower_case", False)
    if not isinstance(lower_case, bool):
        raise ValueError(f"{file} must set do_lower_case to true or false, got {lower_case!r:.40}.")
    max_tokens = _max_tokens(encoder, file, settings)
    if max_tokens is not None:
        _check_truncation_side(encoder / _TOKENIZER_FILE)
    prompts, default, model = _read_prompts(path / MODEL_FILE)
    similarity = model.get("similarity_fn_name")
    truncate_dim = model.get("truncate_dim")
    if truncate_dim is not None and (type(truncate_dim) is not int or truncate_dim < 1):
        raise ValueError(
            f"{path / MODEL_FILE} must set truncate_dim to a number of at least 1, got "
            f"{truncate_dim!r:.40}."
        )
    return {
        "max_tokens": max_tokens,
        "lower_case": lower_case,
        "prompts": prompts,
        "default_prompt_name": default,
        "similarity": cast(Similarity, similarity) if similarity in SIMILARITIES else None,
        "truncate_dim": truncate_dim,
    }


def _check_encoder_settings(file: Path, settings: JsonObject) -> None:
    """Raise ValueError if a setting would change an embedding in an unsupported way."""
    for key, value in settings.items():
        if key in _ARGUMENTS:
            _check_arguments(file, key, value, _ARGUMENTS[key])
        elif key == "processing_kwargs":
            parts = value if isinstance(value, Mapping) else {"text": value}
            for part in ("common", "text"):
                arguments = parts.get(part, {})
                _check_arguments(file, f"{key}.{part}", arguments, _CALL)
                _check_choice(file, "truncation", arguments.get("truncation", True), _CUTS)
        elif key == "modality_config":
            _check_choice(file, f"{key}.text", _modality(value, "text"), _TEXT)
            _check_choice(file, f"{key}.message", _modality(value, "message"), (None,))
        elif key in _REQUIRED:
            _check_choice(file, key, value, _REQUIRED[key])
        elif key not in {"max_seq_length", "do_lower_case", *_IGNORED}:
            raise ValueError(f"{file} must have only known settings, got {shorten(key)}.")


def _check_arguments(file: Path, key: str, arguments: object, known: set[str]) -> None:
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{file} must set {key} to an object, got {arguments!r:.40}.")
    for name in arguments:
        if name not in known:
            raise ValueError(f"{file} must not set {key}.{shorten(name)}, which is not supported.")


def _check_choice(file: Path, key: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        wanted = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{file} must set {key} to {wanted}, got {value!r:.100}.")


def _modality(value: object, key: str) -> object:
    """Return the settings of a modality, with an output name in a list as the name alone."""
    member = value.get(key) if isinstance(value, Mapping) else value
    if isinstance(member, Mapping) and isinstance(member.get("method_output_name"), list):
        names = member["method_output_name"]
        member = {**member, "method_output_name": names[0] if len(names) == 1 else names}
    return member


def _max_tokens(encoder: Path, file: Path | None, settings: JsonObject) -> int | None:
    """Return the length limit, by sentence-transformers' precedence."""
    processing = settings.get("processing_kwargs", {})
    groups = [processing.get(part, {}).get("max_length") for part in ("common", "text")]
    groups += [
        settings.get(key, {}).get("model_max_length")
        for key in ("processor_kwargs", "tokenizer_args")
    ]
    for limit in (*groups, settings.get("max_seq_length")):
        if file is not None and limit is not None:
            return _checked_length(file, limit)
    # Version 5.4 and later save the limit of the tokenizer; a huge number means no limit.
    limits = []
    for name, key in _LENGTHS.items():
        values = read_json_object(encoder / name) if (encoder / name).is_file() else {}
        limit = values.get(key)
        if limit is not None and limit != -1:
            limits.append(_checked_length(encoder / name, limit))
    return min((limit for limit in limits if limit < 10**9), default=None)


def _checked_length(file: Path, limit: object) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int | float) or limit < 1 or limit % 1:
        raise ValueError(
            f"{file} must set the maximum length of a text to at least 1, got {limit!r:.40}."
        )
    return int(limit)


def _check_truncation_side(file: Path) -> None:
    side = read_json_object(file).get("truncation_side", "right") if file.is_file() else "right"
    _check_choice(file, "truncation_side", side, ("right",))


def _read_prompts(file: Path) -> tuple[dict[str, str], str | None, JsonObject]:
    """Return the prompts, the name of the default prompt, and all settings of the model."""
    settings = read_json_object(file) if file.is_file() else {}
    _check_choice(
        file, "model_type", settings.get("model_type", "SentenceTransformer"), _MODEL_TYPES
    )
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(
        text is None or isinstance(text, str) for text in prompts.values()
    ):
        raise ValueError(f"{file} must set prompts to texts by name, got {prompts!r:.100}.")
    default = settings.get("default_prompt_name")
    names = (*prompts, "query", "document")
    if default is not None and default not in names:
        raise ValueError(
            f"{file} must set default_prompt_name to one of {', '.join(names)}, got "
            f"{default!r:.60}."
        )
    return {name: text or "" for name, text in prompts.items()}, default, settings
