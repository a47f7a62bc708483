"""Tokenizers come back from the folders that they were saved to, here and in transformers."""

import pickle

import pytest
from helpers.vocabularies import GENUINE, LINES, MULTILINGUAL

from t5jax.tokenizers.base import Tokenizer
from t5jax.tokenizers.byte import ByteTokenizer
from t5jax.tokenizers.load import load_tokenizer


def test_genuine_folder_loads_with_the_extra_ids_of_its_config(genuine):
    loaded = load_tokenizer(GENUINE)
    assert loaded is not None
    assert loaded.vocab_size == 32100
    assert loaded.fingerprint == genuine.fingerprint


@pytest.mark.parametrize("kind", ["tiny", "bytes"])
def test_tokenizers_survive_pickling_and_fit_the_protocol(kind, tiny):
    tok = {"tiny": tiny, "bytes": ByteTokenizer()}[kind]
    copy = pickle.loads(pickle.dumps(tok))
    text = "fox <extra_id_3> über 🙂"
    assert copy.encode(text) == tok.encode(text)
    assert copy.decode(copy.encode(text)) == tok.decode(tok.encode(text))
    for attribute in ("vocab_size", "pad_id", "eos_id", "unk_id", "num_sentinels", "fingerprint"):
        assert getattr(copy, attribute) == getattr(tok, attribute)
    assert isinstance(copy, Tokenizer)


def test_save_writes_the_model_unchanged_and_load_reads_it(tiny, tmp_path):
    folder = tmp_path / "new" / "folder"
    tiny.save(folder)
    assert (folder / "spiece.model").read_bytes() == tiny.model
    loaded = load_tokenizer(folder)
    assert loaded is not None
    assert loaded.encode("fox <extra_id_19> dog") == tiny.encode("fox <extra_id_19> dog")
    assert loaded.fingerprint == tiny.fingerprint


@pytest.mark.parametrize("name", ["spiece.model", "sentencepiece.model", "tokenizer.model"])
def test_load_finds_a_model_by_any_of_its_names(tiny, tmp_path, name):
    (tmp_path / name).write_bytes(tiny.model)
    loaded = load_tokenizer(tmp_path)
    assert loaded is not None
    assert loaded.vocab_size == 70 + 100


def test_load_goes_by_the_tokenizer_config_not_by_the_model_config(tmp_path):
    (tmp_path / "config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    assert load_tokenizer(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    assert isinstance(load_tokenizer(tmp_path), ByteTokenizer)


def test_load_returns_none_where_there_is_nothing_to_read(tmp_path):
    assert load_tokenizer(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    assert load_tokenizer(tmp_path) is None


@pytest.mark.parametrize("content", ["{", "", "[1, 2]", "null", "\udcff"])
def test_load_names_a_config_that_is_not_a_json_object(tmp_path, content):
    path = tmp_path / "tokenizer_config.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"tokenizer_config\.json(:| must be)"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("count", ['"many"', "-1", "null", "[]"])
def test_load_refuses_extra_ids_that_are_no_count(tiny, tmp_path, count):
    tiny.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(f'{{"extra_ids": {count}}}')
    with pytest.raises(ValueError, match=f"{tmp_path}.* must be"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tiny", "genuine", "bytes"])
def test_saved_folder_gives_equal_ids_in_transformers(name, request, tmp_path):
    transformers = pytest.importorskip("transformers")
    tok = ByteTokenizer() if name == "bytes" else request.getfixturevalue(name)
    tok.save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    other = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(other).__name__ == ("ByT5Tokenizer" if name == "bytes" else "T5Tokenizer")
    for line in [*LINES, *MULTILINGUAL]:
        assert other(line).input_ids == [*tok.encode(line), tok.eos_id]
    if name != "bytes":
        last = tok.num_sentinels - 1
        assert len(other) == tok.vocab_size
        assert other.convert_tokens_to_ids("<extra_id_0>") == tok.sentinel_id(0)
        assert other.convert_tokens_to_ids(f"<extra_id_{last}>") == tok.sentinel_id(last)
