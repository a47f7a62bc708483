"""What is said of a checkpoint, and that nothing of its weights is read to say it.

Folders of published sizes are sparse files: a header as safetensors has it, and a body of holes.
"""

import functools
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import hf_folders

from t5jax.models.config import T5Config
from t5jax.models.presets import preset_fields
from t5jax.models.t5 import abstract_params
from t5jax.pretrained import source
from t5jax.pretrained.describe import describe_checkpoint, matching_presets
from t5jax.pretrained.formats import tf_bundle
from t5jax.pretrained.formats.lazy_array import BLOCK_BYTES, FileRegion
from t5jax.pretrained.formats.safetensors import SafetensorsWriter
from t5jax.pretrained.formats.zarr import ZarrArray
from t5jax.pretrained.open import save_pretrained
from t5jax.tokenizers.sentencepiece import train_tokenizer

MESH_TF = Path(__file__).parents[1] / "fixtures" / "mesh_tf"
# Their config.json in what differs between them, of the folders that Google publishes.
V1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
KEYS = {
    "t5": {"feed_forward_proj": "relu", "model_type": "t5"},
    "v1.1": {**V1_1, "model_type": "t5"},
    "mt5": {**V1_1, "model_type": "mt5"},
    "umt5": {**V1_1, "model_type": "umt5"},
    "ul2": {"feed_forward_proj": "gated-silu", "model_type": "t5"},
}
SIZES = {  # rows, width, feed-forward, of a head, heads, layers; from the papers' tables
    "t5-small": ("t5", 32128, 512, 2048, 64, 8, 6, 6),
    "t5-11b": ("t5", 32128, 1024, 65536, 128, 128, 24, 24),
    "flan-t5-small": ("v1.1", 32128, 512, 1024, 64, 6, 8, 8),
    "t5-v1_1-base": ("v1.1", 32128, 768, 2048, 64, 12, 12, 12),
    "flan-t5-xl": ("v1.1", 32128, 2048, 5120, 64, 32, 24, 24),
    "t5-v1_1-xxl": ("v1.1", 32128, 4096, 10240, 64, 64, 24, 24),
    "mt5-small": ("mt5", 250112, 512, 1024, 64, 6, 8, 8),
    "mt5-xxl": ("mt5", 250112, 4096, 10240, 64, 64, 24, 24),
    "byt5-small": ("v1.1", 384, 1472, 3584, 64, 6, 12, 4),
    "byt5-xxl": ("v1.1", 384, 4672, 12352, 64, 64, 36, 12),
    "umt5-xxl": ("umt5", 256384, 4096, 10240, 64, 64, 24, 24),
    "ul2": ("ul2", 32128, 4096, 16384, 256, 16, 32, 32),
}
COUNTS = {  # as their model cards and papers say, to the last one
    "t5-small": 60_506_624,
    "flan-t5-small": 76_961_152,
    "t5-v1_1-base": 247_577_856,
    "flan-t5-xl": 2_849_757_184,
    "mt5-small": 300_176_768,
    "byt5-small": 299_637_760,
    "byt5-xxl": 12_906_899_328,
}


