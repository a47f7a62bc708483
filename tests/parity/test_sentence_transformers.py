"""The same embeddings as sentence-transformers, on folders that it wrote or that it reads."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("sentence_transformers")

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules

import t5jax
from t5jax.models.sentence_encoder import ACTIVATIONS, POOLING_MODES, Dense
from t5jax.tokenizers.sentencepiece import train_tokenizer

WIDTH, OUT, LIMIT = 16, 11, 12
LONG = "the quick brown fox jumps over the lazy dog " * 3
PROMPTS = {"query": "represent the fox: ", "title": "a lazy dog", "none": ""}
# float32 sums of up to 32 terms, relative to the largest value.
TOLERANCE = 1e-5

pytestmark = pytest.mark.filterwarnings("ignore:.*texts were cut to")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Folder of a T5 encoder with a tokenizer of words' pieces."""
    folder = tmp_path_factory.mktemp("encoder")
    corpus = ["represent the quick brown fox jumps over the lazy dog: "] * 9
    tokenizer = train_tokenizer(corpus, vocab_size=31, num_sentinels=5)
    tokenizer.save(folder)
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=128, d_model=WIDTH, d_kv=5, d_ff=24, num_heads=3, num_layers=2
    )
    model = transformers.T5EncoderModel(config)
    with torch.no_grad():
        model.shared.weight.normal_()
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts(encoder):
    """Texts that are longer than, exactly as long as, and shorter than the limit; and empty."""
    tokenizer = t5jax.tokenizers.load_tokenizer(encoder)
    words = ("the fox " + "x" * n for n in range(LIMIT))
    exact = next(text for text in words if len(tokenizer.encode(text)) == LIMIT - 1)
    return [LONG, exact, "the quick brown dog", "", "Fox", exact + " fox", "lazy lazy fox"]


@pytest.fixture
def build(encoder, tmp_path):
    """Writes a folder with sentence-transformers."""

    def write(*layers, limit=None, **options):
        transformer = modules.Transformer(str(encoder))
        if limit is not None:
            transformer.max_seq_length = limit
        model = SentenceTransformer(modules=[transformer, *layers], device="cpu", **options)
        model.save(str(tmp_path / "model"))
        return tmp_path / "model"

    return write


def assert_same(folder, texts, **options):
    """Compares texts in batches of five, and the first alone, with sentence-transformers."""
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts, **options)
    t5 = t5jax.load(folder)
    found = t5.embed(texts, batch_size=5, **options)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())
    alone = t5.embed(texts[:1], **options)
    np.testing.assert_allclose(alone, expected[:1], rtol=0, atol=TOLERANCE * np.abs(expected).max())


def edit(file, **changes):
    settings = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(settings | changes))


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("mode", POOLING_MODES)
def test_every_pooling_mode(build, texts, mode, include_prompt):
    pooling = modules.Pooling(WIDTH, pooling_mode=mode, include_prompt=include_prompt)
    folder = build(pooling, limit=LIMIT, prompts=PROMPTS)
    assert_same(folder, texts)
    assert_same(folder, texts, prompt_name="query")


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("modes", [POOLING_MODES, ("mean", "cls"), ("mean", "mean")])
def test_concatenated_modes(build, texts, modes, normalize):
    layers = [modules.Pooling(WIDTH, pooling_mode=modes, include_prompt=False)]
    layers += [modules.Dense(len(modes) * WIDTH, OUT, bias=False, activation_function=None)]
    layers += [modules.Normalize()] * normalize
    assert_same(build(*layers, prompts=PROMPTS, default_prompt_name="query"), texts)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_every_activation(activation):
    x = np.linspace(-6, 6, 97, dtype=np.float32)
    expected = getattr(torch.nn, activation)()(torch.from_numpy(x)).numpy()
    found = Dense(kernel=np.eye(97, dtype=np.float32), activation=activation)(jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("activation", ["ReLU", "Hardswish"])
def test_weights_in_the_older_format(build, texts, activation):
    dense = modules.Dense(WIDTH, OUT, activation_function=getattr(torch.nn, activation)())
    folder = build(modules.Pooling(WIDTH), dense)
    array = torch.randn(OUT, WIDTH, generator=torch.manual_seed(2)) * 3
    weights = {"linear.weight": array, "linear.bias": torch.linspace(-2, 2, OUT)}
    (folder / "2_Dense" / "model.safetensors").unlink()
    torch.save(weights, folder / "2_Dense" / "pytorch_model.bin")
    assert_same(folder, texts)


@pytest.mark.parametrize(
    ("bias", "out", "residual"), [(True, WIDTH, True), (False, OUT, True), (True, OUT, False)]
)
def test_dense_layers(build, texts, bias, out, residual):
    tanh = torch.nn.Tanh()
    layers = [
        modules.Pooling(WIDTH),
        modules.Dense(WIDTH, out, bias=bias, activation_function=tanh, use_residual=residual),
        modules.LayerNorm(out),
        modules.Dropout(0.5),
        modules.Dense(out, 7, bias=bias, activation_function=torch.nn.GELU()),
        modules.Normalize(),
    ]
    assert_same(build(*layers), texts)


def test_layers_of_token_embeddings(build, texts):
    names = {"module_input_name": "token_embeddings"}
    layers = [
        modules.Dense(WIDTH, OUT, activation_function=torch.nn.ReLU(), **names),
        modules.Normalize(**names),
        modules.Pooling(OUT, pooling_mode=("max", "mean")),
    ]
    assert_same(build(*layers), texts)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (0, 2, 1)])
