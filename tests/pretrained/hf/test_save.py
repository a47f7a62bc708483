"""Folders for Hugging Face: how they are cut into files, what is in them, what a failure leaves.

Files are read by safetensors and transformers; names and shapes are those of `hf_folders`.
"""

import functools
import hashlib
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from helpers import hf_folders
from safetensors.numpy import load_file

from t5jax.models.config import T5Config
from t5jax.models.t5 import abstract_params
from t5jax.pretrained.formats.safetensors import SafetensorsWriter
from t5jax.pretrained.hf.load import open_hf
from t5jax.pretrained.hf.save import save_hf
from t5jax.pretrained.source import Weights, WrittenArray
from t5jax.tokenizers.byte import ByteTokenizer

INDEX = "model.safetensors.index.json"
BIAS = "SelfAttention.relative_attention_bias.weight"
FAMILIES = {
    "t5": {},
    "v1.1": {"gated_ff": True, "activation": "gelu_tanh", "tie_embeddings": False},
    "umt5": {
        "gated_ff": True,
        "activation": "gelu_tanh",
        "tie_embeddings": False,
        "relative_bias_per_layer": True,
    },
    "encoder": {"num_decoder_layers": 0},
    "umt5 encoder": {"num_decoder_layers": 0, "relative_bias_per_layer": True},
}


shapes_of = functools.cache(abstract_params)


def make(config: T5Config, dtype: type = np.float32):
    """Random parameters, all different."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), shapes_of(config))


def config_of(tiny_config, family):
    return tiny_config.replace(
        **{
            "activation": "relu",
            "gated_ff": False,
            "tie_embeddings": True,
            "scale_logits": family == "t5",
            **FAMILIES[family],
        }
    )


def expected_names(config: T5Config) -> dict[str, tuple[int, ...]]:
    """Every tensor and its shape, by the description in `hf_folders`."""
    found = hf_folders.shapes(
        hf_folders.CONFIG,
        gated=config.gated_ff,
        decoder=config.num_decoder_layers > 0,
        head=not config.tie_embeddings and config.num_decoder_layers > 0,
    )
    if config.relative_bias_per_layer:
        layers = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
        for stack, count in layers.items():
            names = [f"{stack}.block.{i}.layer.0.{BIAS}" for i in range(count)]
            found |= dict.fromkeys(names, (config.relative_buckets, config.num_heads))
    return found


def natural(name: str) -> tuple:
    """The embedding, then by name, where numbers are numbers."""
    parts = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]
    return name != "shared.weight", parts


def cut(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Files, each as full as the next tensor lets it be."""
    files, used = [], limit + 1
    for name in sorted(sizes, key=natural):
        if used + sizes[name] > limit:
            files.append([])
            used = 0
        files[-1].append(name)
        used += sizes[name]
    return files


def save(path, config, params, **options):
    save_hf(path, config, Weights.from_params(params), None, **options)
    return path


def load_all(path) -> dict[str, np.ndarray]:
    """Every tensor of a folder, from whichever files are there."""
    found = {}
    for file in sorted(path.glob("*.safetensors")):
        part = load_file(file)
        assert not part.keys() & found.keys()
        found |= part
    return found


def read(path):
    source = open_hf(path)
    return source.config, source.load_params()


