"""Options of fine-tuning, alone; what they do is in test_finetuning.py."""

import dataclasses

import pytest

from t5jax.recipes.finetune_config import RESUMABLE, FinetuneConfig
from t5jax.training.trainer import FitConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_length": 0}, "target_length must be at least 1, got 0"),
        ({"eval_examples": 0}, "eval_examples must be at least 1, got 0"),
        ({"average": 0}, "average must be at least 1, got 0"),
        ({"checkpoint": "x", "model": "t5-small"}, "model must be left out with a checkpoint"),
        ({"vocab_size": 100, "checkpoint": "x"}, "vocab_size must be left out with a checkpoint"),
        ({"length_penalty": 101.0}, "length_penalty must be .*, got 101"),
        ({"length_penalty": 101.0, "final_num_beams": 1, "num_beams": 2}, "length_penalty must be"),
    ],
)
def test_config_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        FinetuneConfig(**changes)


def test_config_keeps_what_the_result_is_made_of():
    fit = FitConfig(steps=9, keep_best=3)
    assert FinetuneConfig(fit=fit, average=5).keep_best == 5
    assert FinetuneConfig(fit=fit, average=2).keep_best == 3
    last = FinetuneConfig(fit=fit, average=5, use="last")
    assert last.keep_best == 3
    assert last.keep_round == (5, fit.checkpoint_every)
    assert FinetuneConfig(fit=fit, average=5).keep_round is None


def test_defaults_are_the_recipe_of_t5():
    config = FinetuneConfig()
    assert config.optimizer.name == "adafactor"
    assert config.optimizer.schedule.name == "constant"
    assert config.optimizer.schedule.peak == 1e-3


def test_free_options_are_fields():
    fields = {field.name for field in dataclasses.fields(FinetuneConfig)}
    assert set(RESUMABLE) - {"tasks"} <= fields  # `tasks` is an option of scripts/finetune.py
