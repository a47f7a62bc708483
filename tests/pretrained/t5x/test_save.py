"""Written T5X checkpoints, read as T5X reads them: by Flax and TensorStore alone."""

import json
import os

import jax
import ml_dtypes
import numpy as np
import pytest
import tensorstore
from flax import serialization
from helpers import hf_folders, t5x_folders
from helpers.trees import assert_same_bits
from safetensors.numpy import load_file

from t5jax.pretrained.hf.save import save_hf
from t5jax.pretrained.name_map import PROJECTION_PATH
from t5jax.pretrained.open import load_pretrained, open_checkpoint, save_pretrained
from t5jax.pretrained.source import Weights
from t5jax.pretrained.t5x import save as save_module
from t5jax.pretrained.t5x.load import find_t5x, open_t5x
from t5jax.pretrained.t5x.save import save_t5x
from t5jax.tokenizers.byte import ByteTokenizer

FAMILIES = {
    "relu-tied": {"gated": False, "tied": True},
    "gated-untied": {},
    "bias of every layer": {"per_layer_bias": True},
    "encoder alone": {"decoder": False},
    "one layer": {"layers": {"encoder": 1, "decoder": 1}},
}
SMALL = {"decoder": False, "layers": {"encoder": 1}}


def read_as_t5x(folder):
    """Everything in a checkpoint, '/'-joined, as T5X opens it."""
    tree = serialization.msgpack_restore((folder / "checkpoint").read_bytes())

    def restore(leaf):
        if not isinstance(leaf, dict) or "driver" not in leaf:
            return leaf
        path = os.path.join(folder, leaf["kvstore"]["path"])
        spec = {**leaf, "kvstore": {**leaf["kvstore"], "path": path}}
        return tensorstore.open(tensorstore.Spec(spec), open=True).result().read().result()

    tree = jax.tree.map(restore, tree, is_leaf=lambda x: isinstance(x, dict) and "driver" in x)
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


def opened(folder, values):
    """A source of these values, from a file that Flax wrote."""
    return open_t5x(t5x_folders.write_msgpack(folder / "given", values))


def save(folder, source, vocabulary=None, **options):
    save_t5x(folder, source.config, source.weights(), vocabulary, **options)
    return folder / "checkpoint_0"


@pytest.mark.parametrize("options", FAMILIES.values(), ids=FAMILIES.keys())
@pytest.mark.parametrize("scan", [False, True], ids=["separate", "scanned"])
def test_save_writes_what_t5x_reads(tmp_path, options, scan):
    values = t5x_folders.random_arrays(**options)
    source = opened(tmp_path, values)
    checkpoint = save(tmp_path / "out", source, scanned=scan)
    found = read_as_t5x(checkpoint)
    assert found.pop("version") == 3
    step = np.asarray(found.pop("optimizer/state/step"))
    assert (step.dtype, step.shape, int(step)) == (np.int32, (), 0)
    theirs = t5x_folders.scanned(values) if scan else values
    assert_same_bits(found, {f"optimizer/target/{name}": x for name, x in theirs.items()})


def test_save_keeps_bfloat16_and_odd_values(tmp_path):
    values = t5x_folders.random_arrays(dtype=ml_dtypes.bfloat16, **SMALL)
    odd = np.array([np.nan, -0.0, np.inf, 1e-40], np.float32).astype(ml_dtypes.bfloat16)
    values["encoder/layers_0/mlp/wo/kernel"][3, :4] = odd
    values["encoder/encoder_norm/scale"][:] = 0
    checkpoint = save(tmp_path / "out", opened(tmp_path, values))
    found = read_as_t5x(checkpoint)
    theirs = {name: found[f"optimizer/target/{name}"] for name in values}
    assert_same_bits(theirs, values)
    metadata = checkpoint / "target.encoder.layers_0.mlp.wo.kernel" / ".zarray"
    assert json.loads(metadata.read_text())["dtype"] == "bfloat16"


def test_save_divides_arrays_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(save_module, "_CHUNK_BYTES", 1000)
    values = t5x_folders.random_arrays(**SMALL)
    checkpoint = save(tmp_path / "out", opened(tmp_path, values))
    table = checkpoint / "target.token_embedder.embedding"
    # 15 rows of 16 floats.
    assert json.loads((table / ".zarray").read_text())["chunks"] == [15, 16]
    assert len([p for p in table.iterdir() if p.name != ".zarray"]) == 7
    found = read_as_t5x(checkpoint)
    theirs = {name: found[f"optimizer/target/{name}"] for name in values}
    assert_same_bits(theirs, values)


def test_save_moves_with_its_folder(tmp_path):
    """The file names no place but that beside it."""
    values = t5x_folders.random_arrays(**SMALL)
    save(tmp_path / "out", opened(tmp_path, values))
    (tmp_path / "out").rename(tmp_path / "moved")
    checkpoint = tmp_path / "moved" / "checkpoint_0"
    assert str(tmp_path).encode() not in (checkpoint / "checkpoint").read_bytes()
    assert "optimizer/target/token_embedder/embedding" in read_as_t5x(checkpoint)
    found = find_t5x(tmp_path / "moved")
    assert found == checkpoint
    assert open_t5x(found).shapes == opened(tmp_path, values).shapes


@pytest.mark.parametrize("scan", [False, True], ids=["separate", "scanned"])
def test_save_reports_every_array(tmp_path, scan):
    values = t5x_folders.random_arrays(**SMALL)
    written = []
    save(tmp_path / "out", opened(tmp_path, values), scanned=scan, written=written.append)
    theirs = t5x_folders.scanned(values) if scan else values
    assert {w.name: w.shape for w in written} == {n: x.shape for n, x in theirs.items()}
    assert {w.dtype for w in written} == {"float32"}