def assert_same_bits(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


# Files and the index.


@pytest.mark.parametrize(
    ("family", "limit"),
    [("t5", 1), ("t5", 2879), ("t5", 2880), ("t5", 20_000), ("umt5", 5000), ("umt5", 40_000)],
)
def test_save_cuts_files_where_the_next_tensor_is_too_much(tmp_path, tiny_config, family, limit):
    config = config_of(tiny_config, family)
    out = save(tmp_path / "out", config, make(config), max_shard_bytes=limit)
    shapes = expected_names(config)
    files = cut({name: 4 * int(np.prod(shape)) for name, shape in shapes.items()}, limit)
    names = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    assert sorted(p.name for p in out.glob("model*")) == sorted([*names, INDEX])
    index = json.loads((out / INDEX).read_text())
    held = {name: file for file, part in zip(names, files, strict=True) for name in part}
    assert index["weight_map"] == held
    # All of float32.
    assert index["metadata"]["total_size"] == 4 * sum(int(np.prod(s)) for s in shapes.values())
    for file, part in zip(names, files, strict=True):
        stored = load_file(out / file)
        assert {name: x.shape for name, x in stored.items()} == {n: shapes[n] for n in part}
        size = sum(x.nbytes for x in stored.values())
        assert size <= limit or len(part) == 1
    again, params = read(out)
    assert again == config
    assert_same_bits(params, make(config))


def test_save_gives_a_tensor_above_the_limit_a_file_of_its_own(tmp_path, tiny_config):
    """The embedding has 97 * 16 * 4 = 6208 bytes; the next tensors are much smaller."""
    config = config_of(tiny_config, "t5")
    save(tmp_path / "out", config, make(config), max_shard_bytes=6207)
    files = sorted(tmp_path.glob("out/model-*.safetensors"))
    assert list(load_file(files[0])) == ["shared.weight"]
    assert len(load_file(files[1])) > 1


@pytest.mark.parametrize("spare", [0, -1])
def test_save_writes_one_file_without_index_as_long_as_it_fits(tmp_path, tiny_config, spare):
    config = config_of(tiny_config, "v1.1")
    total = 4 * sum(int(np.prod(shape)) for shape in expected_names(config).values())
    out = save(tmp_path / "out", config, make(config), max_shard_bytes=total + spare)
    assert (out / "model.safetensors").exists() == (spare == 0)
    assert (out / INDEX).exists() == (spare != 0)
    assert (out / "model-00002-of-00002.safetensors").exists() == (spare != 0)


def test_save_keeps_blocks_in_the_order_of_numbers(tmp_path, tiny_config):
    config = config_of(tiny_config, "t5").replace(num_encoder_layers=12, num_decoder_layers=11)
    seen = []
    save(tmp_path / "out", config, make(config), max_shard_bytes=2000, written=seen.append)
    weight_map = json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"]
    names = sorted(weight_map, key=natural)
    assert names[0] == "shared.weight"
    files = [weight_map[name] for name in names]
    assert files == sorted(files)
    assert len(set(files)) > 20
    assert sorted(w.name for w in seen) == sorted(names)


@pytest.mark.parametrize("limit", [0, -1])
def test_save_refuses_an_impossible_limit(tmp_path, tiny_config, limit):
    with pytest.raises(ValueError, match=f"max_shard_bytes must be at least 1, got {limit}"):
        save(tmp_path / "out", tiny_config, make(tiny_config), max_shard_bytes=limit)
    assert not any(tmp_path.iterdir())


# Values.


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_save_writes_every_tensor_in_its_type_and_orientation(tmp_path, tiny_config, family, dtype):
    config = config_of(tiny_config, family)
    params = make(config, dtype)
    found = load_all(save(tmp_path / "out", config, params, max_shard_bytes=7000))
    assert {name: x.shape for name, x in found.items()} == expected_names(config)
    assert {x.dtype for x in found.values()} == {np.dtype(dtype)}
    wanted = {
        "shared": params["token_embedder"]["embedding"],
        "encoder.block.1.layer.0.SelfAttention.v": params["encoder"]["layers"]["attention"][
            "value"
        ][1].T,
        "encoder.block.0.layer.1.layer_norm": params["encoder"]["layers"]["mlp_norm"]["scale"][0],
        "encoder.final_layer_norm": params["encoder"]["final_norm"]["scale"],
    }
    if config.num_decoder_layers:
        layers = params["decoder"]["layers"]
        wanted |= {
            "decoder.block.2.layer.1.EncDecAttention.o": layers["cross_attention"]["out"][2].T,
            "decoder.block.0.layer.2.DenseReluDense.wo": layers["mlp"]["wo"][0].T,
        }
    if config.gated_ff:
        mlp = params["encoder"]["layers"]["mlp"]
        wanted["encoder.block.1.layer.1.DenseReluDense.wi_0"] = mlp["wi"][1].T
        wanted["encoder.block.1.layer.1.DenseReluDense.wi_1"] = mlp["wi_linear"][1].T
    if "output" in params:
        wanted["lm_head"] = params["output"]["kernel"].T
    name = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias"
    if config.relative_bias_per_layer:
        wanted[name] = params["encoder"]["layers"]["relative_bias"]["embedding"][1]
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[f"{name}.weight"], value, err_msg=name)
    again, reloaded = read(tmp_path / "out")
    assert again == config
    assert_same_bits(reloaded, params)


def test_save_keeps_types_that_differ_and_counts_their_bytes(tmp_path, tiny_config):
    config = config_of(tiny_config, "t5")
    params = make(config)
    params["token_embedder"]["embedding"] = params["token_embedder"]["embedding"].astype(
        ml_dtypes.bfloat16
    )
    wo = params["encoder"]["layers"]["mlp"]["wo"]
    params["encoder"]["layers"]["mlp"]["wo"] = wo.astype(np.float16)
    found = load_all(save(tmp_path / "out", config, params, max_shard_bytes=9000))
    assert found["shared.weight"].dtype == ml_dtypes.bfloat16
    assert found["encoder.block.1.layer.1.DenseReluDense.wo.weight"].dtype == np.float16
    assert found["encoder.final_layer_norm.weight"].dtype == np.float32
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in found.values())


def test_save_tells_of_every_tensor(tmp_path, tiny_config):
    config = config_of(tiny_config, "umt5")
    seen: list[WrittenArray] = []
    out = save(tmp_path / "out", config, make(config, np.float16), written=seen.append)
    found = load_all(out)
    assert sorted(w.name for w in seen) == sorted(found)
    for w in seen:
        assert (w.shape, w.dtype) == (found[w.name].shape, "float16")
        assert w.sha256 == hashlib.sha256(found[w.name].tobytes()).hexdigest()
    assert {w.path for w in seen if ".wi_1." in w.name} == {
        "encoder/layers/mlp/wi_linear",
        "decoder/layers/mlp/wi_linear",
    }


# Beside the weights.


