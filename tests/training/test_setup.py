"""Tokenizers and models by name; what a whole run makes of them is in test_pretrain.py."""

import pytest

from t5jax.models.config import T5Config
from t5jax.recipes.pretrain_config import PretrainConfig
from t5jax.tokenizers.byte import ByteTokenizer
from t5jax.training import setup
from t5jax.training.setup import check_files, setup_model, setup_tokenizer

BYTES = ByteTokenizer()


def make_tokenizer(folder, source):
    config = PretrainConfig(output=str(folder), tokenizer=source)
    return setup_tokenizer(config, lambda: pytest.fail("read"))


def make_model(**options):
    return setup_model(PretrainConfig(**options), BYTES)


def test_tokenizer_of_the_run_goes_before_the_one_asked_for(tmp_path):
    BYTES.save(tmp_path / "run")
    tokenizer = make_tokenizer(tmp_path / "run", str(tmp_path / "absent"))
    assert tokenizer.fingerprint == BYTES.fingerprint


def test_tokenizer_of_bytes_needs_no_files(tmp_path):
    tokenizer = make_tokenizer(tmp_path / "run", "bytes")
    assert tokenizer.fingerprint == BYTES.fingerprint
    check_files("tiny", "bytes")


def test_tokenizer_must_have_a_padding_id_and_the_remedy_is_in_the_wheel(tmp_path, monkeypatch):
    class NoPad:
        pad_id = unk_id = 2

    monkeypatch.setattr(setup, "load_tokenizer", lambda folder: NoPad())
    with pytest.raises(ValueError, match=r"got 2 for padding.*t5jax\.tokenizers\.train_tokenizer"):
        make_tokenizer(tmp_path, None)


def test_model_has_the_ids_of_the_tokenizer_and_the_changes():
    model = make_model(dropout_rate=0.3)
    assert (model.vocab_size, model.pad_id, model.eos_id) == (384, 0, 1)
    assert model.dropout_rate == 0.3
    assert make_model(model="t5-small").d_model == 512


def test_options_override_the_architecture():
    config = PretrainConfig(dropout_rate=0.3)
    model = setup_model(config, BYTES, architecture={"d_model": 8, "dropout_rate": 0.1})
    assert (model.d_model, model.dropout_rate) == (8, 0.3)


def test_check_files_names_what_is_missing(tmp_path):
    check_files("tiny", None)
    with pytest.raises(FileNotFoundError, match=r"no\.json, which does not exist"):
        check_files(str(tmp_path / "no.json"), None)
    with pytest.raises(FileNotFoundError, match=r"must hold spiece\.model"):
        check_files("tiny", str(tmp_path))
    (tmp_path / "bert.json").write_text(
        T5Config.preset("t5-small").replace(family="bert").to_json()
    )
    with pytest.raises(ValueError, match=r"bert\.json: unknown family 'bert'; use one of t5"):
        check_files(str(tmp_path / "bert.json"), None)
