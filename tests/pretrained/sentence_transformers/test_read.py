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
from t5jax.pretrained.describe import describe_checkpoint
from t5jax.pretrained.open import find_tokenizer, load_pretrained, open_checkpoint
from t5jax.pretrained.sentence_transformers import (
    open_projection,
    read_sentence_encoder,
    transformer_folder,
)
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


@pytest.mark.parametrize(
    "settings",
    [
        MEAN,
        POOLING,
        {"word_embedding_dimension": 16},
        {"pooling_mode": "mean"},
        {"pooling_mode": ["mean"]},
        {"embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode": "mean"},
    ],
)
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
        {"pooling_mode": "median"},
        {"pooling_mode": ["mean", "sum"]},
        {"pooling_mode": []},
        MEAN | {"pooling_mode": "x" * 10_000},
        {"pooling_mode": {"mean": True}},
    ],
)
def test_load_refuses_an_unknown_pooling(make, settings):
    root = make()
    (root / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    assert "1_Pooling/config.json must set pooling_mode to some of cls, max, mean" in error_of(root)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pooling_mode_median": True}, "only known settings, got pooling_mode_median"),
        ({"include_prompt": "no"}, "include_prompt to true or false, got 'no'"),
    ],
)
def test_load_refuses_an_unknown_setting_of_pooling(make, changes, reason):
    root = make()
    edit(root / "1_Pooling" / "config.json", **changes)
    assert reason in error_of(root)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bias": None}, "bias to true or false, got None"),
        ({"bias": 1, "note": "x" * 10_000}, "bias to true or false, got 1"),
        ({"use_residual": "yes"}, "use_residual to true or false, got 'yes'"),
        ({"activation_function": "torch.nn.modules.activation.PReLU"}, "PReLU"),
        ({"activation_function": "mine.Tanh"}, "got 'mine.Tanh'"),
        ({"activation_function": "torch.nn.functional.tanh"}, "functional.tanh"),
        ({"activation_function": ["torch.nn.modules.linear.Identity"]}, "activation_function to"),
        ({"module_input_name": "scores"}, "module_input_name to one of token_embeddings, "),
        ({"module_output_name": "scores"}, "module_output_name to one of token_embeddings, "),
    ],
)
def test_load_refuses_an_unknown_dense_layer(make, changes, reason):
    root = make()
    edit(root / "2_Dense" / "config.json", **changes)
    assert reason in error_of(root)


@pytest.mark.parametrize(
    ("tensors", "changes", "reason"),
    [
        ({"linear.weight": (WIDTH, 16)}, {"bias": True}, "only linear.weight, linear.bias, got"),
        ({"linear.weight": (WIDTH, 15)}, {"bias": True}, "only linear.weight, linear.bias, got"),
        (
            {"linear.weight": (WIDTH, 15), "linear.bias": (WIDTH,)},
            {"bias": True},
            f"linear.weight must have shape ({WIDTH}, 16), got ({WIDTH}, 15)",
        ),
        (
            {"linear.weight": (WIDTH, 16), "linear.bias": (WIDTH, 1)},
            {"bias": True},
            f"linear.bias must have shape ({WIDTH},), got ({WIDTH}, 1)",
        ),
        (
            {"linear.weight": (WIDTH, 16)},
            {"use_residual": True},
            "only linear.weight, residual.weight, got",
        ),
        (
            {"linear.weight": (WIDTH, 16)},
            {"activation_function": "torch.nn.ReLU", "out_features": 7},
            f"linear.weight must have shape (7, 16), got ({WIDTH}, 16)",
        ),
        (
            {"linear.weight": (WIDTH, 16)},
            {"activation_function": "torch.nn.ReLU", "out_features": None},
            "out_features, got None",
        ),
    ],
)
def test_load_refuses_arrays_of_another_dense_layer(make, tensors, changes, reason):
    root = make()
    edit(root / "2_Dense" / "config.json", **changes)
    arrays = {name: np.zeros(shape, np.float32) for name, shape in tensors.items()}
    save_file(arrays, root / "2_Dense" / "model.safetensors")
    with pytest.raises(ValueError, match=re.escape(reason)):
        t5jax.load(root)


def test_load_reads_a_projection_without_activation(make):
    """Its default in sentence-transformers is a tanh; null is none."""
    root = make()
    edit(root / "2_Dense" / "config.json", activation_function=None)
    assert open_checkpoint(root).config.projection_dim == WIDTH
    settings = {key: value for key, value in DENSE.items() if key != "activation_function"}
    (root / "2_Dense" / "config.json").write_text(json.dumps(settings))
    encoder = read_sentence_encoder(root, open_checkpoint(root).config)
    assert encoder.layers[1].activation == "Tanh"


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


