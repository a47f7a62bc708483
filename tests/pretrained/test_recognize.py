import json

import numpy as np
import pytest
import safetensors.numpy

import t5jax

KINDS = {
    "model.gguf": (b"GGUF\x03\x00\x00\x00", "GGUF.*llama.cpp"),
    "model.h5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "model.onnx": (b"\x08\x07\x12\x07pytorch", "ONNX"),
    "model.tflite": (b"TFL3....", "TensorFlow Lite"),
}


@pytest.mark.parametrize("name", KINDS)
def test_files_of_other_programs_are_named(tmp_path, name):
    content, kind = KINDS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=kind):
        t5jax.load(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adapter_config.json", "PEFT adapter.*base model is google/flan-t5-small"),
        ("tf_model.h5", "TensorFlow"),
        ("encoder_model.onnx", "ONNX"),
        ("rust_model.ot", "rust-bert"),
        ("zero_to_fp32.py", "DeepSpeed"),
        ("t5xxl.gguf", "GGUF"),
    ],
)
def test_folders_of_other_programs_are_named(tmp_path, name, kind):
    base = {"base_model_name_or_path": "google/flan-t5-small"}
    (tmp_path / name).write_text(json.dumps(base))
    with pytest.raises(ValueError, match=kind):
        t5jax.load(tmp_path)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        ("base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight", "PEFT adapter"),
        ("model.diffusion_model.joint_blocks.0.x", "image model"),
        ("blocks.0.attn.q.weight", "Wan"),
        ("model.layers.0.self_attn.q_proj.weight", "decoder-only"),
        ("something.else", "something.else"),
    ],
)
def test_tensors_of_other_models_are_named(tmp_path, tensor, kind):
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({tensor: np.zeros((2, 2), np.float32)}, file)
    with pytest.raises(ValueError, match=kind):
        t5jax.load(file)


def test_t5_inside_an_image_model_is_named(tmp_path):
    anchor = "encoder.block.0.layer.0.SelfAttention.q.weight"
    file = tmp_path / "sd3.safetensors"
    tensors = {f"text_encoders.t5xxl.transformer.{anchor}": np.zeros((2, 2), np.float32)}
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(ValueError, match=r"prefix 'text_encoders\.t5xxl\.transformer\.'.*image"):
        t5jax.load(file)