def test_projection_with_and_without_norm(build, texts, order):
    dense = modules.Dense(WIDTH, WIDTH, bias=False, activation_function=torch.nn.Identity())
    layers = [dense, modules.Normalize(), modules.LayerNorm(WIDTH)]
    assert_same(build(modules.Pooling(WIDTH), *(layers[i] for i in order)), texts)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompt_name": "title"},
        {"prompt_name": "none"},
        {"prompt_name": "document"},
        {"prompt": "the dog: "},
        {"prompt": ""},
        {"prompt": "jumps", "prompt_name": "title"},
        {"prompt": LONG},
    ],
)
@pytest.mark.parametrize("default", [None, "query"])
def test_prompts(build, texts, options, default):
    pooling = modules.Pooling(WIDTH, include_prompt=False)
    folder = build(pooling, limit=LIMIT, prompts=PROMPTS, default_prompt_name=default)
    assert_same(folder, texts, **options)


@pytest.mark.parametrize("limit", [1, LIMIT])
@pytest.mark.parametrize("place", ["config", "tokenizer", "arguments", "call", "positions"])
def test_limits_of_old_and_new_versions(build, texts, limit, place):
    folder = build(modules.Pooling(WIDTH), limit=limit if place == "tokenizer" else None)
    old = folder / "sentence_bert_config.json"
    if place == "config":
        old.write_text(json.dumps({"max_seq_length": limit, "do_lower_case": False}))
    if place == "arguments":
        edit(old, tokenizer_args={"model_max_length": limit}, max_seq_length=99)
    if place == "call":
        edit(old, processing_kwargs={"text": {"max_length": limit}}, max_seq_length=99)
    if place == "positions":
        edit(folder / "config.json", max_position_embeddings=limit)
    assert_same(folder, texts)


def test_lower_case(build, texts):
    folder = build(modules.Pooling(WIDTH), limit=LIMIT)
    edit(folder / "sentence_bert_config.json", do_lower_case=True)
    assert_same(folder, [text.title() for text in texts] + ["THE ΣΑΣ İ"])


def test_truncated_features(build, texts):
    assert_same(build(modules.Pooling(WIDTH), modules.Normalize(), truncate_dim=5), texts)


def test_folder_of_old_versions(build, texts):
    folder = build(
        modules.Pooling(WIDTH),
        modules.Dense(2 * WIDTH, OUT, bias=False, activation_function=torch.nn.Identity()),
        modules.Normalize(),
    )
    listed = json.loads((folder / "modules.json").read_text())
    for module in listed:
        kind = module["type"].rpartition(".")[2]
        module["type"] = f"sentence_transformers.models.{kind}"
    (folder / "modules.json").write_text(json.dumps(listed))
    modes = dict.fromkeys(("max_tokens", "mean_tokens"), True) | {"cls_token": False}
    pooling = {f"pooling_mode_{mode}": on for mode, on in modes.items()}
    pooling["word_embedding_dimension"] = WIDTH
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    shutil.rmtree(folder / "3_Normalize")
    (folder / "3_Normalize").mkdir()
    (folder / "config_sentence_transformers.json").unlink()
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    assert_same(folder, texts)


@pytest.mark.parametrize("modes", [("mean",), ("cls", "weightedmean"), ("mean", "cls")])
@pytest.mark.parametrize("plain", [True, False])
def test_exported_folder(build, texts, tmp_path, modes, plain):
    width = WIDTH * len(modes)
    function = torch.nn.Identity() if plain else torch.nn.SiLU()
    folder = build(
        modules.Pooling(WIDTH, pooling_mode=modes, include_prompt=plain),
        modules.Dense(width, OUT, bias=not plain, activation_function=function),
        modules.LayerNorm(OUT),
        modules.Normalize(),
        limit=LIMIT,
        prompts=PROMPTS,
        default_prompt_name="title",
        similarity_fn_name="dot",
        truncate_dim=7,
    )
    t5 = t5jax.load(folder)
    t5jax.export_hf(t5, tmp_path / "out")
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts)
    np.testing.assert_allclose(theirs.encode(texts), expected, rtol=0, atol=TOLERANCE)
    assert (theirs.similarity_fn_name, theirs.max_seq_length) == ("dot", LIMIT)
    np.testing.assert_array_equal(t5jax.load(tmp_path / "out").embed(texts), t5.embed(texts))
    t5.save(tmp_path / "native")
    np.testing.assert_array_equal(t5jax.load(tmp_path / "native").embed(texts), t5.embed(texts))