@pytest.mark.parametrize(
    "kind",
    ["CLIPModel", "WeightedLayerPooling", "WordWeights", "WordEmbeddings", "LSTM", "", "x" * 9999],
)
def test_load_refuses_an_unknown_step(make, kind):
    root = make()
    edit_module(root, 2, type=f"sentence_transformers.models.{kind}")
    message = error_of(root)
    assert "must list only Transformer, Pooling, Dense, LayerNorm, Dropout and Normal" in message
    assert kind[:20] in message


@pytest.mark.parametrize("kind", [None, 7, ["Dense"], {}, "Dense", "custom_st.Dense"])
def test_load_refuses_a_step_of_other_code(make, kind):
    root = make()
    edit_module(root, 2, type=kind)
    assert "must list only Transformer, Pooling, Dense, LayerNorm, Dropout and " in error_of(root)


def test_load_refuses_a_second_transformer(make):
    root = make()
    edit_module(root, 2, type=OLD_TYPES["Transformer"])
    assert "must list one Transformer, and list it first, got Transformer as" in error_of(root)


@pytest.mark.parametrize(("kept", "reason"), [((0,), "got none"), ((0, 2, 1), "before 2_Dense")])
def test_load_refuses_a_sentence_encoder_that_does_not_pool(make, kept, reason):
    root = make()
    modules = json.loads((root / "modules.json").read_text())
    (root / "modules.json").write_text(json.dumps([modules[i] for i in kept]))
    with pytest.raises(ValueError, match=f"must list a Pooling.*{reason}"):
        t5jax.load(root)


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


# Settings for texts.


@pytest.mark.parametrize(
    ("file", "settings", "limit"),
    [
        ("sentence_bert_config.json", {"max_seq_length": 7}, 7),
        ("sentence_roberta_config.json", {"max_seq_length": 7}, 7),
        ("sentence_bert_config.json", {"tokenizer_args": {"model_max_length": 7}}, 7),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"max_length": 7}}}, 7),
        ("tokenizer_config.json", {"model_max_length": 7}, 7),
        ("tokenizer_config.json", {"model_max_length": int(1e30)}, None),
        ("config.json", {"max_position_embeddings": 7}, 7),
    ],
)
def test_load_reads_the_limit_from_every_place(make, file, settings, limit):
    root = make()
    before = json.loads((root / file).read_text()) if (root / file).is_file() else {}
    (root / file).write_text(json.dumps(before | settings))
    assert t5jax.load(root).sentence_encoder.max_tokens == limit


def test_embed_cuts_texts_at_the_limit_with_a_warning(make):
    root = make()
    (root / "sentence_bert_config.json").write_text('{"max_seq_length": 4}')
    t5 = t5jax.load(root)
    with pytest.warns(UserWarning, match=r"cut to 4 tokens: texts\[0\]"):
        cut = t5.embed([TEXTS[1]])
    with pytest.warns(UserWarning, match="cut to 4 tokens"):
        assert t5.encode([TEXTS[1]])[1].sum() == 4
    whole = t5.embed([TEXTS[1]], max_input_tokens=2048)
    assert np.abs(cut - whole).max() > 1e-3
    with pytest.raises(ValueError, match="at most 5 tokens"):
        t5.embed([TEXTS[1]], max_input_tokens=5)


@pytest.mark.parametrize(
    ("file", "settings", "reason"),
    [
        ("sentence_bert_config.json", {"max_seq_length": 0}, "at least 1, got 0"),
        ("sentence_bert_config.json", {"max_seq_length": "8"}, "at least 1, got '8'"),
        ("sentence_bert_config.json", {"do_lower_case": 1}, "do_lower_case to true or false"),
        ("sentence_bert_config.json", {"lower": True}, "only known settings, got lower"),
        ("sentence_bert_config.json", {"tokenizer_name_or_path": "t5"}, "tokenizer_name_or_path"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "got 'fill-mask'"),
        ("sentence_bert_config.json", {"model_args": {"quant": 1}}, "model_args.quant"),
        ("sentence_bert_config.json", {"model_args": 3}, "model_args to an object, got 3"),
        (
            "sentence_bert_config.json",
            {"processing_kwargs": {"text": {"truncation": False}}},
            "trun",
        ),
        (
            "sentence_bert_config.json",
            {"processing_kwargs": {"text": {"stride": 3}}},
            "text.stride",
        ),
        (
            "sentence_bert_config.json",
            {"modality_config": {"text": {"method": "forward", "method_output_name": "pooled"}}},
            "modality_config.text",
        ),
        (
            "tokenizer_config.json",
            {"model_max_length": 9, "truncation_side": "left"},
            "truncation_side to 'right', got 'left'",
        ),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "SparseEncoder"),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "prompts to texts by name"),
        ("config_sentence_transformers.json", {"prompts": {"a": 1}}, "prompts to texts by name"),
        ("config_sentence_transformers.json", {"default_prompt_name": "b"}, "document, got 'b'"),
        ("config_sentence_transformers.json", {"truncate_dim": 0}, "truncate_dim"),
    ],
)
def test_load_refuses_an_unsupported_setting(make, file, settings, reason):
    root = make()
    (root / file).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        t5jax.load(root)
    assert str(caught.value).startswith(str(root / file))
    assert "\n" not in str(caught.value)


