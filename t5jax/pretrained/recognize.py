"""Names of files that are not read, for errors that say what a file is and what reads it."""

from collections.abc import Collection
from pathlib import Path

from t5jax.fileio import read_json_object

_HEAD_BYTES = 16
_ONNX = "an ONNX export; use the original checkpoint"
# First bytes of a file -> what it is and what to do.
_MAGIC = {
    b"GGUF": "a GGUF file of llama.cpp; convert the original checkpoint, or use llama.cpp",
    b"\x89HDF\r\n": "an HDF5 file of TensorFlow or Keras; save it with transformers 4 from_tf=True",
    b"TFL3": "a TensorFlow Lite file; use the original checkpoint",
}
# Names in a folder -> what the folder is and what to do.
_FILES = {
    "adapter_config.json": "a PEFT adapter; merge it with peft's merge_and_unload",
    "tf_model.h5": "a TensorFlow model; save it with transformers 4 from_tf=True",
    "model.onnx": _ONNX,
    "encoder_model.onnx": _ONNX,
    "rust_model.ot": "a model of rust-bert; use the original checkpoint",
    "zero_to_fp32.py": "a DeepSpeed checkpoint; run zero_to_fp32.py in it",
    "shared_vocabulary.json": "a CTranslate2 model; use the original checkpoint",
    "shared_vocabulary.txt": "a CTranslate2 model; use the original checkpoint",
}
# Parts of tensor names -> what the tensors are and what to do.
_TENSORS = {
    "lora_A": "the LoRA weights of a PEFT adapter; merge it with peft's merge_and_unload",
    "lora_down": "a LoRA of an image model; use the text encoder itself",
    "text_encoders.t5xxl": "an image model with its text encoders in one file; save its text "
    "encoder as a separate file",
    "cond_stage_model": "an image model with its text encoders in one file; save its text encoder "
    "as a separate file",
    "model.diffusion_model": "an image model; use its text encoder",
    "blocks.0.attn.q.weight": "a T5 with the names of Wan; use the encoder of the diffusers folder",
    "scale_weight": "fp8 weights with scales; use a bfloat16 or float32 file of the same model",
    "weight.absmax": "bitsandbytes weights; use a bfloat16 or float32 file of the same model",
    "exp_avg": "the state of an optimizer; use the file with the model",
    "roberta.": "a RoBERTa",
    "bert.": "a BERT",
    "model.layers.0.self_attn": "a decoder-only language model",
    "model.decoder.layers.0.self_attn": "a BART-like encoder-decoder",
}


def recognize(path: Path) -> str | None:
    """Say what a file or folder is that no reader opens.

    Args:
      path: path that exists.
    Returns:
      What it is and what to do; None if it is not recognized.
    """
    if path.is_dir():
        for name, meaning in _FILES.items():
            if (path / name).is_file():
                return meaning + _base_model(path / name)
        gguf = next(path.glob("*.gguf"), None)
        return None if gguf is None else _MAGIC[b"GGUF"]
    if not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.read(_HEAD_BYTES)
    if path.suffix == ".onnx":
        return _ONNX
    return next(
        (what for magic, what in _MAGIC.items() if start.startswith(magic) and len(magic) > 1), None
    )


def recognize_tensors(names: Collection[str]) -> str | None:
    """Say what tensors are that are not those of a T5, by their names."""
    for part, meaning in _TENSORS.items():
        if any(part in name for name in names):
            return meaning
    return None


def _base_model(config: Path) -> str:
    if config.name != "adapter_config.json":
        return ""
    base = read_json_object(config).get("base_model_name_or_path")
    return f"; its base model is {base}" if isinstance(base, str) else ""
