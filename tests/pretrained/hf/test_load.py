"""Hugging Face folders against their description: names, shapes, keys, and every way to be wrong.

Folders are written by `hf_folders`, without t5jax; what the parameters compute is compared with
transformers in test_parity.py.
"""

import json
import re
import shutil
import struct

import ml_dtypes
import numpy as np
import pytest
from helpers import hf_folders
from helpers.trees import assert_same_bits, flat
from safetensors.numpy import load_file

from t5jax.models.config import T5Config
from t5jax.pretrained.hf.load import holds_hf_model, open_hf
from t5jax.pretrained.hf.save import save_hf
from t5jax.pretrained.source import Weights
from t5jax.tokenizers.load import load_tokenizer
from t5jax.tokenizers.sentencepiece import train_tokenizer

CONFIG = hf_folders.CONFIG
UNUSED_BIAS = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
ENCODER = [  # of one block: our path, their name, whether it is transposed
    ("attention/query", "layer.0.SelfAttention.q", True),
    ("attention/key", "layer.0.SelfAttention.k", True),
    ("attention/value", "layer.0.SelfAttention.v", True),
    ("attention/out", "layer.0.SelfAttention.o", True),
    ("attention_norm/scale", "layer.0.layer_norm", False),
    ("mlp/wo", "layer.1.DenseReluDense.wo", True),
    ("mlp_norm/scale", "layer.1.layer_norm", False),
]
DECODER = [
    ("self_attention/query", "layer.0.SelfAttention.q", True),
    ("self_attention/key", "layer.0.SelfAttention.k", True),
    ("self_attention/value", "layer.0.SelfAttention.v", True),
    ("self_attention/out", "layer.0.SelfAttention.o", True),
    ("self_attention_norm/scale", "layer.0.layer_norm", False),
    ("cross_attention/query", "layer.1.EncDecAttention.q", True),
    ("cross_attention/key", "layer.1.EncDecAttention.k", True),
    ("cross_attention/value", "layer.1.EncDecAttention.v", True),
    ("cross_attention/out", "layer.1.EncDecAttention.o", True),
    ("cross_attention_norm/scale", "layer.1.layer_norm", False),
    ("mlp/wo", "layer.2.DenseReluDense.wo", True),
    ("mlp_norm/scale", "layer.2.layer_norm", False),
]
# T5 1.0, v1.1 and the encoder of v1.1, as transformers saves them.
FAMILIES = {
    "relu-tied": ({}, {}),
    "gelu-untied": (
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        {"gated": True, "head": True},
    ),
    "silu-tied": ({"feed_forward_proj": "gated-silu"}, {"gated": True}),
    "encoder-only": ({"feed_forward_proj": "gated-gelu"}, {"gated": True, "decoder": False}),
}


def load(folder):
    source = open_hf(folder)
    return source.config, source.load_params(dtype=np.dtype(np.float32))


def save(folder, config, params, vocabulary, **options):
    save_hf(folder, config, Weights.from_params(params), vocabulary, **options)


def expected_params(tensors):
    """The parameters of a file, '/'-joined, by the table of names above."""
    gated = any("wi_0" in name for name in tensors)
    found = {"token_embedder/embedding": tensors["shared.weight"]}
    if "lm_head.weight" in tensors:
        found["output/kernel"] = tensors["lm_head.weight"].T
    for stack, mlp, block in (("encoder", 1, ENCODER), ("decoder", 2, DECODER)):
        if f"{stack}.final_layer_norm.weight" not in tensors:
            continue
        inner = [("wi", "wi_0"), ("wi_linear", "wi_1")] if gated else [("wi", "wi")]
        inner = [(f"mlp/{us}", f"layer.{mlp}.DenseReluDense.{them}", True) for us, them in inner]
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found[f"{stack}/relative_bias/embedding"] = tensors[bias]
        found[f"{stack}/final_norm/scale"] = tensors[f"{stack}.final_layer_norm.weight"]
        num_layers = 2 if stack == "encoder" else 3
        for ours, theirs, transpose in [*block, *inner]:
            layers = [tensors[f"{stack}.block.{i}.{theirs}.weight"] for i in range(num_layers)]
            found[f"{stack}/layers/{ours}"] = np.stack([x.T if transpose else x for x in layers])
    return found


def assert_loads(folder, tensors):
    config, params = load(folder)
    assert_same_bits(flat(params), expected_params(tensors))
    return config


