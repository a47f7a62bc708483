"""Options that all runs share, and folders; whole runs are in tests/recipes."""

import json
import re

import numpy as np
import pytest
import tyro

from t5jax.models.config import ComputePolicy, T5Config
from t5jax.recipes.finetune_config import FinetuneConfig
from t5jax.recipes.pretrain_config import PretrainConfig
from t5jax.tokenizers.byte import ByteTokenizer
from t5jax.tokenizers.load import load_tokenizer
from t5jax.training.run import RunLock, check_run_dir, claim_run_dir, corpus_digest

MODEL = T5Config(
    vocab_size=384, d_model=8, d_ff=8, num_heads=1, num_encoder_layers=1, num_decoder_layers=1
)


@pytest.mark.parametrize("config", [PretrainConfig, FinetuneConfig])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "t5-v1_1-bass"}, "did you mean 't5-v1_1-base'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"output": "gs://bucket/run"}, "must be a folder of this machine, got gs://bucket/run"),
        ({"dropout_rate": 0.1, "dropout_steps": 0}, "dropout_steps must be at least 1, got 0"),
        ({"dropout_steps": 9}, "dropout_rate must be above 0 for dropout_steps=9, got None"),
        ({"seed": -1}, "seed must be in"),
        ({"seed": 2**31}, "seed must be in"),
        (
            {"tokenizer": "bytes", "vocab_size": 9},
            "vocab_size must be left out with a tokenizer, got 9",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_model_changes_are_the_fields_of_the_model_that_were_given():
    assert PretrainConfig().model_changes == {}
    assert PretrainConfig(dropout_rate=0.0).model_changes == {"dropout_rate": 0.0}


def test_compute_policy_is_that_of_the_options():
    assert PretrainConfig().compute_policy() == ComputePolicy()  # on a CPU
    config = PretrainConfig(dtype="bfloat16", remat="dots", attention="blockwise")
    policy = ComputePolicy(dtype="bfloat16", remat="dots", attention="blockwise")
    assert config.compute_policy() == policy


@pytest.mark.parametrize(
    ("config", "inherited", "own"),
    [
        (PretrainConfig, "The vocabulary size is the tokenizer's", "T5 used 512"),
        (FinetuneConfig, "processes of a multi-process run", "checkpoint 'tiny', a published size"),
    ],
)
def test_help_has_the_words_of_the_options_that_are_shared(config, inherited, own, capsys):
    with pytest.raises(SystemExit):
        tyro.cli(config, args=["--help"])
    words = " ".join(re.sub(r"[^\w ',.-]", " ", capsys.readouterr().out).split())
    for text in (inherited, own):
        assert text in words


def claim(folder, *, options=None, text="abc", model=MODEL) -> None:
    with RunLock(folder) as lock:
        claim_run_dir(
            folder,
            options or {"seed": 0},
            text,
            model=model,
            tokenizer=ByteTokenizer(),
            lock=lock,
        )


def test_claim_writes_what_check_then_accepts(tmp_path):
    claim(tmp_path / "run")
    check_run_dir(tmp_path / "run", {"seed": 0})
    claim(tmp_path / "run")
    assert T5Config.from_file(tmp_path / "run" / "config.json") == MODEL
    assert isinstance(load_tokenizer(tmp_path / "run"), ByteTokenizer)


@pytest.mark.parametrize("options", [{"seed": 1}, {}, {"seed": 0, "more": 2}])
def test_check_refuses_any_other_option(tmp_path, options):
    claim(tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds a run with (seed|more) = "):
        check_run_dir(tmp_path / "run", options)


def test_check_knows_what_runs_did_before_an_option_came(tmp_path):
    claim(tmp_path / "run")
    check_run_dir(tmp_path / "run", {"seed": 0, "more": 2}, unrecorded={"more": 2})
    with pytest.raises(ValueError, match="more = 2, got 3"):
        check_run_dir(tmp_path / "run", {"seed": 0, "more": 3}, unrecorded={"more": 2})
    claim(tmp_path / "later", options={"seed": 0, "more": 3})
    check_run_dir(tmp_path / "later", {"seed": 0, "more": 3}, unrecorded={"more": 2})


def test_check_ignores_what_may_change(tmp_path):
    claim(tmp_path / "run", options={"seed": 0, "data.path": "a.txt"})  # as older runs recorded it
    check_run_dir(tmp_path / "run", {"seed": 0}, resumable=["data.path"])


def test_lock_is_for_one_process_at_a_time(tmp_path):
    folder = tmp_path / "run"
    with RunLock(folder) as lock:
        folder.mkdir()
        lock.acquire()
        lock.acquire()
        check_run_dir(folder, {"seed": 0})  # the lock alone makes no run
        with RunLock(folder) as other, pytest.raises(FileExistsError, match="another process"):
            other.acquire()
        (folder / "run.json").write_text("{}")
        with pytest.raises(FileExistsError, match=r"output must not be in use, got .*run"):
            RunLock(folder).__enter__()
    with RunLock(folder) as again:
        again.acquire()


def test_check_refuses_a_file_and_a_record_that_is_none(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="new or empty folder"):
        check_run_dir(tmp_path / "file", {})
    (tmp_path / "run.json").write_text(json.dumps(["not", "a", "run"]))
    with pytest.raises(ValueError, match=r"run\.json is not the record of a run"):
        check_run_dir(tmp_path, {})


def test_claim_refuses_other_text_and_other_models(tmp_path):
    claim(tmp_path / "run")
    with pytest.raises(ValueError, match="a run on other data"):
        claim(tmp_path / "run", text="abd")
    with pytest.raises(ValueError, match="d_ff = 8, got 9"):
        claim(tmp_path / "run", model=MODEL.replace(d_ff=9))


def test_digest_differs_with_length_and_content():
    chunks = [np.arange(4) + i for i in range(200)]
    digest = corpus_digest(chunks)
    assert digest == corpus_digest(list(chunks))
    assert digest != corpus_digest(chunks[:-1])
    assert digest != corpus_digest(chunks[::-1])