@pytest.fixture(scope="module", autouse=True)
def shapes_once():
    """Tracing every model twice would be half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "abstract_params", functools.cache(abstract_params))
        yield


@pytest.fixture
def unread(monkeypatch):
    """Nothing of any array can be read."""

    def blocks(self, index):
        raise AssertionError(f"{self.file} was read")

    for kind in (FileRegion, ZarrArray):
        monkeypatch.setattr(kind, "blocks", blocks)
    for kind in vars(tf_bundle).values():
        if isinstance(kind, type) and hasattr(kind, "blocks"):
            monkeypatch.setattr(kind, "blocks", blocks)


def write_sparse(path: Path, name: str, dtype=np.float32) -> Path:
    """A folder of published size: config.json, header, and one byte by which lm_head differs."""
    kind, rows, d_model, d_ff, d_kv, num_heads, encoder, decoder = SIZES[name]
    keys = hf_folders.CONFIG | KEYS[kind]
    keys |= {"vocab_size": rows, "d_model": d_model, "d_ff": d_ff, "d_kv": d_kv}
    keys |= {"num_heads": num_heads, "num_layers": encoder, "num_decoder_layers": decoder}
    keys |= {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}
    head = kind in ("v1.1", "mt5", "umt5")
    shapes = hf_folders.shapes(keys, gated=kind != "t5", head=head)
    if kind == "umt5":
        bias = "layer.0.SelfAttention.relative_attention_bias.weight"
        for stack, count in (("encoder", encoder), ("decoder", decoder)):
            names = [f"{stack}.block.{i}.{bias}" for i in range(count)]
            shapes |= dict.fromkeys(names, (32, num_heads))
    path.mkdir()
    (path / "config.json").write_text(json.dumps(keys))
    entries = {name: (shape, np.dtype(dtype)) for name, shape in shapes.items()}
    writer = SafetensorsWriter(path / "model.safetensors", entries)
    writer.close()
    if head:
        with (path / "model.safetensors").open("r+b") as file:
            length = int.from_bytes(file.read(8), "little")
            start = json.loads(file.read(length))["lm_head.weight"]["data_offsets"][0]
            file.seek(8 + length + start)
            file.write(b"\1")
    return path


def run(path, **options):
    return describe_checkpoint(path, **options)


# What is read.


@pytest.mark.parametrize("name", SIZES)
def test_run_names_published_models_of_any_size_at_once(tmp_path, name):
    """Up to 52 GB, of which nothing but a header is there."""
    found = run(write_sparse(tmp_path / "model", name))
    assert name in found["family"].split(", ")
    kind, rows, d_model, d_ff, d_kv, num_heads, encoder, decoder = SIZES[name]
    assert found["layers"] == {"encoder": encoder, "decoder": decoder}
    assert found["sizes"] == {
        "d_model": d_model,
        "d_ff": d_ff,
        "d_kv": d_kv,
        "num_heads": num_heads,
        "vocab_size": rows,
    }
    assert found["parameters"] == COUNTS.get(name, found["parameters"])
    assert found["bytes"] == 4 * found["parameters"]
    assert found["types"] == {"float32": found["parameters"]}
    activations = {"t5": "relu", "ul2": "gated silu"}
    assert found["activation"] == activations.get(kind, "gated gelu_tanh")
    tied = kind in ("t5", "ul2")
    assert found["output"] == (
        "tied to the embedding, scaled" if tied else "untied output layer, unscaled"
    )
    assert found["notes"] == []


def test_run_reads_nothing_of_a_tied_model(tmp_path, unread):
    assert "t5-11b" in run(write_sparse(tmp_path / "model", "t5-11b"))["family"]


def test_run_reads_nothing_of_mesh_tensorflow(unread):
    found = run(MESH_TF)
    assert found["format"] == "Mesh TensorFlow"
    assert found["parameters"] == 3144
    assert found["ignored"] == ["encoder/rms_norm/scale_slot_m and 4 more: not a model parameter"]


@pytest.fixture
def ours(tmp_path, tiny_config, tiny_params):
    save_pretrained(tmp_path / "ours", tiny_config, tiny_params, None)
    return tmp_path / "ours"


def test_run_reads_nothing_of_our_own(ours, tiny_config, unread):
    found = run(ours)
    assert found["format"] == "t5jax"
    assert found["layers"] == {"encoder": 2, "decoder": 3}
    assert found["sizes"]["vocab_size"] == tiny_config.vocab_size


def test_run_reads_an_output_layer_only_as_far_as_it_equals_the_embedding(tmp_path, monkeypatch):
    """The first block tells them apart."""
    path, count, blocks = write_sparse(tmp_path / "model", "mt5-xxl"), 0, FileRegion.blocks

    def counted(self, index):
        nonlocal count
        for where, values in blocks(self, index):
            count += values.nbytes
            yield where, values

    monkeypatch.setattr(FileRegion, "blocks", counted)
    assert run(path)["output"] == "untied output layer, unscaled"
    assert 0 < count <= 2 * BLOCK_BYTES


# What is said.


@pytest.fixture
def folder(tmp_path):
    vocabulary = train_tokenizer(["a bee sees a bee"], vocab_size=10, num_sentinels=5)
    tensors = hf_folders.random_tensors(hf_folders.CONFIG)
    tensors = {
        name: value.astype(ml_dtypes.bfloat16) if "encoder" in name else value
        for name, value in tensors.items()
    }
    tensors["lm_head.weight"] = tensors["shared.weight"].copy()
    hf_folders.write(tmp_path / "model", hf_folders.CONFIG, tensors, num_shards=2)
    vocabulary.save(tmp_path / "model")
    return tmp_path / "model"


def test_run_says_what_a_folder_holds(folder):
    shapes = hf_folders.shapes(hf_folders.CONFIG)
    narrow = sum(int(np.prod(shape)) for name, shape in shapes.items() if "encoder" in name)
    wide = sum(int(np.prod(shape)) for name, shape in shapes.items() if "encoder" not in name)
    assert run(folder) == {
        "path": str(folder / "model.safetensors.index.json"),
        "format": "Hugging Face, model.safetensors.index.json",
        "family": "T5 1.0, custom size",
        "layers": {"encoder": 2, "decoder": 3},
        "sizes": {"d_model": 16, "d_ff": 24, "d_kv": 5, "num_heads": 3, "vocab_size": 97},
        "parameters": narrow + wide,
        "bytes": 2 * narrow + 4 * wide,
        "types": {"float32": wide, "bfloat16": narrow},
        "activation": "relu",
        "output": "tied to the embedding, scaled",
        "tokenizer": {"kind": "SentencePieceTokenizer", "ids": 15, "sentinels": 5},
        "special ids": {"padding": 0, "end": 1, "decoder start": 0, "unknown": 2},
        "ignored": ["lm_head.weight: same as shared.weight"],
        "notes": [],
    }


def test_run_gives_every_reason_for_ignoring_once(tmp_path):
    tensors = hf_folders.random_tensors(hf_folders.CONFIG)
    tensors["lm_head.weight"] = tensors["shared.weight"]
    heads = {f"classification_head.x{i}": np.ones(3, np.float32) for i in range(20)}
    tensors = {f"transformer.{name}": value for name, value in tensors.items()} | heads
    hf_folders.write(tmp_path / "model", hf_folders.CONFIG, tensors)
    assert run(tmp_path / "model")["ignored"] == [
        "classification_head.x0 and 19 more: head for another task",
        "transformer.lm_head.weight: same as transformer.shared.weight",
    ]


def test_run_finds_a_model_in_a_subfolder(folder):
    assert run(folder.parent, subfolder="model") == run(folder)


def test_run_refuses_what_is_no_model(tmp_path):
    with pytest.raises(ValueError, match="must contain a model"):
        run(tmp_path)


# Families.


def test_family_names_every_preset():
    for name, fields in preset_fields().items():
        assert name in matching_presets(T5Config(**fields)).split(", ")


def test_family_does_not_depend_on_dropout():
    small = T5Config.preset("t5-small", dropout_rate=0.0)
    assert matching_presets(small) == "t5-small"


@pytest.mark.parametrize(
    ("preset", "changes", "family"),
    [
        ("t5-small", {"d_ff": 7}, "T5 1.0, custom size"),
        ("t5-v1_1-small", {"d_ff": 7}, "T5 v1.1, custom size"),
        ("t5-v1_1-xxl", {"num_decoder_layers": 0}, "T5 v1.1, encoder only"),
        ("umt5-xxl", {"num_decoder_layers": 0}, "umT5, encoder only"),
        ("umt5-base", {"vocab_size": 32128}, "umT5, custom size"),
        ("ul2", {"num_encoder_layers": 2}, "UL2, custom size"),
    ],
)
def test_family_says_what_kind_another_size_is(preset, changes, family):
    assert matching_presets(T5Config.preset(preset, **changes)) == family
