"""Runs begun by version 1768e5e, before the packages, are continued with the same options.

`tests/fixtures/runs` holds what `scripts/pretrain.py` and `scripts/finetune.py` of that version
recorded; the options below are those that they were given.
"""

import json
import shutil
from pathlib import Path

import pytest

from t5jax.data.corpus import DataConfig
from t5jax.data.tasks import Task
from t5jax.models.config import ComputePolicy, T5Config
from t5jax.recipes.finetune_config import RESUMABLE as FINETUNE_RESUMABLE, FinetuneConfig
from t5jax.recipes.finetune_data import recorded_task_options
from t5jax.recipes.pretrain_config import RESUMABLE, UNRECORDED, PretrainConfig
from t5jax.tokenizers.byte import ByteTokenizer
from t5jax.training.run import RunLock, check_run_dir, claim_run_dir, recorded_options
from t5jax.training.step import StepConfig
from t5jax.training.trainer import FitConfig

RUNS = Path(__file__).parents[1] / "fixtures" / "runs"
SHARED = {"model": "model.json", "tokenizer": "bytes", "batch_size": 8, "fit": FitConfig(steps=4)}


@pytest.fixture(autouse=True)
def model_file(tmp_path, monkeypatch):
    """The file that the runs were given as their model, which set the type to compute in."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(RUNS / "pretrain" / "config.json", "model.json")


def pretrain_options(**changes):
    config = PretrainConfig(
        **SHARED,
        data=DataConfig(path="text.txt"),
        input_length=48,
        step=StepConfig(ema_decay=0.9, spike_factor=10.0),
        **changes,
    )
    return recorded_options(config, resumable=RESUMABLE)


def finetune_options(**changes):
    config = FinetuneConfig(**SHARED, input_length=24, target_length=12, use="last", **changes)
    columns = {"train": "t.tsv", "validation": "t.tsv", "input": "up: {one}", "target": "{two}"}
    options, _ = recorded_task_options([Task(name="up", metrics=("exact_match",), **columns)])
    return recorded_options(config, resumable=FINETUNE_RESUMABLE) | options


def recorded(name):
    return json.loads((RUNS / name / "run.json").read_text())["options"]


def test_old_pretraining_has_the_options_of_today():
    check_run_dir(RUNS / "pretrain", pretrain_options(), unrecorded=UNRECORDED, resumable=RESUMABLE)
    expected = recorded("pretrain") | {"dtype": "float32", "checkpoint": None}
    # Files may move since.
    assert expected.keys() - pretrain_options().keys() == {"data.path", "model"}
    assert {name: expected[name] for name in pretrain_options()} == pretrain_options()
    with pytest.raises(ValueError, match="seed = 0, got 1"):
        check_run_dir(
            RUNS / "pretrain", pretrain_options(seed=1), unrecorded=UNRECORDED, resumable=RESUMABLE
        )


def test_old_fine_tuning_has_the_options_of_today():
    check_run_dir(RUNS / "finetune", finetune_options())
    expected = recorded("finetune") | {"dtype": "float32"}
    assert expected.keys() - finetune_options().keys() == {"model"}
    assert {name: expected[name] for name in finetune_options()} == finetune_options()
    with pytest.raises(ValueError, match="pack = True, got False"):
        check_run_dir(RUNS / "finetune", finetune_options(pack=False))


def test_old_model_file_sets_the_policy_that_options_leave_open(tmp_path):
    fields = json.loads(Path("model.json").read_text())
    changed = {"dtype": "bfloat16", "remat": "dots", "attention": "plain"}
    (tmp_path / "model.json").write_text(json.dumps(fields | changed))
    policy = PretrainConfig(**SHARED).compute_policy()
    assert policy == ComputePolicy(dtype="bfloat16", remat="dots", attention="plain")
    policy = PretrainConfig(**SHARED, dtype="float32", remat="full").compute_policy()
    assert policy == ComputePolicy(dtype="float32", remat="full", attention="plain")
    policy = PretrainConfig(**SHARED, remat="none", attention="auto").compute_policy()
    assert policy == ComputePolicy(dtype="bfloat16")


def test_bad_value_in_an_old_model_file_names_the_file(tmp_path, own_checks):
    fields = json.loads(Path("model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(fields | {"remat": 5}))
    with pytest.raises(ValueError, match=r"model\.json: unknown remat 5"):
        PretrainConfig(**SHARED).compute_policy()


def test_old_run_that_crashed_before_its_config_was_written_is_continued(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(RUNS / "pretrain" / "run.json", folder)
    assert recorded("pretrain")["dtype"] == "auto"
    check_run_dir(folder, pretrain_options(), unrecorded=UNRECORDED, resumable=RESUMABLE)


def test_old_run_that_was_continued_records_the_type_that_its_config_did(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(RUNS / "pretrain", folder)
    options, model = pretrain_options(), T5Config.from_file(folder / "config.json")
    digest = json.loads((folder / "run.json").read_text())["corpus"]
    for _ in range(2):
        check_run_dir(folder, options, unrecorded=UNRECORDED, resumable=RESUMABLE)
        with RunLock(folder) as lock:
            claim_run_dir(
                folder, options, digest, model=model, tokenizer=ByteTokenizer(), lock=lock
            )
    assert json.loads((folder / "run.json").read_text())["options"]["dtype"] == "float32"
    with pytest.raises(ValueError, match="dtype = 'float32', got 'bfloat16'"):
        check_run_dir(
            folder, pretrain_options(dtype="bfloat16"), unrecorded=UNRECORDED, resumable=RESUMABLE
        )


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_old_models_have_the_architecture_that_was_recorded(name):
    model = T5Config.from_file(RUNS / name / "config.json")
    assert (model.vocab_size, model.d_model, model.dropout_rate) == (384, 16, 0.1)
