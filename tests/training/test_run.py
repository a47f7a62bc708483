"""Options that all runs share; what runs do is in test_pretrain.py and test_finetuning.py."""

import re

import pytest
import tyro

from t5jax.recipes.finetune_config import FinetuneConfig
from t5jax.recipes.pretrain import PretrainConfig


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
    changes = PretrainConfig(dropout_rate=0.0, remat="dots").model_changes
    assert changes == {"dropout_rate": 0.0, "remat": "dots"}


@pytest.mark.parametrize(
    ("config", "inherited", "own"),
    [
        (PretrainConfig, "But for a JSON file, the vocabulary size", "Tokens the encoder reads"),
        (FinetuneConfig, "The processes that train together", "Architecture without a checkpoint"),
    ],
)
def test_help_has_the_words_of_the_options_that_are_shared(config, inherited, own, capsys):
    with pytest.raises(SystemExit):
        tyro.cli(config, args=["--help"])
    words = " ".join(re.sub(r"[^\w ',.-]", " ", capsys.readouterr().out).split())
    for text in (inherited, own):
        assert text in words
