"""JSON of strangers: a sentence for whatever is no JSON, and no more memory than configs need."""

import os
import re

import pytest

from t5jax.fileio import MAX_JSON_BYTES, read_json, read_json_object, write_json


def error_of(path, read=read_json) -> str:
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        read(path)
    assert type(caught.value) is ValueError
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("value", [{}, {"a": [1, None, "é"]}, [1], 3, None, "x"])
def test_read_returns_what_was_written(tmp_path, value):
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"1" * 5000, b"nan?"])
def test_read_refuses_what_is_no_json(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert "must be JSON" in error_of(path)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"x"'])
def test_read_object_refuses_other_values(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    assert "must be a JSON object, got" in error_of(path, read_json_object)


def test_read_refuses_a_file_too_large_for_a_config(tmp_path):
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    assert "it is another kind of file" in error_of(path)


def test_read_does_not_wait_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "must be a readable file" in error_of(tmp_path / "pipe")
    assert "must be a readable file" in error_of(tmp_path)
    assert "must be a readable file" in error_of(tmp_path / "absent")
