"""`t5jax.load`: a model with its tokenizer, in the type and on the devices asked for."""

import json

import jax
import numpy as np
import pytest
from helpers import hf_folders

import t5jax
from t5jax.parallel.mesh import MeshConfig, make_mesh
from t5jax.tokenizers.sentencepiece import train_tokenizer


@pytest.fixture(scope="module")
def vocabulary():
    return train_tokenizer(["a folder in a folder"], vocab_size=14, num_sentinels=7)


@pytest.fixture
def theirs(tmp_path, vocabulary):
    tensors = hf_folders.random_tensors(hf_folders.CONFIG)
    path = hf_folders.write(tmp_path / "theirs", hf_folders.CONFIG, tensors)
    vocabulary.save(path)
    return path


def test_t5jax_load_returns_model_and_tokenizer(theirs, vocabulary):
    t5 = t5jax.load(theirs)
    assert t5.tokenizer is not None
    assert t5.tokenizer.fingerprint == vocabulary.fingerprint
    assert t5.policy.dtype == "float32"  # on a CPU
    assert (t5.model.config, t5.model.policy) == (t5.config, t5.policy)


def test_t5jax_load_computes_in_the_type_asked_for(theirs):
    t5 = t5jax.load(theirs, dtype="bfloat16")
    assert t5.policy.dtype == "bfloat16"
    assert {leaf.dtype.name for leaf in jax.tree.leaves(t5.params)} == {"bfloat16"}
    states, _ = t5.encode(["a folder"])
    exact, _ = t5jax.load(theirs, dtype="float32").encode(["a folder"])
    assert not np.array_equal(states, exact)
    # Eight bits of mantissa, through two layers.
    assert np.abs(states - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("dtype", ["float16", "fp32", ""])
def test_t5jax_load_refuses_an_unknown_type_before_it_reads_anything(tmp_path, dtype):
    with pytest.raises(ValueError, match=f"dtype must be 'auto', .* got '{dtype}'"):
        t5jax.load(tmp_path / "nowhere", dtype=dtype)


def test_t5jax_load_takes_another_tokenizer(theirs):
    other = train_tokenizer(["else or other"], vocab_size=12, num_sentinels=3)
    t5 = t5jax.load(theirs, tokenizer=other)
    assert t5.tokenizer is other


def test_t5jax_load_refuses_a_tokenizer_that_does_not_fit(theirs):
    config = json.loads((theirs / "tokenizer_config.json").read_text())
    (theirs / "tokenizer_config.json").write_text(json.dumps(config | {"extra_ids": 100}))
    with pytest.raises(ValueError, match="at most vocab_size = 97 ids, got 114"):
        t5jax.load(theirs)


def test_t5jax_load_leaves_the_decoder_where_it_is(theirs):
    whole, encoder = t5jax.load(theirs), t5jax.load(theirs, encoder_only=True)
    assert encoder.config.num_decoder_layers == 0
    assert set(encoder.params) == {"token_embedder", "encoder"}
    texts = ["a folder", "in"]
    np.testing.assert_array_equal(encoder.encode(texts)[0], whole.encode(texts)[0])
    np.testing.assert_array_equal(encoder.embed(texts), whole.embed(texts))
    with pytest.raises(ValueError, match="must have a decoder to score or generate"):
        encoder.generate(texts)


def test_t5jax_load_divides_parameters_over_a_mesh(tmp_path):
    config = {**hf_folders.CONFIG, "d_kv": 4, "num_heads": 4, "vocab_size": 96}
    path = hf_folders.write(tmp_path / "m", config, hf_folders.random_tensors(config))
    alone = t5jax.load(path)
    divided = t5jax.load(path, mesh=make_mesh(MeshConfig(fsdp=4, tensor=2)))
    table = divided.params["token_embedder"]["embedding"]
    assert {shard.data.shape for shard in table.addressable_shards} == {(48, 4)}
    tokens = np.random.default_rng(0).integers(3, 96, (4, 9)).astype(np.int32)
    options = {"encoder_mask": tokens != 0, "max_new_tokens": 12}
    np.testing.assert_array_equal(
        divided.generate_ids(tokens, **options), alone.generate_ids(tokens, **options)
    )


def test_export_hf_writes_what_load_reads(theirs, tmp_path):
    t5 = t5jax.load(theirs)
    t5jax.export_hf(t5, tmp_path / "out")
    again = t5jax.load(tmp_path / "out")
    assert again.config == t5.config
    assert again.tokenizer.fingerprint == t5.tokenizer.fingerprint
    jax.tree.map(np.testing.assert_array_equal, again.params, t5.params)
