"""Folders of sentence-transformers, written here from their description: steps, weights, refusals.

`modules.json` lists the steps; each has a folder with a config.json of its own.
"""

import json
import re
import shutil

import ml_dtypes
import numpy as np
import pytest
from helpers import hf_folders, torch_pickles as pickles
from safetensors.numpy import load_file, save_file

import t5jax
from t5jax.models.t5 import abstract_params
from t5jax.pretrained.hf.sentence_transformers import open_projection, transformer_folder
from t5jax.pretrained.open import find_tokenizer, load_pretrained, open_checkpoint
from t5jax.pretrained.source import Weights
from t5jax.pretrained.t5x.save import save_t5x
from t5jax.tokenizers.sentencepiece import train_tokenizer

CONFIG = hf_folders.CONFIG | {"architectures": ["T5EncoderModel"], "is_encoder_decoder": False}
WIDTH = 11
TEXTS = ["a bee", "a bee sees a bee and a bee sees a bee", "", "sees"]
OLD_TYPES = {
    kind: f"sentence_transformers.models.{kind}"
    for kind in ("Transformer", "Pooling", "Dense", "Normalize")
}
NEW_TYPES = {  # since 5.4
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "Normalize": "sentence_transformers.sentence_transformer.modules.normalize.Normalize",
}
MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
POOLING = {"word_embedding_dimension": 16} | {f"pooling_mode_{m}": False for m in MODES}
MEAN = POOLING | {"pooling_mode_mean_tokens": True}
DENSE = {
    "in_features": 16,
    "out_features": WIDTH,
    "bias": False,
    "activation_function": "torch.nn.modules.linear.Identity",
}


@pytest.fixture(scope="module")
def vocabulary():
    return train_tokenizer(["a bee sees a bee and"], vocab_size=12, num_sentinels=5)


@pytest.fixture(scope="module")
def weight():
    """[out, in], as torch has it."""
    return np.random.default_rng(5).normal(size=(WIDTH, 16)).astype(np.float32)


@pytest.fixture
def make(tmp_path, vocabulary, weight):
    """Writes a folder, new or of the layout before 2.0, its projection in a file of either kind."""

    def write(*, old=False, kind="safetensors", types=OLD_TYPES, dense=True, values=weight):
        root = tmp_path / "model"
        encoder = root / "0_Transformer" if old else root
        hf_folders.write(encoder, CONFIG, hf_folders.random_tensors(CONFIG, decoder=False))
        vocabulary.save(encoder)
        steps = [("0_Transformer" if old else "", "Transformer"), ("1_Pooling", "Pooling")]
        steps += [("2_Dense", "Dense")] * dense + [("3_Normalize", "Normalize")]
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": types[step]}
            for i, (path, step) in enumerate(steps)
        ]
        (root / "modules.json").write_text(json.dumps(modules))
        for path, _ in steps[1:]:
            (root / path).mkdir()
        (root / "1_Pooling" / "config.json").write_text(json.dumps(MEAN))
        if dense:
            (root / "2_Dense" / "config.json").write_text(json.dumps(DENSE))
            if kind == "safetensors":
                save_file({"linear.weight": values}, root / "2_Dense" / "model.safetensors")
            else:
                tensor = pickles.tensor(
                    pickles.storage("0", values.size),
                    pickles.sizes(*values.shape),
                    pickles.sizes(values.shape[1], 1),
                )
                file = root / "2_Dense" / "pytorch_model.bin"
                stored = {"0": values.tobytes()}
                pickles.write_zip(file, pickles.state_dict({"linear.weight": tensor}), stored)
        return root

    return write


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_module(root, i, **changes):
    modules = json.loads((root / "modules.json").read_text())
    modules[i] |= changes
    (root / "modules.json").write_text(json.dumps(modules))


def error_of(root) -> str:
    with pytest.raises(ValueError, match=re.escape(str(root))) as caught:
        open_checkpoint(root)
    assert type(caught.value) is ValueError
    message = str(caught.value)
    assert message.startswith(str(root))
    assert "\n" not in message
    assert len(message.replace(str(root), "")) < 400
    return message


def expected(t5, matrix) -> np.ndarray:
    """Mean over tokens, projection, length 1: text by text, in float64."""
    rows = []
    for states, mask in zip(*t5.encode(TEXTS), strict=True):
        mean = states[mask].astype(np.float64).mean(axis=0)
        row = mean if matrix is None else matrix.astype(np.float64) @ mean
        rows.append(row / np.sqrt((row**2).sum()))
    return np.array(rows)


# What is in the files.