def test_embed_names_the_prompts_of_the_model(make):
    root = make()
    prompts = {"prompts": {"title": "a bee ", "query": "sees "}}
    (root / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    t5 = t5jax.load(root)
    with pytest.raises(ValueError, match=r"prompt_name.*query, document, title, got 'titel'"):
        t5.embed(TEXTS, prompt_name="titel")
    expected = t5.embed([f"a bee {text}" for text in TEXTS])
    np.testing.assert_array_equal(t5.embed(TEXTS, prompt_name="title"), expected)
    np.testing.assert_array_equal(t5.embed(TEXTS, prompt="a bee ", prompt_name="query"), expected)


def test_prompts_of_a_model_without_sentence_encoder(t5):
    np.testing.assert_array_equal(t5.embed(["ab"], prompt="x "), t5.embed(["x ab"]))
    np.testing.assert_array_equal(t5.embed(["ab"], prompt_name="query"), t5.embed(["ab"]))
    with pytest.raises(ValueError, match=r"prompt_name.*'title'"):
        t5.embed(["ab"], prompt_name="title")


def test_instructor_leaves_the_prompt_out(make):
    """Its files do not say so; sentence-transformers knows these models by name."""
    root = make()
    config = open_checkpoint(root).config
    for name, included in (("hkunlp/instructor-large", False), ("hkunlp/other", True)):
        encoder = read_sentence_encoder(root, config, name=name)
        assert encoder.layers[0].include_prompt == included


# Written by us.


@pytest.mark.parametrize("save", [t5jax.export_hf, lambda t5, folder: t5.save(folder)])
def test_saving_keeps_layers_and_settings(make, tmp_path, save):
    root = make()
    edit(root / "1_Pooling" / "config.json", include_prompt=False, pooling_mode=["max", "cls"])
    rng = np.random.default_rng(3)
    arrays = {"linear.weight": rng.normal(size=(WIDTH, 32)), "linear.bias": rng.normal(size=WIDTH)}
    arrays |= {"residual.weight": rng.normal(size=(WIDTH, 32))}
    arrays = {name: values.astype(np.float32) for name, values in arrays.items()}
    save_file(arrays, root / "2_Dense" / "model.safetensors")
    settings = {"bias": True, "use_residual": True, "in_features": 32}
    edit(root / "2_Dense" / "config.json", activation_function="torch.nn.GELU", **settings)
    lengths = {"max_seq_length": 6, "do_lower_case": True}
    (root / "sentence_bert_config.json").write_text(json.dumps(lengths))
    prompts = {"prompts": {"query": "sees "}, "default_prompt_name": "query"}
    prompts |= {"similarity_fn_name": "dot", "truncate_dim": 5}
    (root / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    t5 = t5jax.load(root)
    save(t5, tmp_path / "out")
    again = t5jax.load(tmp_path / "out")
    for name in ("max_tokens", "lower_case", "prompts", "default_prompt_name", "similarity"):
        assert getattr(again.sentence_encoder, name) == getattr(t5.sentence_encoder, name)
    texts = ["A bee", "sees", "and a bee"]
    assert again.embed(texts).shape == (3, 5)
    np.testing.assert_array_equal(again.embed(texts), t5.embed(texts))
    np.testing.assert_array_equal(again.embed(texts, prompt=""), t5.embed(texts, prompt=""))
    t5.save(tmp_path / "native")
    t5.save(tmp_path / "native", overwrite=True)


def test_inspect_describes_layers_and_settings(make):
    root = make()
    edit(root / "1_Pooling" / "config.json", include_prompt=False, pooling_mode=["max", "cls"])
    edit(root / "2_Dense" / "config.json", in_features=32)
    weight = {"linear.weight": np.zeros((WIDTH, 32), np.float32)}
    save_file(weight, root / "2_Dense" / "model.safetensors")
    (root / "sentence_bert_config.json").write_text('{"max_seq_length": 6}')
    assert describe_checkpoint(root)["embedding"] == {
        "layers": "Pooling (max + cls, no prompt) > Dense > Normalize",
        "max tokens": 6,
    }


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
