"""Hugging Face folders: `config.json` and `model.safetensors`, single or sharded.

The T5 1.0 and v1.1 layouts (T5, Flan-T5, ByT5, UL2, T0, LM-adapted).  Linear weights are [out, in]
there and [in, out] here; layers are separate there and stacked here.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t5jax.config import T5Config
from t5jax.model import Params, abstract_params, stacked
from t5jax.pretrained.folder import CONFIG_FILE, new_folder
from t5jax.tokenizer import Tokenizer

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_GENERATION = "generation_config.json"
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_DTYPES = ("F32", "BF16", "F16")
# Written by old versions for a bias that cross-attention does not have.
_UNUSED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)

# Names of activations there and here; plain "gelu" is the exact one.
_ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}

# Our fields, their keys, and what an absent key means there; without a default, it must be there.
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

_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
_ENCODER_BLOCK = {
    **{f"attention/{ours}": f"layer.0.SelfAttention.{x}" for ours, x in _ATTENTION.items()},
    "attention_norm/scale": "layer.0.layer_norm",
    "mlp/wo": "layer.1.DenseReluDense.wo",
    "mlp_norm/scale": "layer.1.layer_norm",
}
_DECODER_BLOCK = {
    **{f"self_attention/{ours}": f"layer.0.SelfAttention.{x}" for ours, x in _ATTENTION.items()},
    "self_attention_norm/scale": "layer.0.layer_norm",
    **{f"cross_attention/{ours}": f"layer.1.EncDecAttention.{x}" for ours, x in _ATTENTION.items()},
    "cross_attention_norm/scale": "layer.1.layer_norm",
    "mlp/wo": "layer.2.DenseReluDense.wo",
    "mlp_norm/scale": "layer.2.layer_norm",
}


class _Leaf(NamedTuple):
    """Where one of our parameters lies in their file."""

    names: list[str]
    """One tensor, or one for each layer of a stack."""
    transpose: bool


def holds_model(path: Path) -> bool:
    """Whether `load` is the reader for this folder."""
    weights = (path / _WEIGHTS, path / _INDEX)
    return (path / CONFIG_FILE).is_file() and any(file.is_file() for file in weights)


def load(path: Path) -> tuple[T5Config, Params]:
    """Config and float32 parameters, bit for bit those of the file.

    Raises:
      ValueError: not a T5 that can be read here, damaged files, or weights that do not fit the
        config; the message names the file, and the first tensor at fault with both shapes.
    """
    tensors = _Tensors(path)
    config = read_config(path / CONFIG_FILE, tensors)
    tensors.check(tensors.embedding, (config.vocab_size, config.d_model))
    # Last layers first: a damaged config can ask for more of them than there is memory to name.
    for stack in ("encoder", "decoder") if config.num_decoder_layers else ("encoder",):
        last = getattr(config, f"num_{stack}_layers") - 1
        tensors.check(f"{stack}.block.{last}.layer.0.layer_norm.weight", (config.d_model,))
    layout = _layout(config, embedding=tensors.embedding)
    leaves = jax.tree.leaves_with_path(abstract_params(config))
    shapes = {jax.tree_util.keystr(p, simple=True, separator="/"): x.shape for p, x in leaves}
    for name, leaf in layout.items():
        expected = shapes[name][1:] if stacked(name) else shapes[name]
        for tensor in leaf.names:
            tensors.check(tensor, expected[::-1] if leaf.transpose else expected)
    used = {tensor for leaf in layout.values() for tensor in leaf.names}
    tensors.check_unused(used | {*_EMBEDDINGS, *_UNUSED, "lm_head.weight"})

    params: Params = {}
    for name, leaf in layout.items():
        value = np.empty(shapes[name], np.float32)
        rows = value if stacked(name) else value[None]
        for i, tensor in enumerate(leaf.names):
            rows[i] = tensors.read(tensor).T if leaf.transpose else tensors.read(tensor)
        *parents, last = name.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jnp.asarray(value)
    return config, params


def save(
    path: str | os.PathLike,
    config: T5Config,
    params: Params,
    tokenizer: Tokenizer | None,
    *,
    overwrite: bool = False,
) -> None:
    """Writes a folder that transformers loads; see `t5jax.export_hf`."""
    from safetensors.numpy import save_file

    if config.relative_bias_per_layer:
        raise ValueError(
            "relative_bias_per_layer must be False for a Hugging Face T5, got True (umT5); "
            "save it with `t5.save` instead."
        )
    tensors = {}
    for name, leaf in _layout(config, embedding=_EMBEDDINGS[0]).items():
        value: Any = params
        for part in name.split("/"):
            value = value[part]
        value = np.asarray(value)
        for row, tensor in zip(value if stacked(name) else [value], leaf.names, strict=True):
            tensors[tensor] = np.ascontiguousarray(row.T if leaf.transpose else row)
    with new_folder(path, overwrite=overwrite) as temporary:
        save_file(tensors, temporary / _WEIGHTS, metadata={"format": "pt"})
        _write_json(temporary / CONFIG_FILE, _to_hf(config))
        ids = {
            "decoder_start_token_id": config.decoder_start_id,
            "eos_token_id": config.eos_id,
            "pad_token_id": config.pad_id,
        }
        _write_json(temporary / _GENERATION, ids)
        if tokenizer is not None:
            tokenizer.save(temporary)


def read_config(path: Path, tensors: "_Tensors") -> T5Config:
    """Their config.json, corrected by which tensors there are.

    Args:
      path: of config.json.
      tensors: of the same folder.
    Raises:
      ValueError: not JSON, another architecture, or a value that T5 does not have.
    """
    raw = _read_json(path)
    if raw.get("model_type", "t5") != "t5":
        raise ValueError(
            f"{path}: model_type must be 't5' (T5 1.0, v1.1, Flan-T5, ByT5, UL2), got "
            f"{raw['model_type']!r}, which is another architecture."
        )
    missing = [key for key, *default in _FIELDS.values() if not default and key not in raw]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; every T5 config has them.")
    fields = {ours: raw.get(key, *default) for ours, (key, *default) in _FIELDS.items()}
    if "decoder.final_layer_norm.weight" not in tensors:
        fields["num_decoder_layers"] = 0
    elif fields["num_decoder_layers"] is None:
        fields["num_decoder_layers"] = fields["num_encoder_layers"]
    if fields["decoder_start_id"] is None:
        beside = path.with_name(_GENERATION)
        start = _read_json(beside).get("decoder_start_token_id") if beside.is_file() else None
        fields["decoder_start_id"] = fields["pad_id"] if start is None else start
    tie = _switch(path, raw, "tie_word_embeddings")
    scale = _switch(path, raw, "scale_decoder_outputs")
    activation = _activation(path, raw)
    try:
        return T5Config(
            **fields,
            activation=activation,  # pyright: ignore[reportArgumentType]
            gated_ff="encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in tensors,
            tie_embeddings=not tensors.has_own_output(),
            scale_logits=tie is not False if scale is None else scale,
        )
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        raise ValueError(f"{path}: {_FIELDS.get(name, (name,))[0]} {rest}") from error


def _activation(path: Path, raw: Mapping[str, Any]) -> str:
    project, name = raw.get("feed_forward_proj"), raw.get("dense_act_fn")
    if name is None and project is not None:
        # Their own shorthand: gated "gelu" means the tanh approximation.
        name = "gelu_new" if project == "gated-gelu" else str(project).removeprefix("gated-")
    name = "relu" if name is None else str(name)
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"{path}: the activation in feed_forward_proj or dense_act_fn must be one of "
            f"{', '.join(_ACTIVATIONS)}, got {name!r}."
        )
    return _ACTIVATIONS[name]


def _switch(path: Path, raw: Mapping[str, Any], key: str) -> bool | None:
    value = raw.get(key)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{path}: {key} must be true or false, got {value!r}.")
    return value


def _to_hf(config: T5Config) -> dict[str, Any]:
    activation = {"gelu_tanh": "gelu_new", "gelu_erf": "gelu"}.get(
        config.activation, config.activation
    )
    # Readers derive the activation from feed_forward_proj, then let the explicit keys override it.
    name = "gelu" if config.activation.startswith("gelu") else activation
    return {
        "architectures": [
            "T5ForConditionalGeneration" if config.num_decoder_layers else "T5EncoderModel"
        ],
        "model_type": "t5",
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
        "pad_token_id": config.pad_id,
        "eos_token_id": config.eos_id,
        "decoder_start_token_id": config.decoder_start_id,
        "use_cache": True,
    }


def _layout(config: T5Config, *, embedding: str) -> dict[str, _Leaf]:
    """Our path of every parameter, and its tensors there."""
    layout = {"token_embedder/embedding": _Leaf([embedding], False)}
    inner = {"mlp/wi": "wi_0", "mlp/wi_linear": "wi_1"} if config.gated_ff else {"mlp/wi": "wi"}
    stacks = [("encoder", _ENCODER_BLOCK, config.num_encoder_layers, 1)]
    if config.num_decoder_layers:
        stacks.append(("decoder", _DECODER_BLOCK, config.num_decoder_layers, 2))
    for stack, block, num_layers, mlp in stacks:
        block = {**block, **{k: f"layer.{mlp}.DenseReluDense.{v}" for k, v in inner.items()}}
        for ours, theirs in block.items():
            names = [f"{stack}.block.{i}.{theirs}.weight" for i in range(num_layers)]
            layout[f"{stack}/layers/{ours}"] = _Leaf(names, not ours.endswith("scale"))
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        layout[f"{stack}/relative_bias/embedding"] = _Leaf([bias], False)
        layout[f"{stack}/final_norm/scale"] = _Leaf([f"{stack}.final_layer_norm.weight"], False)
    if config.num_decoder_layers and not config.tie_embeddings:
        layout["output/kernel"] = _Leaf(["lm_head.weight"], True)
    return layout


class _Tensors:
    """The tensors of a folder, read one at a time."""

    def __init__(self, path: Path):
        self._files: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        if (path / _WEIGHTS).is_file():
            file = path / _WEIGHTS
            self._files = dict.fromkeys(self._handle(file).keys(), file)
            self.source = file
        else:
            self.source = path / _INDEX
            weight_map = _read_json(self.source).get("weight_map")
            if not isinstance(weight_map, dict):
                raise ValueError(f"{self.source} must have a 'weight_map' from tensors to files.")
            for tensor, name in weight_map.items():
                if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
                    raise ValueError(
                        f"{self.source}: {tensor} must lie in a file of the same folder, "
                        f"got {name!r}."
                    )
                self._files[tensor] = path / name
        found = [name for name in _EMBEDDINGS if name in self]
        if not found:
            raise ValueError(f"{self.source} must hold shared.weight; it has no embedding at all.")
        self.embedding = found[0]
        for other in found[1:]:
            if not self._equal(self.embedding, other):
                raise ValueError(
                    f"{self.source}: {other} must equal {self.embedding}; "
                    "T5 shares one embedding between encoder and decoder."
                )

    def __contains__(self, tensor: str) -> bool:
        return tensor in self._files

    def has_own_output(self) -> bool:
        """Whether the output layer differs from the embedding."""
        return "lm_head.weight" in self and not self._equal(self.embedding, "lm_head.weight")

    def read(self, tensor: str) -> np.ndarray:
        """One tensor, in the file's dtype."""
        try:
            return self._handle(self._files[tensor]).get_tensor(tensor)
        except Exception as error:  # safetensors has an error class of its own, without a base
            raise ValueError(f"{self._files[tensor]}: cannot read {tensor} ({error}).") from error

    def check(self, tensor: str, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless the tensor is there, of this shape."""
        if tensor not in self:
            raise ValueError(
                f"{self.source} must hold {tensor} of shape {shape}; it lacks it, "
                "so config.json belongs to another model."
            )
        given = self._shape(tensor)
        if given != shape:
            raise ValueError(
                f"{self._files[tensor]}: {tensor} must have shape {shape} for its config.json, "
                f"got {given}; the two belong to different models."
            )

    def check_unused(self, used: set[str]) -> None:
        """Raises ValueError if there are tensors that nobody reads."""
        unknown = sorted(set(self._files) - used)
        if unknown:
            raise ValueError(
                f"{self.source} holds {len(unknown)} tensors that a T5 of its config.json has no "
                f"use for, first {unknown[0]}; it is another architecture or another size."
            )

    def _equal(self, one: str, other: str) -> bool:
        if self._shape(one) != self._shape(other):
            return False
        return self.read(one).tobytes() == self.read(other).tobytes()

    def _shape(self, tensor: str) -> tuple[int, ...]:
        file = self._files[tensor]
        handle = self._handle(file)
        try:
            header = handle.get_slice(tensor)
        except Exception as error:
            raise ValueError(f"{file} must hold {tensor} ({error}).") from error
        if header.get_dtype() not in _DTYPES:
            raise ValueError(
                f"{file}: {tensor} must be of type {', '.join(_DTYPES)}, got "
                f"{header.get_dtype()}; quantized files cannot be read."
            )
        return tuple(header.get_shape())

    def _handle(self, file: Path) -> Any:
        from safetensors import safe_open

        if file not in self._open:
            try:
                self._open[file] = safe_open(file, framework="numpy")
            except Exception as error:
                reason = str(error).partition("\n")[0][:200]
                raise ValueError(
                    f"{file} must be a safetensors file; it is damaged, incomplete or missing "
                    f"({reason}). Download it again."
                ) from error
        return self._open[file]


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be a JSON object, got {type(value).__name__}.")
    return value


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