def error_of(folder) -> str:
    """The message with which `folder` is refused: one sentence that names a file of it."""
    with pytest.raises(ValueError, match=re.escape(str(folder))) as caught:
        load(folder)
    assert type(caught.value) is ValueError
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert "\n" not in message
    assert len(message.replace(str(folder), "")) < 400
    return message


@pytest.fixture
def folder(tmp_path):
    """A whole T5 1.0 for tests to damage."""
    return hf_folders.write(tmp_path / "model", CONFIG, hf_folders.random_tensors(CONFIG))


def edit(folder, **changes):
    """Changes keys of a folder's config.json; None removes, `null` in JSON is spelled "null"."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        config[key] = None if value == "null" else value
        if value is None:
            del config[key]
    path.write_text(json.dumps(config))


# What is in the files.


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_load_puts_every_tensor_in_its_place(tmp_path, family, num_shards):
    changes, options = FAMILIES[family]
    tensors = hf_folders.random_tensors(CONFIG, **options)
    hf_folders.write(tmp_path, CONFIG | changes, tensors, num_shards=num_shards)
    config = assert_loads(tmp_path, tensors)
    assert config.gated_ff is options.get("gated", False)
    assert config.tie_embeddings is not options.get("head", False)
    assert config.num_decoder_layers == (3 if options.get("decoder", True) else 0)


def test_load_keeps_bits_that_are_no_ordinary_numbers(tmp_path):
    tensors = hf_folders.random_tensors(CONFIG)
    odd = np.array([np.nan, -0.0, np.inf, -np.inf, 1e-45, -1e-40, 3.4e38], np.float32)
    odd[0:1].view(np.uint32)[0] = 0x7FC12345
    tensors["shared.weight"][5, :7] = odd
    tensors["decoder.block.2.layer.2.DenseReluDense.wo.weight"][3, :7] = odd
    assert_loads(hf_folders.write(tmp_path, CONFIG, tensors), tensors)


def test_load_widens_float16_exactly(tmp_path):
    tensors = {
        name: value.astype(np.float16) for name, value in hf_folders.random_tensors(CONFIG).items()
    }
    tensors["shared.weight"][0, :4] = [6e-8, 65504, -0.0, np.inf]
    hf_folders.write(tmp_path, CONFIG, tensors)
    # IEEE half values are float32 values; Python's own decoder of them is the oracle.
    wide = {
        name: np.array(struct.unpack(f"<{x.size}e", x.tobytes()), np.float32).reshape(x.shape)
        for name, x in tensors.items()
    }
    assert_loads(tmp_path, wide)


def test_load_widens_bfloat16_exactly(tmp_path):
    tensors = {
        name: value.astype(ml_dtypes.bfloat16)
        for name, value in hf_folders.random_tensors(CONFIG).items()
    }
    hf_folders.write(tmp_path, CONFIG, tensors)
    # bfloat16 is the upper half of float32.
    wide = {
        name: (x.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        for name, x in tensors.items()
    }
    assert_loads(tmp_path, wide)


def test_load_reads_files_of_mixed_types(tmp_path):
    """As those that keep `wo` in float32."""
    tensors = hf_folders.random_tensors(CONFIG)
    mixed = {n: x if "wo" in n else x.astype(np.float16) for n, x in tensors.items()}
    hf_folders.write(tmp_path, CONFIG, mixed, num_shards=2)
    assert_loads(tmp_path, {n: x.astype(np.float32) for n, x in mixed.items()})


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, ml_dtypes.float8_e4m3fn])
def test_load_refuses_types_that_are_no_exact_float32(tmp_path, dtype):
    tensors = hf_folders.random_tensors(CONFIG)
    name = "encoder.block.1.layer.0.SelfAttention.k.weight"
    tensors[name] = tensors[name].astype(dtype)
    message = error_of(hf_folders.write(tmp_path, CONFIG, tensors))
    assert f"{name} must have dtype float32, bfloat16, float16, got " in message


def test_load_reads_float64_as_float32(tmp_path):
    tensors = hf_folders.random_tensors(CONFIG)
    hf_folders.write(tmp_path, CONFIG, {n: x.astype(np.float64) for n, x in tensors.items()})
    assert_loads(tmp_path, tensors)


PREFIXES = [
    "module.",
    "_orig_mod.",
    "model.",
    "base_model.model.",
    "module._orig_mod.",
    "transformer.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_load_reads_names_that_a_wrapper_made(tmp_path, prefix):
    tensors = hf_folders.random_tensors(CONFIG)
    head = {"v_head.summary.weight": np.ones((1, 4), np.float32)}
    hf_folders.write(tmp_path, CONFIG, {prefix + n: x for n, x in tensors.items()} | head)
    assert_loads(tmp_path, tensors)


def test_load_refuses_two_models_in_one_file(tmp_path):
    tensors = hf_folders.random_tensors(CONFIG)
    both = {p + n: x for p in ("model.", "ema.") for n, x in tensors.items()}
    message = error_of(hf_folders.write(tmp_path, CONFIG, both))
    assert "one T5, got several with the prefixes 'ema.', 'model.'" in message


def test_load_ignores_buffers(tmp_path):
    tensors = hf_folders.random_tensors(CONFIG)
    buffers = {"encoder.block.0.total_ops": np.zeros(1), "total_params": np.zeros(1)}
    hf_folders.write(tmp_path, CONFIG, tensors | buffers)
    assert_loads(tmp_path, tensors)
    assert any("buffer" in line for line in open_hf(tmp_path).ignored.values())


def test_load_reads_an_index_that_lists_aliases(tmp_path):
    tensors = hf_folders.random_tensors(CONFIG)
    hf_folders.write(tmp_path, CONFIG, tensors, num_shards=2)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shard = content["weight_map"]["shared.weight"]
    for alias in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        content["weight_map"][alias] = shard
    index.write_text(json.dumps(content))
    assert_loads(tmp_path, tensors)
    content["weight_map"]["encoder.block.0.layer.9.weight"] = shard
    index.write_text(json.dumps(content))
    assert "must contain the tensor encoder.block.0.layer.9.weight" in error_of(tmp_path)


def test_load_names_the_stubs_of_deepspeed(tmp_path):
    tensors = hf_folders.random_tensors(CONFIG)
    hf_folders.write(tmp_path, CONFIG, {n: x.reshape(-1)[:0] for n, x in tensors.items()})
    assert "zero_to_fp32.py" in error_of(tmp_path)


def test_load_ignores_the_bias_that_cross_attention_never_had(tmp_path):
    tensors = hf_folders.random_tensors(CONFIG)
    hf_folders.write(tmp_path, CONFIG, tensors | {UNUSED_BIAS: np.ones((8, 3), np.float32)})
    assert_loads(tmp_path, tensors)


def test_load_reads_flax_files(tmp_path):
    for family, (changes, options) in FAMILIES.items():
        tensors = hf_folders.random_tensors(CONFIG, **options)
        folder = hf_folders.write_flax(tmp_path / family, CONFIG | changes, tensors)
        assert_loads(folder, tensors)


def test_load_reads_flax_files_in_shards(tmp_path):
    changes, options = FAMILIES["gelu-untied"]
    tensors = hf_folders.random_tensors(CONFIG, **options)
    folder = hf_folders.write_flax(tmp_path, CONFIG | changes, tensors, num_shards=3)
    assert len(list(folder.glob("flax_model-*-of-00003.msgpack"))) == 3
    assert_loads(folder, tensors)
    (folder / "flax_model-00002-of-00003.msgpack").unlink()
    assert "flax_model-00002-of-00003.msgpack" in error_of(folder)


def test_load_ties_a_flax_output_layer_equal_to_the_embedding(tmp_path):
    """There it is [in, out], and the embedding is not."""
    tensors = hf_folders.random_tensors(CONFIG)
    tensors["lm_head.weight"] = tensors["shared.weight"]
    folder = hf_folders.write_flax(tmp_path, CONFIG, tensors)
    config, params = load(folder)
    assert config.tie_embeddings
    assert "output" not in params
    assert open_hf(folder).ignored == {"lm_head/kernel": "same as shared/embedding"}


# Which of several embeddings, and what the output layer is.


@pytest.mark.parametrize(
    "present",
    [
        ("encoder.embed_tokens.weight",),
        ("decoder.embed_tokens.weight",),
        ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
        ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    ],
)
def test_load_finds_the_embedding_under_any_of_its_names(tmp_path, present):
    tensors = hf_folders.random_tensors(CONFIG)
    stored = dict(tensors)
    table = stored.pop("shared.weight")
    hf_folders.write(tmp_path, CONFIG, stored | {name: table.copy() for name in present})
    assert_loads(tmp_path, tensors)


def test_load_never_takes_the_output_layer_for_the_embedding(tmp_path):
    tensors = hf_folders.random_tensors(CONFIG, head=True)
    del tensors["shared.weight"]
    message = error_of(hf_folders.write(tmp_path, CONFIG, tensors))
    assert "must contain the embedding shared.weight" in message


@pytest.mark.parametrize("other", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"])
def test_load_refuses_embeddings_that_differ(tmp_path, other):
    tensors = hf_folders.random_tensors(CONFIG)
    changed = tensors["shared.weight"].copy()
    changed[-1, -1] = np.nextafter(changed[-1, -1], np.float32(np.inf))
    message = error_of(hf_folders.write(tmp_path, CONFIG, tensors | {other: changed}))
    assert f"{other} must equal shared.weight" in message


def test_load_ties_an_output_layer_equal_to_the_embedding(tmp_path):
    tensors = hf_folders.random_tensors(CONFIG)
    hf_folders.write(
        tmp_path, CONFIG, tensors | {"lm_head.weight": tensors["shared.weight"].copy()}
    )
    assert assert_loads(tmp_path, tensors).tie_embeddings


def test_load_unties_an_output_layer_that_differs_in_one_bit(tmp_path):
    tensors = hf_folders.random_tensors(CONFIG)
    head = tensors["shared.weight"].copy()
    head[3, 3] = np.nextafter(head[3, 3], np.float32(0))
    tensors["lm_head.weight"] = head
    config = assert_loads(hf_folders.write(tmp_path, CONFIG, tensors), tensors)
    assert not config.tie_embeddings
    assert config.scale_logits  # by tie_word_embeddings, as transformers 5 does


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize(
    ("keys", "scaled"),
    [
        ({"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": "null"}, True),
        ({"tie_word_embeddings": None}, True),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
        ({"tie_word_embeddings": False, "scale_decoder_outputs": True}, True),
        ({"tie_word_embeddings": False, "scale_decoder_outputs": "null"}, False),
        ({"tie_word_embeddings": None, "scale_decoder_outputs": False}, False),
    ],
)
def test_config_ties_by_the_tensors_and_scales_by_the_keys(tmp_path, head, keys, scaled):
    hf_folders.write(tmp_path, CONFIG, hf_folders.random_tensors(CONFIG, head=head))
    edit(tmp_path, **keys)
    config, _ = load(tmp_path)
    assert config.tie_embeddings is not head
    assert config.scale_logits is scaled


# Keys of config.json.


def test_config_has_the_sizes_of_the_file(folder):
    config, _ = load(folder)
    assert config == T5Config(
        vocab_size=97,
        d_model=16,
        d_ff=24,
        d_kv=5,
        num_heads=3,
        num_encoder_layers=2,
        num_decoder_layers=3,
        activation="relu",
        gated_ff=False,
        tie_embeddings=True,
        scale_logits=True,
        relative_buckets=8,
        relative_max_distance=12,
        norm_epsilon=1e-6,
        dropout_rate=0.1,
    )


@pytest.mark.parametrize("value", [None, "null"])
def test_config_without_decoder_layers_has_as_many_as_the_encoder(tmp_path, value):
    square = CONFIG | {"num_decoder_layers": 2}
    hf_folders.write(tmp_path, square, hf_folders.random_tensors(square))
    edit(tmp_path, num_decoder_layers=value)
    assert load(tmp_path)[0].num_decoder_layers == 2


@pytest.mark.parametrize("junk", [24, None, "null", 0])
def test_config_of_an_encoder_only_file_says_nothing_about_the_decoder(tmp_path, junk):
    hf_folders.write(tmp_path, CONFIG, hf_folders.random_tensors(CONFIG, decoder=False))
    edit(tmp_path, num_decoder_layers=junk)
    assert load(tmp_path)[0].num_decoder_layers == 0


def test_config_without_optional_keys_has_the_first_release_s_defaults(tmp_path):
    original = CONFIG | {
        "d_kv": 64,
        "num_layers": 6,
        "num_decoder_layers": 6,
        "relative_attention_num_buckets": 32,
        "num_heads": 2,
    }
    hf_folders.write(tmp_path, original, hf_folders.random_tensors(original))
    needed = {"vocab_size", "d_model", "d_ff", "num_heads"}
    edit(tmp_path, **dict.fromkeys(original.keys() - needed))
    config, _ = load(tmp_path)
    sizes = (config.d_kv, config.num_encoder_layers, config.num_decoder_layers)
    assert sizes == (64, 6, 6)
    assert (config.relative_buckets, config.relative_max_distance) == (32, 128)
    assert (config.norm_epsilon, config.dropout_rate) == (1e-6, 0.1)
    assert (config.pad_id, config.eos_id, config.decoder_start_id) == (0, 1, 0)
    assert (config.activation, config.gated_ff, config.scale_logits) == ("relu", False, True)


@pytest.mark.parametrize(
    ("keys", "activation"),
    [
        ({"feed_forward_proj": None}, "relu"),
        ({"feed_forward_proj": "null"}, "relu"),
        ({"feed_forward_proj": "relu"}, "relu"),
        ({"feed_forward_proj": "gelu"}, "gelu_erf"),
        ({"feed_forward_proj": "gated-gelu"}, "gelu_tanh"),
        ({"feed_forward_proj": "gated-gelu_new"}, "gelu_tanh"),
        ({"feed_forward_proj": "gated-silu"}, "silu"),
        ({"feed_forward_proj": "gated-swish"}, "silu"),
        ({"feed_forward_proj": None, "dense_act_fn": "gelu_pytorch_tanh"}, "gelu_tanh"),
        # flan-t5-xxl before its config was corrected, and with it corrected
        (
            {"feed_forward_proj": "gelu", "dense_act_fn": "gelu", "is_gated_act": True},
            "gelu_erf",
        ),
        (
            {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": True},
            "gelu_tanh",
        ),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}, "gelu_erf"),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "null"}, "gelu_tanh"),
    ],
)
@pytest.mark.parametrize("gated", [False, True])
def test_config_names_the_activation_and_tensors_tell_whether_it_is_gated(
    tmp_path, keys, activation, gated
):
    hf_folders.write(tmp_path, CONFIG, hf_folders.random_tensors(CONFIG, gated=gated))
    edit(tmp_path, **keys)
    config, _ = load(tmp_path)
    # Nobody published a gated ReLU: such a config is wrong about both.
    expected = "gelu_tanh" if gated and activation == "relu" else activation
    assert (config.activation, config.gated_ff) == (expected, gated)


def test_config_ids_may_be_those_of_madlad(folder):
    edit(folder, pad_token_id=1, eos_token_id=2, decoder_start_token_id=0)
    config, _ = load(folder)
    assert (config.pad_id, config.eos_id, config.decoder_start_id) == (1, 2, 0)


@pytest.mark.parametrize("absent", [None, "null"])
@pytest.mark.parametrize(("generation", "start"), [({"decoder_start_token_id": 5}, 5), ({}, 3)])
def test_config_without_start_id_takes_that_of_generation_or_padding(
    folder, absent, generation, start
):
    edit(folder, pad_token_id=3, decoder_start_token_id=absent)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    assert load(folder)[0].decoder_start_id == start


# What does not fit together, or is damaged.


@pytest.mark.parametrize(
    ("changes", "tensor", "wanted", "found"),
    [
        ({"d_model": 15}, "shared.weight", (97, 15), (97, 16)),
        ({"num_heads": 4}, "encoder.block.0.layer.0.SelfAttention.k.weight", (20, 16), (15, 16)),
        ({"d_kv": 3}, "encoder.block.0.layer.0.SelfAttention.k.weight", (9, 16), (15, 16)),
        ({"d_ff": 25}, "encoder.block.0.layer.1.DenseReluDense.wi.weight", (25, 16), (24, 16)),
        (
            {"relative_attention_num_buckets": 10, "relative_attention_max_distance": 20},
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            (10, 3),
            (8, 3),
        ),
    ],
)
def test_load_names_the_first_tensor_that_does_not_fit_the_config(
    folder, changes, tensor, wanted, found
):
    edit(folder, **changes)
    message = error_of(folder)
    assert f"model.safetensors: {tensor} must have shape {wanted}" in message
    assert f"got {found}" in message


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize(
    "name",
    [
        "encoder.block.1.layer.1.DenseReluDense.wo.weight",
        "decoder.block.0.layer.1.EncDecAttention.k.weight",
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder.final_layer_norm.weight",
    ],
)
def test_load_names_a_tensor_that_is_missing(tmp_path, name, num_shards):
    tensors = hf_folders.random_tensors(CONFIG)
    del tensors[name]
    message = error_of(hf_folders.write(tmp_path, CONFIG, tensors, num_shards=num_shards))
    assert f"must contain {name}" in message


@pytest.mark.parametrize("count", [3, 10**7])
@pytest.mark.parametrize(
    ("key", "stack"), [("num_layers", "encoder"), ("num_decoder_layers", "decoder")]
)
def test_load_names_a_layer_that_is_missing_however_many_are_asked_for(folder, key, stack, count):
    count += 1  # one more than the decoder has
    edit(folder, **{key: count})
    assert f"must contain {stack}.block.{2 + (stack == 'decoder')}.layer." in error_of(folder)


@pytest.mark.parametrize(
    "name",
    [
        "encoder.block.0.layer.0.SelfAttention.q.bias",
        "decoder.block.1.layer.1.EncDecAttention.relative_attention_bias.weight",
        "encoder.block.2.layer.0.layer_norm.weight",
        "scaled_fp8",
    ],
)
def test_load_names_a_tensor_that_nobody_reads(tmp_path, name):
    tensors = hf_folders.random_tensors(CONFIG) | {name: np.ones((16,), np.float32)}
    message = error_of(hf_folders.write(tmp_path, CONFIG, tensors))
    assert f"contains 1 tensors that a T5 of its config does not use, first {name}" in message


def header_of(data: bytes) -> tuple[dict, bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header, body) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def lie(data: bytes, **changes) -> bytes:
    header, body = header_of(data)
    header["shared.weight"] |= changes
    return with_header(header, body)


@pytest.mark.parametrize(
    "damage",
    {
        "one byte short": lambda data: data[:-1],
        "half": lambda data: data[: len(data) // 2],
        "cut in the header": lambda data: data[:100],
        "cut in the length": lambda data: data[:5],
        "empty": lambda data: b"",
        "one byte long": lambda data: data + b"x",
        "length of the header": lambda data: b"\xff" * 8 + data[8:],
        "header is not JSON": lambda data: data[:8] + b"x" * 50 + data[58:],
        "git-lfs pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "web page": lambda data: b"<html><body>404 Not Found</body></html>",
        "shape": lambda data: lie(data, shape=[97, 17]),
        "huge shape": lambda data: lie(data, shape=[10**12, 10**12]),
        "type": lambda data: lie(data, dtype="F99"),
        "place": lambda data: lie(data, data_offsets=[0, 10**15]),
        "negative place": lambda data: lie(data, data_offsets=[-8, 10]),
    }.items(),
    ids=lambda item: item[0],
)
def test_load_refuses_a_damaged_file_by_name(folder, damage):
    path = folder / "model.safetensors"
    path.write_bytes(damage[1](path.read_bytes()))
    message = error_of(folder)
    assert message.startswith(f"{path} must be a safetensors file; it is damaged")


@pytest.mark.parametrize("damaged", ["model-00001-of-00003", "model-00003-of-00003"])
def test_load_names_the_damaged_shard(tmp_path, damaged):
    hf_folders.write(tmp_path, CONFIG, hf_folders.random_tensors(CONFIG), num_shards=3)
    path = tmp_path / f"{damaged}.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert error_of(tmp_path).startswith(f"{path} must be a safetensors file")
    path.unlink()
    assert error_of(tmp_path).startswith(f"{path} must be a safetensors file")


@pytest.mark.parametrize("spelling", ["../{}", "{absolute}", "../outside/{}", "sub/{}", "./{}"])
def test_load_reads_nothing_outside_the_folder(tmp_path, spelling):
    """The shard that the index points to is whole, so only the rule can keep it out."""
    model = tmp_path / "model"
    hf_folders.write(model, CONFIG, hf_folders.random_tensors(CONFIG), num_shards=3)
    shard = "model-00001-of-00003.safetensors"
    for place in (tmp_path, tmp_path / "outside", model / "sub"):
        place.mkdir(exist_ok=True)
        shutil.copy(model / shard, place)
    name = spelling.format(shard, absolute=tmp_path / shard)
    index = model / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(f'"{shard}"', json.dumps(name)))
    assert json.loads(index.read_text())["weight_map"]["shared.weight"] == name
    message = error_of(model)
    assert f"shared.weight must be in a file in the same folder, got {name!r}" in message


@pytest.mark.parametrize("name", ["..", ".", "", 5, None, ["x"], "/"])
def test_load_refuses_an_index_that_names_no_file(tmp_path, name):
    hf_folders.write(tmp_path, CONFIG, hf_folders.random_tensors(CONFIG), num_shards=2)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["shared.weight"] = name
    path.write_text(json.dumps(index))
    assert f"must be in a file in the same folder, got {name!r}" in error_of(tmp_path)


def test_load_refuses_an_index_that_names_the_wrong_shard(tmp_path):
    hf_folders.write(tmp_path, CONFIG, hf_folders.random_tensors(CONFIG), num_shards=3)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = "decoder.final_layer_norm.weight"
    own = index["weight_map"][name]
    other = next(shard for shard in index["weight_map"].values() if shard != own)
    index["weight_map"][name] = other
    path.write_text(json.dumps(index))
    assert error_of(tmp_path).startswith(f"{tmp_path / other} must contain the tensor {name}")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_load_refuses_an_index_without_a_map(tmp_path, text):
    hf_folders.write(tmp_path, CONFIG, hf_folders.random_tensors(CONFIG), num_shards=2)
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    assert error_of(tmp_path).startswith(f"{path} must ")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "must be JSON"),
        (b"{", "must be JSON"),
        (b"{'d_model': 16}", "must be JSON"),
        (b"\xff\xfe\x00", "must be JSON"),
        (b"[" * 100_000, "must be JSON"),
        (b"[]", "must be a JSON object, got list"),
        (b"7", "must be a JSON object, got int"),
        (b"null", "must be a JSON object, got NoneType"),
        (b"{}", "must have vocab_size, d_model, d_ff, num_heads"),
        (b'{"d_model": 16, "d_ff": 24, "num_heads": 3}', "must have vocab_size"),
    ],
)
def test_load_refuses_a_config_that_is_none(folder, data, reason):
    path = folder / "config.json"
    path.write_bytes(data)
    assert error_of(folder).startswith(f"{path} {reason}")


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("d_model", value) for value in ("16", "null", 16.0, True, [], {}, 0, -16)),
        ("num_layers", "2"),
        ("num_layers", 0),
        ("num_decoder_layers", 2.5),
        ("num_decoder_layers", -1),
        ("d_kv", "null"),
        ("feed_forward_proj", 5),
        ("feed_forward_proj", []),
        ("feed_forward_proj", "gated-"),
        ("feed_forward_proj", "gated-gelu-relu"),
        ("feed_forward_proj", "sparse-relu"),
        ("dense_act_fn", "tanh"),
        ("dense_act_fn", []),
        ("tie_word_embeddings", "false"),
        ("tie_word_embeddings", 0),
        ("scale_decoder_outputs", "no"),
        ("relative_attention_num_buckets", 7),
        ("relative_attention_max_distance", 4),
        ("layer_norm_epsilon", "1e-6"),
        ("layer_norm_epsilon", -1e-6),
        ("dropout_rate", 1.5),
        ("pad_token_id", "null"),
        ("eos_token_id", [1, 2]),
        ("eos_token_id", 97),
        ("decoder_start_token_id", -1),
    ],
)
def test_load_refuses_a_wrong_value_by_the_key_that_has_it(folder, key, value):
    edit(folder, **{key: value})
    message = error_of(folder)
    assert message.startswith(f"{folder / 'config.json'}: ")
    assert key in message
    assert "got " in message


def test_holds_model_needs_config_and_weights(tmp_path):
    tensors = hf_folders.random_tensors(CONFIG)
    single = hf_folders.write(tmp_path / "single", CONFIG, tensors)
    sharded = hf_folders.write(tmp_path / "sharded", CONFIG, tensors, num_shards=2)
    assert holds_hf_model(single)
    assert holds_hf_model(sharded)
    (single / "config.json").unlink()
    (sharded / "model.safetensors.index.json").unlink()
    assert not holds_hf_model(single)
    assert not holds_hf_model(sharded)


# Written by us.


@pytest.mark.parametrize("family", FAMILIES)
def test_save_writes_the_tensors_that_were_read(tmp_path, family):
    changes, options = FAMILIES[family]
    tensors = hf_folders.random_tensors(CONFIG, **options)
    config, params = load(hf_folders.write(tmp_path / "in", CONFIG | changes, tensors))
    save(tmp_path / "out", config, params, None)
    assert_same_bits(load_file(tmp_path / "out" / "model.safetensors"), tensors)
    again, reloaded = load(tmp_path / "out")
    assert again == config
    assert_same_bits(flat(reloaded), flat(params))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("activation", ["relu", "gelu_tanh", "gelu_erf", "silu"])
@pytest.mark.parametrize(
    ("tie", "scale", "gated"),
    [(True, True, False), (True, False, True), (False, True, True), (False, False, False)],
)
def test_save_and_load_agree_on_every_switch(tmp_path, tie, scale, gated, activation):
    options = {"gated": gated, "head": not tie}
    hf_folders.write(tmp_path / "in", CONFIG, hf_folders.random_tensors(CONFIG, **options))
    config, params = load(tmp_path / "in")
    config = config.replace(
        activation=activation, scale_logits=scale, norm_epsilon=1e-5, pad_id=2, decoder_start_id=3
    )
    save(tmp_path / "out", config, params, None)
    again, reloaded = load(tmp_path / "out")
    assert again == config
    assert_same_bits(flat(reloaded), flat(params))


def test_save_writes_the_keys_that_readers_need(tmp_path):
    """Read with the rules of transformers: gating and activation by their own keys, and so on."""
    config = CONFIG | {"feed_forward_proj": "gated-gelu", "eos_token_id": 2, "pad_token_id": 3}
    tensors = hf_folders.random_tensors(config, gated=True, head=True)
    hf_folders.write(tmp_path / "in", config | {"tie_word_embeddings": False}, tensors)
    save(tmp_path / "out", *load(tmp_path / "in"), None)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    sizes = ("d_ff", "d_kv", "d_model", "num_decoder_layers", "num_heads", "num_layers")
    buckets = ("relative_attention_max_distance", "relative_attention_num_buckets")
    ids = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
    for key in (*sizes, *buckets, *ids, "vocab_size", "layer_norm_epsilon", "dropout_rate"):
        assert written[key] == config[key], key
    assert written["model_type"] == "t5"
    assert written["architectures"] == ["T5ForConditionalGeneration"]
    assert written["is_encoder_decoder"] is True
    assert written["feed_forward_proj"] == "gated-gelu"
    assert (written["dense_act_fn"], written["is_gated_act"]) == ("gelu_new", True)
    assert written["tie_word_embeddings"] is False
    assert written["scale_decoder_outputs"] is False
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {key: config[key] for key in ids}


def test_save_writes_an_encoder_as_one(tmp_path):
    hf_folders.write(tmp_path / "in", CONFIG, hf_folders.random_tensors(CONFIG, decoder=False))
    save(tmp_path / "out", *load(tmp_path / "in"), None)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == ["T5EncoderModel"]
    assert written["is_encoder_decoder"] is False
    assert written["num_layers"] == 2


def test_save_writes_torch_s_format_mark(folder, tmp_path):
    """transformers refuses a file without it."""
    save(tmp_path / "out", *load(folder), None)
    header, _ = header_of((tmp_path / "out" / "model.safetensors").read_bytes())
    assert header["__metadata__"] == {"format": "pt"}


def test_save_writes_the_tokenizer(folder, tmp_path):
    vocabulary = train_tokenizer(["a bee sees a bee"], vocab_size=10, num_sentinels=5)
    save(tmp_path / "out", *load(folder), vocabulary)
    found = load_tokenizer(tmp_path / "out")
    assert found is not None
    assert found.fingerprint == vocabulary.fingerprint


def test_save_writes_a_bias_in_every_layer_as_umt5(folder, tmp_path):
    config, params = load(folder)
    for stack, count in (("encoder", 2), ("decoder", 3)):
        table = params[stack].pop("relative_bias")["embedding"]
        rows = np.stack([table + i for i in range(count)])
        params[stack]["layers"]["relative_bias"] = {"embedding": rows}
    config = config.replace(relative_bias_per_layer=True)
    save(tmp_path / "out", config, params, None)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "umt5"
    assert_same_bits(flat(load(tmp_path / "out")[1]), flat(params))


def test_save_replaces_a_model_only_if_told_to(folder, tmp_path):
    config, params = load(folder)
    out = tmp_path / "out"
    out.mkdir()
    save(out, config, params, None)  # an empty folder is as good as none
    (out / "spiece.model").write_text("of the old model")
    with pytest.raises(FileExistsError, match=f"^{out} must be a new or an empty folder"):
        save(out, config, params, None)
    assert (out / "spiece.model").exists()
    save(out, config.replace(dropout_rate=0.0), params, None, overwrite=True)
    assert not (out / "spiece.model").exists()
    assert load(out)[0].dropout_rate == 0.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.parametrize("other", ["notes.txt", ".git", "checkpoints"])
def test_save_never_replaces_a_model_with_files_of_somebody_else(folder, tmp_path, other):
    config, params = load(folder)
    (folder / other).mkdir()
    with pytest.raises(FileExistsError, match=f"also contains {re.escape(other)}"):
        save(folder, config, params, None, overwrite=True)
    assert (folder / other).is_dir()
    assert (folder / "model.safetensors").is_file()


def test_save_never_replaces_what_is_not_a_model(folder, tmp_path):
    config, params = load(folder)
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="must be a saved model to be overwritten"):
        save(out, config, params, None, overwrite=True)
    assert (out / "thesis.tex").read_text() == "years of work"
