"""Indices of models in several files: what they say, and every way to be wrong."""

import json
import os
import re

import pytest

from t5jax.pretrained.hf.shards import read_shard_index

WEIGHTS = {
    "encoder.block.0.layer.0.layer_norm.weight": "model-00002-of-00002.safetensors",
    "shared.weight": "model-00001-of-00002.safetensors",
    "encoder/final_layer_norm/weight": "flax_model-00001-of-00002.msgpack",
    "lm_head.weight": "pytorch_model-00002-of-00002.bin",
}


@pytest.fixture
def index(tmp_path):
    return tmp_path / "model.safetensors.index.json"


def write(index, value):
    index.write_text(json.dumps(value), encoding="utf-8")


def error_of(index) -> str:
    with pytest.raises(ValueError, match=re.escape(str(index))) as caught:
        read_shard_index(index)
    assert type(caught.value) is ValueError
    message = str(caught.value)
    assert message.startswith(str(index))
    assert "\n" not in message
    assert len(message.replace(str(index), "")) < 400
    return message


def test_shard_files_are_those_of_the_index_beside_it_in_its_order(index):
    write(index, {"metadata": {"total_size": 12}, "weight_map": WEIGHTS})
    found = read_shard_index(index)
    assert list(found) == list(WEIGHTS)
    assert found == {tensor: index.parent / name for tensor, name in WEIGHTS.items()}


@pytest.mark.parametrize("name", ["ünïcode.bin", "with space.bin", "a..b", "...", ".hidden"])
def test_shard_files_accept_any_plain_name(index, name):
    write(index, {"weight_map": {"shared.weight": name}})
    assert read_shard_index(index) == {"shared.weight": index.parent / name}


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "/", "/etc/passwd", "../model.bin", "sub/model.bin", "./model.bin", "a/"),
        *("sub\\model.bin", "..\\model.bin", "\\model.bin", "C:model.bin", "C:\\model.bin", "a\\"),
        *("a\0b", "a\nb", "\ud800", "x/" * 10_000, None, 7, True, 1.5, ["a"], {"a": "b"}),
    ],
)
def test_shard_files_refuse_names_that_are_not_plain(index, name):
    write(index, {"weight_map": {"fine": "model.bin", "shared.weight": name}})
    assert "shared.weight must be in a file in the same folder, got " in error_of(index)


def test_shard_files_shorten_tensors_in_messages(index):
    write(index, {"weight_map": {"t\n" * 10_000: "../model.bin"}})
    assert "must be in a file in the same folder, got '../model.bin'" in error_of(index)


@pytest.mark.parametrize("value", [{}, {"weight_map": None}, {"weight_map": ["a"]}])
def test_shard_files_require_a_weight_map(index, value):
    write(index, value)
    assert "must have a 'weight_map' from tensors to files." in error_of(index)


@pytest.mark.parametrize("value", [[], "weight_map", 3, None])
def test_shard_files_require_an_object(index, value):
    write(index, value)
    assert "must be a JSON object, got " in error_of(index)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"\0" * 100, b'{"weight_map": ' + b"1" * 5000 + b"}", b"[" * 100_000],
    ids=["empty", "cut", "not-utf8", "zeros", "long-number", "nested"],
)
def test_shard_files_refuse_what_is_not_json(index, content):
    index.write_bytes(content)
    assert "must be JSON: " in error_of(index)


def test_shard_files_refuse_files_cut_anywhere(index):
    content = json.dumps({"weight_map": WEIGHTS}).encode()
    for length in range(len(content)):
        index.write_bytes(content[:length])
        assert "must be JSON: " in error_of(index)


def test_shard_files_refuse_files_too_large_for_an_index(index):
    with index.open("wb") as file:
        file.truncate((64 << 20) + 1)
    assert "must have at most 67108864 bytes" in error_of(index)


def test_shard_files_name_an_index_that_cannot_be_read(index):
    assert "must be a readable file" in error_of(index)
    index.mkdir()
    assert "must be a readable file" in error_of(index)
    index.rmdir()
    os.mkfifo(index)
    assert "must be a readable file" in error_of(index)
    long = index.with_name("x" * 300)
    assert "must be a readable file (File name too long)" in error_of(long)
