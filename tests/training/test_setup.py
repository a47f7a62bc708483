"""Tokenizers and models by name; what a whole run makes of them is in test_pretrain.py."""

import pytest
from helpers.small_runs import TINY

from t5jax.data.objectives.span_corruption import SpanCorruption
from t5jax.tokenizers.byte import ByteTokenizer
from t5jax.training.setup import check_files, check_sentinels, setup_model, setup_tokenizer

BYTES = ByteTokenizer()


def make_tokenizer(folder, source):
    return setup_tokenizer(
        folder, lambda: pytest.fail("read"), source=source, vocab_size=26, say=pytest.fail
    )


def test_tokenizer_of_the_run_goes_before_the_one_asked_for(tmp_path):
    BYTES.save(tmp_path / "run")
    found = make_tokenizer(tmp_path / "run", str(tmp_path / "absent"))
    assert found.fingerprint == BYTES.fingerprint


def test_tokenizer_of_bytes_needs_no_files(tmp_path):
    found = make_tokenizer(tmp_path / "run", "bytes")
    assert found.fingerprint == BYTES.fingerprint
    check_files("tiny", "bytes")


def test_tokenizer_must_have_a_sentinel_for_each_span():
    check_sentinels(BYTES, corruption=SpanCorruption(), input_length=48)
    with pytest.raises(ValueError, match="must hide at most 125 spans"):
        check_sentinels(BYTES, corruption=SpanCorruption(), input_length=3000)


def test_model_has_the_ids_of_the_tokenizer_and_the_changes():
    found = setup_model("tiny", BYTES, dtype="bfloat16", changes={"dropout_rate": 0.3})
    assert (found.vocab_size, found.pad_id, found.eos_id) == (384, 0, 1)
    assert (found.dtype, found.dropout_rate) == ("bfloat16", 0.3)
    assert setup_model("t5-small", BYTES, dtype="float32", changes={}).d_model == 512


def test_model_of_a_file_keeps_its_dtype_unless_told(tmp_path):
    path = tmp_path / "model.json"
    path.write_text(TINY.replace(dtype="bfloat16").to_json())
    assert setup_model(str(path), BYTES, dtype="auto", changes={}).dtype == "bfloat16"
    assert setup_model(str(path), BYTES, dtype="float32", changes={}).dtype == "float32"


def test_check_files_names_what_is_missing(tmp_path):
    check_files("tiny", None)
    with pytest.raises(FileNotFoundError, match=r"no\.json, which does not exist"):
        check_files(str(tmp_path / "no.json"), None)
    with pytest.raises(FileNotFoundError, match=r"must hold spiece\.model"):
        check_files("tiny", str(tmp_path))
