"""Model architecture and compute policy."""

import dataclasses
import json
import os
from typing import Any, Literal, get_args

from t5jax.errors import suggest
from t5jax.fileio import JsonObject, parse_json_object, read_text
from t5jax.models.presets import preset_fields

Activation = Literal["relu", "gelu_tanh", "gelu_erf", "silu"]
ComputeDtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "dots", "full"]
AttentionKind = Literal["auto", "plain", "blockwise", "pallas"]
# Embedding tables are padded to a multiple of this: 32100 -> 32128, 250100 -> 250112, 259 -> 384.
VOCAB_MULTIPLE = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """Architecture of a T5 model.

    Defaults are those of T5 v1.1.  `tie_embeddings` and `scale_logits` are independent: T5 1.0 sets
    both, v1.1 neither, and published checkpoints use every combination.

    Attributes:
      family: model family, a key of `t5jax.models.FAMILIES`.
      vocab_size: number of embedding rows, V; at least the tokenizer's vocabulary size.
      d_model: width of the residual stream, D.
      d_ff: width of the feed-forward hidden layer, F.
      num_heads: number of attention heads, N.
      num_encoder_layers: number of encoder blocks.
      num_decoder_layers: number of decoder blocks; 0 = encoder-only model.
      d_kv: width of an attention head, H; not always d_model / num_heads.
      activation: feed-forward activation; T5 v1.1 was trained with "gelu_tanh".
      gated_ff: whether to multiply the activation by a second linear projection (GEGLU etc.).
      tie_embeddings: whether to use the embedding table as output layer.
      scale_logits: whether to multiply the decoder output by d_model**-0.5 before the output layer.
      relative_buckets: number of relative position buckets, R.
      relative_max_distance: distance from which all positions share the last bucket.
      relative_bias_per_layer: whether to use one bias table per layer (umT5) instead of per stack.
      projection_dim: output width of the projection in sentence encoders (sentence-T5, GTR);
        0 = no projection.
      norm_epsilon: added to the mean square in RMSNorm.
      dropout_rate: dropout probability in training.
      pad_id: padding id.
      eos_id: end-of-sequence id.
      decoder_start_id: first id of the decoder input.

    Examples:
      >>> base = t5jax.T5Config.preset("t5-v1_1-base", dropout_rate=0.1)
      >>> base.d_model, base.num_heads * base.d_kv
      (768, 768)
      >>> encoder = base.replace(num_decoder_layers=0)
      >>> t5jax.T5Config.from_json(encoder.to_json()) == encoder
      True
    """

    family: str = "t5"
    vocab_size: int
    d_model: int
    d_ff: int
    num_heads: int
    num_encoder_layers: int
    num_decoder_layers: int
    d_kv: int = 64
    activation: Activation = "gelu_tanh"
    gated_ff: bool = True
    tie_embeddings: bool = False
    scale_logits: bool = False
    relative_buckets: int = 32
    relative_max_distance: int = 128
    relative_bias_per_layer: bool = False
    projection_dim: int = 0
    norm_epsilon: float = 1e-6
    dropout_rate: float = 0.0
    pad_id: int = 0
    eos_id: int = 1
    decoder_start_id: int = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name), field.type)
        _check_choice("activation", self.activation, get_args(Activation))
        for name in (field.name for field in dataclasses.fields(self)):
            value = getattr(self, name)
            if not isinstance(value, str) and abs(value) >= 2**31:
                raise ValueError(f"{name} must be less than 2**31, got {value!r:.20}.")
        for name in ("vocab_size", "d_model", "d_ff", "d_kv", "num_heads", "num_encoder_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.num_decoder_layers < 0:
            raise ValueError(
                f"num_decoder_layers must be at least 0, got {self.num_decoder_layers}; "
                "0 makes an encoder-only model."
            )
        if self.projection_dim < 0:
            raise ValueError(
                f"projection_dim must be at least 0, got {self.projection_dim}; 0 = no projection."
            )
        # The encoder halves the buckets by direction and needs an exact and a logarithmic half.
        if self.relative_buckets < 4 or self.relative_buckets % 2:
            raise ValueError(
                f"relative_buckets must be even and at least 4, got {self.relative_buckets}; "
                "T5 uses 32."
            )
        if self.relative_max_distance <= self.relative_buckets // 2:
            raise ValueError(
                f"relative_max_distance must exceed relative_buckets / 2 = "
                f"{self.relative_buckets // 2}, got {self.relative_max_distance}; T5 uses 128."
            )
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate must be in [0, 1), got {self.dropout_rate}.")
        if not self.norm_epsilon > 0:
            raise ValueError(f"norm_epsilon must be positive, got {self.norm_epsilon}; use 1e-6.")
        for name in ("pad_id", "eos_id", "decoder_start_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(
                    f"{name} must be in [0, vocab_size = {self.vocab_size}), "
                    f"got {getattr(self, name)}."
                )
        if self.pad_id == self.eos_id:
            raise ValueError(f"pad_id and eos_id must differ, got {self.pad_id} for both.")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "T5Config":
        """Return the config of a published model.

        Args:
          name: Hugging Face name, such as "t5-small" or "google/flan-t5-xl".
          **changes: fields to override.
        Returns:
          The config.
        Raises:
          ValueError: unknown preset (the message suggests the nearest) or invalid field.
        """
        known = preset_fields()
        bare = name.removeprefix("google/").removeprefix("google-t5/")
        if bare not in known:
            raise ValueError(_unknown_choice("preset", name, tuple(known)))
        return cls(**{**known[bare], **changes})

    def replace(self, **changes: Any) -> "T5Config":
        """Return a copy with some fields changed.

        Args:
          **changes: fields to override.
        Returns:
          The new config, validated.
        """
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """Return all fields as a JSON object, sorted and indented."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, *, source: str = "config") -> "T5Config":
        """Parse the output of `to_json`.

        Args:
          text: a JSON object; fields with defaults may be absent.  Fields of `ComputePolicy`,
            which older versions wrote here, are ignored.
          source: name of the text in errors, usually its file name.
        Returns:
          The config.
        Raises:
          ValueError: not a JSON object, an unknown or missing field, or a value out of range.
        """
        fields = parse_json_object(text, source=source)
        known = [field.name for field in dataclasses.fields(cls)]
        fields = {name: value for name, value in fields.items() if name not in _COMPUTE_FIELDS}
        for name in fields:
            if name not in known:
                raise ValueError(f"{source}: {_unknown_choice('field', name, tuple(known))}")
        required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        missing = [name for name in required if name not in fields]
        if missing:
            raise ValueError(f"{source} lacks {', '.join(missing)}; add them.")
        try:
            return cls(**fields)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "T5Config":
        """Read a config from a JSON file.

        Args:
          path: file with the output of `to_json`.
        Returns:
          The config.
        Raises:
          ValueError: as in `from_json`.
        """
        return cls.from_json(read_text(path), source=str(path))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputePolicy:
    """Compute settings of a model, separate from its architecture.

    Models that differ only in their policy have the same parameters, and the same outputs up to
    rounding.

    Attributes:
      dtype: dtype of activations and matmuls.  Parameters, norm statistics, softmax, logits and the
        loss are float32 in either case.
      remat: rematerialization in the backward pass: "none", "dots" (recompute everything except
        matmuls with weights) or "full" (recompute whole blocks).
      attention: "plain" computes all query-key scores at once; "blockwise" computes them in blocks,
        in memory linear in the length; "pallas" is blockwise in a TPU kernel.  "auto" is plain up
        to 512 * 512 query-key pairs, then pallas where available, else blockwise.  Decoding loops
        are always plain.

    Examples:
      >>> t5jax.ComputePolicy(dtype="bfloat16").replace(remat="full")
      ComputePolicy(dtype='bfloat16', remat='full', attention='auto')
    """

    dtype: ComputeDtype = "float32"
    remat: Remat = "none"
    attention: AttentionKind = "auto"

    def __post_init__(self):
        _check_choice("dtype", self.dtype, get_args(ComputeDtype))
        _check_choice("remat", self.remat, get_args(Remat))
        _check_choice("attention", self.attention, get_args(AttentionKind))

    def replace(self, **changes: Any) -> "ComputePolicy":
        """Return a copy with some fields changed.

        Args:
          **changes: fields to override.
        Returns:
          The new policy, validated.
        """
        return dataclasses.replace(self, **changes)


_COMPUTE_FIELDS = tuple(field.name for field in dataclasses.fields(ComputePolicy))


def read_compute_fields(path: str | os.PathLike) -> JsonObject:
    """Read the fields of `ComputePolicy` from a config file of an older version.

    Args:
      path: JSON file of a `T5Config`.
    Returns:
      Values of the fields that are present, by name.
    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: not a JSON object, or a field has an invalid value.
    """
    fields = parse_json_object(read_text(path), source=str(path))
    fields = {name: fields[name] for name in _COMPUTE_FIELDS if name in fields}
    try:
        ComputePolicy(**fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return fields


def pad_vocab(num_tokens: int) -> int:
    """Return the number of embedding rows for a vocabulary.

    Args:
      num_tokens: vocabulary size of the tokenizer.
    Returns:
      The next multiple of 128, as in every T5.

    Examples:
      >>> t5jax.models.pad_vocab(32100)
      32128
    """
    return -(-num_tokens // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(_unknown_choice(name, value, choices))


def _unknown_choice(what: str, given: object, known: tuple[str, ...]) -> str:
    hint = suggest(str(given), known, f"use one of {', '.join(known)}.")
    if what == "activation" and str(given).startswith("gelu"):
        hint = "use 'gelu_tanh', which T5 v1.1 was trained with, or 'gelu_erf'."
    if what == "dtype" and given in ("float16", "fp16", "half"):
        hint = "T5 overflows float16, so use bfloat16 or float32."
    return f"unknown {what} {given!r}; {hint}"


def _check_type(name: str, value: object, annotation: Any) -> None:
    if annotation is bool:
        valid = isinstance(value, bool)
    elif annotation is int:
        valid = isinstance(value, int) and not isinstance(value, bool)
    elif annotation is float:
        valid = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        valid = isinstance(value, str)
    if not valid:
        kind = getattr(annotation, "__name__", "str") if isinstance(annotation, type) else "string"
        raise ValueError(f"{name} must be of type {kind}, got {value!r}.")