def test_save_writes_config_and_tokenizer(tmp_path):
    source = opened(tmp_path, t5x_folders.random_arrays(**SMALL))
    config = source.config.replace(relative_max_distance=12, activation="silu", eos_id=2)
    vocabulary = ByteTokenizer()
    save_t5x(tmp_path / "out", config, source.weights(), vocabulary)
    found, _, words = load_pretrained(tmp_path / "out")
    assert found == config
    assert words is not None
    assert words.encode("é") == vocabulary.encode("é")


# From Hugging Face and back.


def hf_family(name):
    """config.json and tensors, as transformers writes them."""
    config, options = dict(hf_folders.CONFIG), {}
    if name != "relu-tied":
        config |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
        options = {"gated": True, "head": True}
    if name == "encoder alone":
        options = {"gated": True, "decoder": False}
        config["architectures"] = ["T5EncoderModel"]
    tensors = hf_folders.random_tensors(config, **options)
    if name == "umt5":
        config |= {"model_type": "umt5", "architectures": ["UMT5ForConditionalGeneration"]}
        rng = np.random.default_rng(1)
        for stack, num_layers in (("encoder", 2), ("decoder", 3)):
            for i in range(1, num_layers):
                bias = f"{stack}.block.{i}.layer.0.SelfAttention.relative_attention_bias.weight"
                tensors[bias] = rng.normal(size=(8, 3)).astype(np.float32)
    return config, tensors


@pytest.mark.parametrize("family", ["relu-tied", "gated-untied", "umt5", "encoder alone"])
def test_tensors_survive_every_format_bit_for_bit(tmp_path, family):
    config, tensors = hf_family(family)
    hf_folders.write(tmp_path / "hf", config, tensors)
    first = open_checkpoint(tmp_path / "hf")
    save_t5x(tmp_path / "scan", first.config, first.weights(), None, scanned=True)
    second = open_checkpoint(tmp_path / "scan")
    save_pretrained(tmp_path / "ours", second.config, second.load_params(), None)
    third = open_checkpoint(tmp_path / "ours")
    save_t5x(tmp_path / "separate", third.config, third.weights(), None)
    fourth = open_checkpoint(tmp_path / "separate")
    save_hf(tmp_path / "back", fourth.config, fourth.weights(), None)
    assert_same_bits(load_file(tmp_path / "back" / "model.safetensors"), tensors)
    assert first.config == second.config == third.config == fourth.config
    formats = [s.format for s in (second, third, fourth)]
    assert formats == ["T5X, Zarr, scanned layers", "t5jax", "T5X, Zarr, separate layers"]


# What is replaced, and what is not.


def test_save_replaces_a_model_only_if_asked_to(tmp_path):
    old = opened(tmp_path, t5x_folders.random_arrays(seed=1, **SMALL))
    values = t5x_folders.random_arrays(seed=2, **SMALL)
    out = tmp_path / "out"
    out.mkdir()
    save(out, old, scanned=True)
    before = sorted(p.relative_to(out) for p in out.rglob("*"))
    new = opened(tmp_path, values)
    with pytest.raises(FileExistsError, match="must be a new or an empty folder"):
        save(out, new)
    assert sorted(p.relative_to(out) for p in out.rglob("*")) == before
    checkpoint = save(out, new, overwrite=True)
    found = read_as_t5x(checkpoint)
    theirs = {name: found[f"optimizer/target/{name}"] for name in values}
    assert_same_bits(theirs, values)
    assert not list(checkpoint.glob("target.encoder.encoder.*"))


def test_save_never_replaces_other_files(tmp_path):
    source = opened(tmp_path, t5x_folders.random_arrays(**SMALL))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("?")
    with pytest.raises(FileExistsError, match="must be a saved model to be overwritten"):
        save(tmp_path / "out", source, overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "?"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_save_that_is_interrupted_leaves_nothing(tmp_path, error):
    values = t5x_folders.random_arrays(**SMALL)
    source = opened(tmp_path, values)
    before = sorted(tmp_path.iterdir())
    count = 0

    def stop(_):
        nonlocal count
        count += 1
        if count == 5:
            raise error

    with pytest.raises(error):
        save(tmp_path / "out", source, written=stop)
    assert sorted(tmp_path.iterdir()) == before
    # A model that was to be replaced is as before.
    checkpoint = save(tmp_path / "out", source)
    count = 0
    with pytest.raises(error):
        save(tmp_path / "out", source, overwrite=True, written=stop)
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "out"])
    found = read_as_t5x(checkpoint)
    assert_same_bits({name: found[f"optimizer/target/{name}"] for name in values}, values)


def test_save_to_a_full_disk_is_an_os_error(tmp_path, monkeypatch):
    source = opened(tmp_path, t5x_folders.random_arrays(**SMALL))

    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: no space left [source locations='a.cc:1\nb.cc:2']")

    monkeypatch.setattr(tensorstore, "open", full)
    with pytest.raises(OSError, match=r"could not write .* \(RESOURCE_EXHAUSTED") as caught:
        save(tmp_path / "out", source)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_save_refuses_a_projection(tmp_path):
    source = opened(tmp_path, t5x_folders.random_arrays(**SMALL))
    weights = source.weights()
    shapes = {**weights.shapes, PROJECTION_PATH: (16, 7)}
    weights = Weights(shapes, weights.dtypes, weights.read)
    config = source.config.replace(projection_dim=7)
    with pytest.raises(ValueError, match="must be a plain T5, got one with projection/kernel"):
        save_t5x(tmp_path / "out", config, weights, None)
    assert not (tmp_path / "out").exists()