@pytest.mark.parametrize("types", [OLD_TYPES, NEW_TYPES], ids=["old types", "new types"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("old", [False, True])
def test_embed_is_the_normalized_projection_of_the_mean(make, weight, old, kind, types):
    t5 = t5jax.load(make(old=old, kind=kind, types=types))
    assert t5.config.projection_dim == WIDTH
    assert t5.config.num_decoder_layers == 0
    found = t5.embed(TEXTS)
    assert found.shape == (len(TEXTS), WIDTH)
    # float32 sums of 16 terms of size 1.
    np.testing.assert_allclose(found, expected(t5, weight), atol=2e-6)


def test_embed_without_a_projection_is_the_normalized_mean(make):
    t5 = t5jax.load(make(dense=False))
    assert t5.config.projection_dim == 0
    np.testing.assert_allclose(t5.embed(TEXTS), expected(t5, None), atol=2e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_load_widens_a_projection_exactly(make, weight, dtype):
    narrow = weight.astype(dtype)
    _, params, _ = load_pretrained(make(values=narrow), dtype=np.dtype(np.float32))
    kernel = np.asarray(params["projection"]["kernel"])
    np.testing.assert_array_equal(kernel, narrow.T.astype(np.float32))


@pytest.mark.parametrize("settings", [MEAN, {"pooling_mode": "mean"}, {"pooling_mode": ["mean"]}])
def test_load_reads_the_mean_in_every_spelling(make, settings):
    root = make()
    (root / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    assert open_checkpoint(root).config.projection_dim == WIDTH


@pytest.mark.parametrize("old", [False, True])
def test_load_finds_the_tokenizer_beside_the_encoder(make, vocabulary, old):
    found = find_tokenizer(make(old=old))
    assert found is not None
    assert found.fingerprint == vocabulary.fingerprint


# What is refused.


@pytest.mark.parametrize(
    "settings",
    [
        POOLING,
        POOLING | {"pooling_mode_cls_token": True},
        MEAN | {"pooling_mode_max_tokens": True},
        {"word_embedding_dimension": 16},
        {"pooling_mode": "cls"},
        {"pooling_mode": ["mean", "max"]},
        MEAN | {"pooling_mode": "lasttoken"},
        MEAN | {"pooling_mode": "x" * 10_000},
        {"pooling_mode": {"mean": True}},
    ],
)
def test_load_refuses_another_pooling(make, settings):
    root = make()
    (root / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    assert "1_Pooling/config.json must set mean pooling over tokens" in error_of(root)


@pytest.mark.parametrize(
    "changes",
    [
        {"bias": True},
        {"bias": None},
        {"activation_function": "torch.nn.modules.activation.Tanh"},
        {"activation_function": ["torch.nn.modules.linear.Identity"]},
        {"use_residual": True},
        {"note": "x" * 10_000, "bias": 1},
    ],
)
def test_load_refuses_another_projection(make, changes):
    root = make()
    edit(root / "2_Dense" / "config.json", **changes)
    message = error_of(root)
    assert "2_Dense/config.json must be a projection without bias, activation or" in message


def test_load_refuses_a_projection_without_activation_key(make):
    """Its default in sentence-transformers is a tanh; null is none."""
    root = make()
    edit(root / "2_Dense" / "config.json", activation_function=None)
    assert open_checkpoint(root).config.projection_dim == WIDTH
    settings = {key: value for key, value in DENSE.items() if key != "activation_function"}
    (root / "2_Dense" / "config.json").write_text(json.dumps(settings))
    assert "must be a projection without bias, activation" in error_of(root)


@pytest.mark.parametrize(
    "tensors",
    [
        {"linear.weight": (WIDTH, 16), "linear.bias": (WIDTH,)},
        {"weight": (WIDTH, 16)},
        {f"x{i}" * 9: (1,) for i in range(100)},
    ],
)
def test_load_refuses_other_tensors_in_the_projection(make, tensors):
    root = make()
    arrays = {name: np.zeros(shape, np.float32) for name, shape in tensors.items()}
    save_file(arrays, root / "2_Dense" / "model.safetensors")
    assert "2_Dense/model.safetensors must contain only linear.weight" in error_of(root)


@pytest.mark.parametrize("shape", [(WIDTH, 15), (16,), (WIDTH, 16, 1)])
def test_load_refuses_a_projection_of_other_states(make, shape):
    root = make()
    weight = {"linear.weight": np.zeros(shape, np.float32)}
    save_file(weight, root / "2_Dense" / "model.safetensors")
    assert "linear.weight must have shape" in error_of(root)


def test_load_refuses_two_projections(make):
    root = make()
    shutil.copytree(root / "2_Dense", root / "4_Dense")
    modules = json.loads((root / "modules.json").read_text())
    modules.append(modules[2] | {"path": "4_Dense"})
    (root / "modules.json").write_text(json.dumps(modules))
    assert "modules.json must list one Dense" in error_of(root)


@pytest.mark.parametrize("kind", ["LayerNorm", "CLIPModel", "WeightedLayerPooling", "", "x" * 9999])
def test_load_refuses_an_unknown_step(make, kind):
    root = make()
    edit_module(root, 2, type=f"sentence_transformers.models.{kind}")
    assert "must list only Transformer, Pooling, Dense and Normalize" in error_of(root)


@pytest.mark.parametrize("kind", [None, 7, ["Dense"], {}])
def test_load_refuses_a_step_without_type(make, kind):
    root = make()
    edit_module(root, 2, type=kind)
    assert "must list only Transformer, Pooling, Dense and Normalize" in error_of(root)


@pytest.mark.parametrize("name", ["../2_Dense", "{root}/2_Dense", "..", "2_Dense/..", "a\\b", "C:"])
@pytest.mark.parametrize("i", [0, 2, 3])
def test_load_reads_nothing_outside_the_folder(make, i, name):
    """What lies there is whole, so only the rule can keep it out."""
    root = make()
    for step in ("2_Dense", "1_Pooling"):
        shutil.copytree(root / step, root.parent / step)
    edit_module(root, i, path=name.format(root=root.parent))
    assert "modules.json: a module must be in a direct subfolder" in error_of(root)


@pytest.mark.parametrize("name", [None, 3, ["2_Dense"], "\n", "x" * 5 + "\0"])
def test_load_refuses_a_step_without_path(make, name):
    root = make()
    edit_module(root, 2, path=name)
    assert "modules.json: a module must be in a direct subfolder" in error_of(root)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "must be JSON"),
        (b"[{", "must be JSON"),
        (b"\xff\xfe\x00", "must be JSON"),
        (b"[" * 100_000, "must be JSON"),
        (b"{}", "must be a list of modules"),
        (b"null", "must be a list of modules"),
        (b"[1]", "must be a list of modules"),
        (b'[[{"type": "Transformer"}]]', "must be a list of modules"),
    ],
)
def test_load_refuses_damaged_modules(make, data, reason):
    root = make()
    (root / "modules.json").write_bytes(data)
    assert error_of(root).startswith(f"{root / 'modules.json'} {reason}")


@pytest.mark.parametrize("step", ["1_Pooling", "2_Dense"])
def test_load_names_a_damaged_or_missing_setting(make, step):
    root = make()
    file = root / step / "config.json"
    for data in (b"", b"[]", b"\xff", b'{"bias": fals'):
        file.write_bytes(data)
        assert error_of(root).startswith(f"{file} must be")
    file.unlink()
    assert error_of(root).startswith(f"{file} is missing")


def test_load_names_a_damaged_or_missing_projection(make):
    root = make()
    file = root / "2_Dense" / "model.safetensors"
    data = file.read_bytes()
    for cut in (0, 7, 50, len(data) - 1):
        file.write_bytes(data[:cut])
        assert error_of(root).startswith(f"{file} must be a safetensors file")
    file.unlink()
    assert error_of(root).startswith(f"{root / '2_Dense'} must contain model.safetensors or")


def test_load_refuses_or_reads_modules_with_any_byte_changed(make):
    """Never another error than a ValueError."""
    root = make()
    file = root / "modules.json"
    data = file.read_bytes()
    rng = np.random.default_rng(0)
    refused = accepted = 0
    for position in rng.choice(len(data), 60, replace=False):
        changed = bytearray(data)
        changed[position] ^= 1 << rng.integers(8)
        file.write_bytes(changed)
        try:
            transformer_folder(root)
            open_projection(root)
            accepted += 1
        except ValueError as error:
            refused += "\n" not in str(error)
    assert refused + accepted == 60
    assert refused > 20


# Written by us.


@pytest.mark.parametrize("old", [False, True])
def test_export_hf_writes_a_sentence_encoder_back(make, tmp_path, vocabulary, weight, old):
    root = make(old=old)
    t5jax.export_hf(t5jax.load(root), tmp_path / "out")
    out = tmp_path / "out"
    written = load_file(out / "2_Dense" / "model.safetensors")
    assert list(written) == ["linear.weight"]
    assert written["linear.weight"].tobytes() == weight.tobytes()
    tensors = hf_folders.random_tensors(CONFIG, decoder=False)
    stored = load_file(out / "model.safetensors")
    assert stored.keys() == tensors.keys()
    assert all(stored[name].tobytes() == tensors[name].tobytes() for name in tensors)
    modules = json.loads((out / "modules.json").read_text())
    kinds = [(module["path"], module["type"].rpartition(".")[2]) for module in modules]
    assert kinds == [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        ("2_Dense", "Dense"),
        ("3_Normalize", "Normalize"),
    ]
    assert all((out / path).is_dir() for path, _ in kinds)
    assert json.loads((out / "1_Pooling" / "config.json").read_text()) == MEAN
    assert json.loads((out / "2_Dense" / "config.json").read_text()) == DENSE
    one, other = t5jax.load(out), t5jax.load(root)
    assert one.config == other.config
    np.testing.assert_array_equal(one.embed(TEXTS), other.embed(TEXTS))


def test_t5x_refuses_a_projection(tmp_path, tiny_config):
    config = tiny_config.replace(projection_dim=WIDTH)
    with pytest.raises(ValueError, match="must be a plain T5, got one with projection/kernel"):
        save_t5x(tmp_path / "out", config, Weights.from_params(abstract_params(config)), None)
    assert not any(tmp_path.iterdir())