@pytest.mark.parametrize(
    ("family", "model_type", "architecture"),
    [
        ("t5", "t5", "T5ForConditionalGeneration"),
        ("v1.1", "t5", "T5ForConditionalGeneration"),
        ("umt5", "umt5", "UMT5ForConditionalGeneration"),
        ("encoder", "t5", "T5EncoderModel"),
        ("umt5 encoder", "umt5", "UMT5EncoderModel"),
    ],
)
def test_save_names_the_class_that_reads_it(
    tmp_path, tiny_config, family, model_type, architecture
):
    config = config_of(tiny_config, family).replace(pad_id=3, eos_id=2, decoder_start_id=4)
    out = save(tmp_path / "out", config, make(config), max_shard_bytes=9000)
    written = json.loads((out / "config.json").read_text())
    assert written["model_type"] == model_type
    assert written["architectures"] == [architecture]
    assert written["is_encoder_decoder"] is not family.endswith("encoder")
    ids = {"pad_token_id": 3, "eos_token_id": 2, "decoder_start_token_id": 4}
    assert {key: written[key] for key in ids} == ids
    assert json.loads((out / "generation_config.json").read_text()) == ids


# What a failure leaves behind.


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
@pytest.mark.parametrize("after", [0, 30])
def test_save_leaves_nothing_if_it_is_interrupted(tmp_path, tiny_config, after, error):
    config = config_of(tiny_config, "t5")
    weights, count = Weights.from_params(make(config)), 0

    def written(_):
        nonlocal count
        count += 1
        if count > after:
            raise error("stop")

    with pytest.raises(error, match="stop"):
        save_hf(
            tmp_path / "a" / "out", config, weights, None, max_shard_bytes=3000, written=written
        )
    assert not any((tmp_path / "a").iterdir())


def test_save_leaves_nothing_if_the_weights_cannot_be_read(tmp_path, tiny_config):
    def read(path):
        raise ValueError(f"{path} ends within its data")

    weights = Weights.from_params(make(tiny_config))._replace(read=read)
    with pytest.raises(ValueError, match="ends within its data"):
        save_hf(tmp_path / "out", tiny_config, weights, None)
    assert not any(tmp_path.iterdir())


def test_save_leaves_nothing_if_the_tokenizer_cannot_be_written(tmp_path, tiny_config, monkeypatch):
    def fail(self, folder):
        raise OSError("no space")

    monkeypatch.setattr(ByteTokenizer, "save", fail)
    weights = Weights.from_params(make(tiny_config))
    with pytest.raises(OSError, match="no space"):
        save_hf(tmp_path / "out", tiny_config, weights, ByteTokenizer())
    assert not any(tmp_path.iterdir())


def test_save_keeps_the_old_model_if_it_is_interrupted(tmp_path, tiny_config, monkeypatch):
    config = config_of(tiny_config, "t5")
    out = save(tmp_path / "out", config, make(config))
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def interrupt(self, name, values):
        raise KeyboardInterrupt

    monkeypatch.setattr(SafetensorsWriter, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(out, config, make(config, np.float16), overwrite=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert list(tmp_path.iterdir()) == [out]


# What may be replaced.


def test_save_replaces_a_model_only_if_told_to(tmp_path, tiny_config):
    config = config_of(tiny_config, "umt5")
    out = save(tmp_path / "out", config, make(config), max_shard_bytes=3000)
    with pytest.raises(FileExistsError, match="must be a new or an empty folder"):
        save(out, config, make(config))
    assert (out / INDEX).exists()
    save(out, config, make(config), overwrite=True)
    assert not (out / INDEX).exists()
    assert list(load_all(out)) == list(load_file(out / "model.safetensors"))
    assert list(tmp_path.iterdir()) == [out]


def test_save_fills_an_empty_folder(tmp_path, tiny_config):
    (tmp_path / "out").mkdir()
    assert read(save(tmp_path / "out", tiny_config, make(tiny_config)))[0] == tiny_config


def test_save_never_replaces_what_is_not_a_model(tmp_path, tiny_config):
    for name in ("file", "folder"):
        path = tmp_path / name
        inner = path / "thesis.tex" if name == "folder" else path
        inner.parent.mkdir(exist_ok=True)
        inner.write_text("years of work")
        with pytest.raises(FileExistsError, match="must be a saved model to be overwritten"):
            save(path, tiny_config, make(tiny_config), overwrite=True)
        assert inner.read_text() == "years of work"


# What transformers says.


@pytest.mark.parametrize(("family", "limit"), [("t5", 10**9), *((f, 5000) for f in FAMILIES)])
def test_transformers_reads_every_tensor(tmp_path, tiny_config, family, limit):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = config_of(tiny_config, family)
    out = save(tmp_path / "out", config, make(config), max_shard_bytes=limit)
    name = json.loads((out / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, name).from_pretrained(
        out, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    stored, found = model.state_dict(), load_all(out)
    for tensor, values in found.items():
        np.testing.assert_array_equal(stored[tensor].numpy(), values, err_msg=tensor)
    if config.num_decoder_layers and not config.tie_embeddings:
        assert not np.array_equal(stored["lm_head.weight"], stored["shared.weight"])
