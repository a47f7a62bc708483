"""Conversion between Hugging Face's `config.json` and `T5Config`; tensor shapes take precedence."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5jax.fileio import JsonObject, read_json_object, write_json
from t5jax.models import T5Config
from t5jax.pretrained.infer_config import infer_switches
from t5jax.pretrained.model_folder import CONFIG_FILE, GENERATION_FILE

# Supported model_types and their default activations.
_FAMILIES = {"t5": "relu", "mt5": "gated-gelu", "umt5": "gated-gelu"}

# Unsupported architectures with T5's name or tensor names.
_RELATIVES = {
    "longt5": "its encoder uses local attention",
    "switch_transformers": "its feed-forward layers are mixtures of experts",
    "t5gemma": "it combines two Gemma models",
    "t5gemma2": "it combines two Gemma models",
    "udop": "it reads images and layouts",
    "pix2struct": "it reads images",
    "pix2struct_text_model": "it reads images",
    "pop2piano": "it reads audio",
    "codet5p": "it runs code from its repository",
    "codet5p_embedding": "it runs code from its repository",
    "codet5p_bimodal": "it runs code from its repository",
}

# Hugging Face's activation names and ours; their plain "gelu" is the exact GELU.
_ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}

# Our fields, their keys and defaults; a key without a default is required.
_FIELDS: dict[str, tuple[Any, ...]] = {
    "vocab_size": ("vocab_size",),
    "d_model": ("d_model",),
    "d_ff": ("d_ff",),
    "d_kv": ("d_kv", 64),
    "num_heads": ("num_heads",),
    "num_encoder_layers": ("num_layers", 6),
    "num_decoder_layers": ("num_decoder_layers", None),
    "relative_buckets": ("relative_attention_num_buckets", 32),
    "relative_max_distance": ("relative_attention_max_distance", 128),
    "norm_epsilon": ("layer_norm_epsilon", 1e-6),
    "dropout_rate": ("dropout_rate", 0.1),
    "pad_id": ("pad_token_id", 0),
    "eos_id": ("eos_token_id", 1),
    "decoder_start_id": ("decoder_start_token_id", None),
}


def check_family(path: Path) -> str:
    """Return the model_type of a config.json.

    Raises:
      ValueError: the file is not JSON, or the architecture is not T5's.
    """
    return _family(path, read_json_object(path))


def _family(path: Path, raw: JsonObject) -> str:
    family = raw.get("model_type", "t5")
    if not isinstance(family, str) or family not in _FAMILIES:
        why = _RELATIVES.get(str(family))
        raise ValueError(
            f"{path}: model_type must be one of {', '.join(_FAMILIES)}, got {family!r}, a "
            f"different architecture{f': {why}' if why else ''}."
        )
    return family


# Fields of generation that transformers wrote to config.json before it had a file for them.
_GENERATION_FIELDS = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "remove_invalid_values",
    "repetition_penalty",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
)


def read_generation_file(folder: Path) -> JsonObject:
    """Read the generation_config.json of a folder.

    Args:
      folder: folder of a model, in any format.
    Returns:
      The settings.  Without the file, they are those in a config.json of transformers, which older
      versions wrote; empty without either.
    Raises:
      ValueError: a file is not a JSON object.
    """
    if (folder / GENERATION_FILE).is_file():
        return read_json_object(folder / GENERATION_FILE)
    config = read_json_object(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    return {name: config[name] for name in _GENERATION_FIELDS if name in config}


def read_hf_config(
    path: Path, shapes: Mapping[str, tuple[int, ...]], *, notes: list[str]
) -> T5Config:
    """Read the config of a model.

    Args:
      path: path of config.json.
      shapes: shapes of the parameters, by t5jax path; they determine the vocabulary size, gating,
        tying, per-layer biases and the presence of a decoder.
      notes: list to append a note to for each corrected value.
    Returns:
      The config.
    Raises:
      ValueError: the file is not JSON, the architecture is not T5's, or a value is invalid for T5.
    """
    raw = read_json_object(path)
    family = _family(path, raw)
    missing = [key for key, *default in _FIELDS.values() if not default and key not in raw]
    if missing:
        raise ValueError(f"{path} must have {', '.join(missing)}, which every T5 config has.")
    fields = {ours: raw.get(key, *default) for ours, (key, *default) in _FIELDS.items()}
    switches = infer_switches(shapes)
    if switches["vocab_size"] != fields["vocab_size"]:
        notes.append(
            f"vocab_size is {fields['vocab_size']} in config.json, but the embedding has "
            f"{switches['vocab_size']} rows; using the latter."
        )
    if "decoder/final_norm/scale" not in shapes:
        fields["num_decoder_layers"] = 0
    elif fields["num_decoder_layers"] is None:
        fields["num_decoder_layers"] = fields["num_encoder_layers"]
    start = read_generation_file(path.parent).get("decoder_start_token_id")
    if start is not None and fields["decoder_start_id"] not in (None, start):
        notes.append(
            f"decoder_start_token_id is {fields['decoder_start_id']} in config.json and {start} in "
            f"{GENERATION_FILE}; using the latter, as transformers does to generate."
        )
    if start is not None or fields["decoder_start_id"] is None:
        fields["decoder_start_id"] = fields["pad_id"] if start is None else start
    tie = _switch(path, raw, "tie_word_embeddings")
    scale = _switch(path, raw, "scale_decoder_outputs")
    if tie is False and switches["tie_embeddings"] and fields["num_decoder_layers"]:
        notes.append(
            "config.json does not tie the output layer to the embedding, but the checkpoint has no "
            "output layer; the embedding takes its place, so outputs may be meaningless."
        )
    if scale is None:
        scale = tie is not False
        if family == "t5" and tie and not switches["tie_embeddings"]:
            notes.append(
                "config.json ties the output layer to the embedding, but the checkpoint has an "
                "untied output layer; using it, with scaled logits as in transformers 5."
            )
        if family != "t5" and not switches["tie_embeddings"]:
            # transformers 5 always writes that these families are tied.
            scale = False
    activation = _activation(path, raw, family, gated=switches["gated_ff"], notes=notes)
    try:
        return T5Config(
            **{**fields, **switches},
            activation=activation,  # pyright: ignore[reportArgumentType]
            scale_logits=scale,
        )
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        raise ValueError(f"{path}: {_FIELDS.get(name, (name,))[0]} {rest}") from error


def _activation(path: Path, raw: JsonObject, family: str, *, gated: bool, notes: list[str]) -> str:
    project, name = raw.get("feed_forward_proj"), raw.get("dense_act_fn")
    if gated and name == "gelu":
        notes.append(
            f"dense_act_fn is 'gelu' in {path.name}, the exact GELU, but T5 was trained with "
            "'gelu_new'."
        )
    if name is None:
        project = _FAMILIES[family] if project is None else str(project)
        # In transformers, "gated-gelu" means the tanh approximation.
        name = "gelu_new" if project == "gated-gelu" else project.removeprefix("gated-")
    says_gated = raw.get("is_gated_act") is True or str(project).startswith("gated-")
    if gated and name == "relu" and not says_gated:
        # As in the first umT5 configs; no published T5 has a gated ReLU.
        notes.append(
            f"the feed-forward layers are gated, though {path.name} says otherwise; the activation "
            "is assumed to be gelu_tanh."
        )
        return "gelu_tanh"
    if str(name) not in _ACTIVATIONS:
        raise ValueError(
            f"{path}: the activation in feed_forward_proj or dense_act_fn must be one of "
            f"{', '.join(_ACTIVATIONS)}, got {name!r}."
        )
    return _ACTIVATIONS[str(name)]


def _switch(path: Path, raw: JsonObject, key: str) -> bool | None:
    value = raw.get(key)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{path}: {key} must be true or false, got {value!r}.")
    return value


def write_hf_config(
    folder: Path, config: T5Config, *, generation: JsonObject | None = None
) -> None:
    """Write config.json and generation_config.json.

    Args:
      folder: folder of the model.
      config: model config.
      generation: settings of generation_config.json, in addition to the special ids.
    """
    ids = {
        "decoder_start_token_id": config.decoder_start_id,
        "eos_token_id": config.eos_id,
        "pad_token_id": config.pad_id,
    }
    write_json(folder / CONFIG_FILE, {**_to_hf(config), **ids})
    write_json(folder / GENERATION_FILE, {**ids, **(generation or {})})


def _to_hf(config: T5Config) -> JsonObject:
    activation = {"gelu_tanh": "gelu_new", "gelu_erf": "gelu"}.get(
        config.activation, config.activation
    )
    # transformers takes the activation from feed_forward_proj; the explicit keys override it.
    name = "gelu" if config.activation.startswith("gelu") else activation
    family = "umt5" if config.relative_bias_per_layer else "t5"
    kind = "ForConditionalGeneration" if config.num_decoder_layers else "EncoderModel"
    return {
        "architectures": [f"{family.upper()}{kind}"],
        "model_type": family,
        "is_encoder_decoder": bool(config.num_decoder_layers),
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_ff": config.d_ff,
        "d_kv": config.d_kv,
        "num_heads": config.num_heads,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers or config.num_encoder_layers,
        "feed_forward_proj": f"gated-{name}" if config.gated_ff else name,
        "dense_act_fn": activation,
        "is_gated_act": config.gated_ff,
        "tie_word_embeddings": config.tie_embeddings,
        "scale_decoder_outputs": config.scale_logits,
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_max_distance,
        "layer_norm_epsilon": config.norm_epsilon,
        "dropout_rate": config.dropout_rate,
        "initializer_factor": 1.0,
        "use_cache": True,
    }
