"""A run from text to model; killed, stopped, damaged, it ends where an undisturbed run ends."""

import dataclasses
import functools
import io
import json
import logging
import shutil
from pathlib import Path

import datasets
import jax
import numpy as np
import pytest
from helpers.small_runs import TINY, training_losses, write_inputs

import t5jax
from t5jax.checkpoint.manager import load_checkpoint_tree
from t5jax.data.corpus import DataConfig
from t5jax.models.t5 import abstract_params
from t5jax.optim.optimizer import OptimizerConfig
from t5jax.optim.schedules import ScheduleConfig
from t5jax.parallel.mesh import MeshConfig, make_mesh
from t5jax.recipes.pretrain import pretrain
from t5jax.recipes.pretrain_config import PretrainConfig
from t5jax.tokenizers import train_tokenizer
from t5jax.training import setup
from t5jax.training.run import recorded_options
from t5jax.training.step import StepConfig
from t5jax.training.trainer import FitConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, str]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory) -> tuple[PretrainConfig, t5jax.Text2Text, str]:
    """A complete run: its config, its model, and what it logged."""
    config = make_config(inputs, tmp_path_factory.mktemp("runs") / "run")
    shown = io.StringIO()
    logger, handler = logging.getLogger("t5jax"), logging.StreamHandler(shown)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    result = pretrain(config)
    logger.removeHandler(handler)
    assert set(result.evaluation) == {"loss", "accuracy"}
    return config, result.t5, shown.getvalue()


def make_config(inputs: dict[str, str], folder: Path, **changes) -> PretrainConfig:
    options = {
        "output": str(folder),
        "model": inputs["model"],
        "tokenizer": inputs["tokenizer"],
        "data": DataConfig(path=inputs["text"]),
        "input_length": 48,
        "batch_size": 8,
        "eval_examples": 16,
        "fit": FitConfig(steps=6, eval_every=3, checkpoint_every=2, log_every=1),
    }
    return PretrainConfig(**{**options, **changes})


def test_run_ends_in_a_model_that_loads_and_generates(finished):
    config, t5, shown = finished
    folder = Path(config.output)
    assert "held-out loss" in shown
    count = sum(x.size for x in jax.tree.leaves(t5.params))
    assert f"model: {count / 1e6:.2f} M parameters, " in shown
    assert f"vocabulary {TINY.vocab_size}, float32, on cpu (data=8 x " in shown
    assert sorted(training_losses(folder)) == [1, 2, 3, 4, 5, 6]
    loaded = t5jax.load(folder)
    text = ["The red <extra_id_0> sleeps today."]
    assert loaded.generate(text, max_new_tokens=9) == t5.generate(text, max_new_tokens=9)
    assert loaded.config == t5.config
    for name in ("loss.png", "metrics.jsonl", "tensorboard", "run.json", "config.json"):
        assert (folder / name).exists()


@pytest.mark.slow
def test_run_learns_more_than_token_frequencies(inputs, tmp_path, caplog):
    """A vocabulary of ten words: bytes inside a word are nearly certain, their frequencies not."""
    config = make_config(
        inputs,
        tmp_path / "run",
        fit=FitConfig(steps=150, eval_every=150, checkpoint_every=150),
        optimizer=OptimizerConfig(
            name="adamw",
            schedule=ScheduleConfig(name="cosine", learning_rate=0.05, warmup_steps=10),
        ),
    )
    pretrain(config)
    line = next(x for x in caplog.messages if x.startswith("held-out loss"))
    heldout, uniform, unigram = (
        float(line.split(before)[1].split()[0].rstrip(",)"))
        for before in ("held-out loss ", "uniform baseline ", "unigram baseline ")
    )
    assert uniform == pytest.approx(np.log(384), abs=1e-3)
    assert heldout < unigram - 0.3 < uniform


@pytest.mark.slow
def test_run_trains_a_vocabulary_without_a_tokenizer(inputs, tmp_path):
    config = make_config(inputs, tmp_path / "run", tokenizer=None, vocab_size=26, model="tiny")
    small = {**setup.TINY, "d_model": 8, "d_ff": 8, "num_encoder_layers": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "TINY", small)
        t5 = pretrain(dataclasses.replace(config, fit=FitConfig(steps=1))).t5
    assert t5.tokenizer.vocab_size == 126
    assert t5.config.vocab_size == 128
    assert (tmp_path / "run" / "spiece.model").exists()


def test_run_of_a_complete_run_only_shows_it_again(finished, caplog):
    config, _, shown = finished
    before = (Path(config.output) / "metrics.jsonl").read_text()
    pretrain(config)
    assert any("continuing at step 6 of 6" in message for message in caplog.messages)
    assert caplog.messages[-1] == shown.splitlines()[-1]
    assert caplog.messages[-1].startswith("held-out loss")
    assert (Path(config.output) / "metrics.jsonl").read_text() == before


def test_run_can_be_made_longer_where_the_schedule_allows(finished, tmp_path):
    config, _, _ = finished
    output = tmp_path / "run"
    shutil.copytree(config.output, output)
    longer = dataclasses.replace(config, output=str(output), fit=FitConfig(steps=8))
    pretrain(longer)
    assert sorted(training_losses(output)) == list(range(1, 9))
    options = json.loads((output / "run.json").read_text())["options"]
    fixed = dataclasses.replace(
        longer,
        optimizer=OptimizerConfig(
            name="adamw",
            schedule=ScheduleConfig(name="cosine", learning_rate=0.01, warmup_steps=1),
        ),
    )
    assert "fit.steps" not in options
    assert recorded_options(fixed, resumable=())["fit.steps"] == 8


@pytest.mark.slow
def test_run_that_averages_is_continued_and_loaded_as_its_average(inputs, tmp_path):
    step = StepConfig(ema_decay=0.5, spike_factor=50.0, frozen=("token_embedder",), accumulate=2)
    config = make_config(
        inputs, tmp_path / "run", step=step, batch_size=16, fit=FitConfig(steps=3, log_every=1)
    )
    pretrain(config)
    longer = dataclasses.replace(config, fit=FitConfig(steps=6, log_every=1))
    t5 = pretrain(longer).t5
    whole = pretrain(dataclasses.replace(longer, output=str(tmp_path / "whole"))).t5
    loaded = t5jax.load(tmp_path / "run")
    for params in (whole.params, loaded.params):
        jax.tree.map(np.testing.assert_array_equal, params, t5.params)
    plain = load_checkpoint_tree(
        tmp_path / "run" / "checkpoints" / "6", "params", abstract_params(loaded.config)
    )
    wi = [p["encoder"]["layers"]["mlp"]["wi"] for p in (plain, loaded.params)]
    assert not np.array_equal(*wi)
    tables = [p["token_embedder"]["embedding"] for p in (plain, loaded.params)]
    np.testing.assert_array_equal(*tables)


def test_run_begun_before_targets_could_be_smoothed_is_continued_without(finished, tmp_path):
    config, _, _ = finished
    output = tmp_path / "run"
    shutil.copytree(config.output, output)
    record = json.loads((output / "run.json").read_text())
    assert record["options"].pop("step.label_smoothing") == 0
    assert record["options"].pop("optimizer.momentum") == 0.95
    (output / "run.json").write_text(json.dumps(record))
    old = dataclasses.replace(config, output=str(output))
    with pytest.raises(ValueError, match=r"step\.label_smoothing = 0\.0, got 0\.1"):
        pretrain(dataclasses.replace(old, step=StepConfig(label_smoothing=0.1)))
    pretrain(old)


def test_run_refuses_the_folder_of_another_run(finished, tmp_path):
    config, _, _ = finished
    with pytest.raises(ValueError, match="seed = 0, got 1"):
        pretrain(dataclasses.replace(config, seed=1))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(FileExistsError, match="holds something else; choose another --output"):
        pretrain(dataclasses.replace(config, output=str(tmp_path / "photos")))
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.png"]


def test_run_refuses_a_corpus_that_changed_since(finished, tmp_path):
    config, _, _ = finished
    output, text = tmp_path / "run", tmp_path / "text.txt"
    shutil.copytree(config.output, output)
    text.write_text(Path(config.data.path).read_text() + "\nOne more line of text.")
    changed = dataclasses.replace(config, output=str(output), data=DataConfig(path=str(text)))
    with pytest.raises(ValueError, match="holds a run on other data"):
        pretrain(changed)


def test_run_continues_with_the_same_files_under_other_names(finished, tmp_path):
    config, t5, _ = finished
    output, text, model = tmp_path / "run", tmp_path / "moved.txt", tmp_path / "moved.json"
    shutil.copytree(config.output, output)
    shutil.copy(config.data.path, text)
    shutil.copy(config.model, model)
    moved = dataclasses.replace(
        config, output=str(output), data=DataConfig(path=str(text)), model=str(model)
    )
    result = pretrain(dataclasses.replace(moved, fit=FitConfig(steps=8, eval_every=8)))
    assert sorted(training_losses(output)) == list(range(1, 9))
    assert jax.tree.map(np.shape, result.t5.params) == jax.tree.map(np.shape, t5.params)


def test_run_begins_with_a_checkpoint(finished, inputs, tmp_path, caplog):
    config, t5, _ = finished
    changes = {"model": "tiny", "tokenizer": None, "checkpoint": str(config.output)}
    more = make_config(inputs, tmp_path / "more", **changes)
    step = dataclasses.replace(
        more, fit=FitConfig(steps=1, eval_every=1), output=str(tmp_path / "1")
    )
    no_change = OptimizerConfig(
        name="adafactor",
        schedule=ScheduleConfig(name="constant", learning_rate=1e-30, warmup_steps=0),
    )
    result = pretrain(dataclasses.replace(step, optimizer=no_change))
    assert result.t5.config == t5.config
    assert type(result.t5.tokenizer) is type(t5.tokenizer)
    jax.tree.map(np.testing.assert_array_equal, result.t5.params, t5.params)
    assert json.loads((tmp_path / "1" / "run.json").read_text())["options"]["checkpoint"]
    with pytest.raises(ValueError, match=r"checkpoint = .*, got None"):
        pretrain(make_config(inputs, tmp_path / "1"))


def test_run_refuses_another_tokenizer_than_the_checkpoint_s_or_its_own(finished, inputs, tmp_path):
    config, _, _ = finished
    other = tmp_path / "other"
    train_tokenizer(Path(config.data.path).read_text().splitlines(), vocab_size=27).save(other)
    changes = {"model": "tiny", "tokenizer": str(other), "checkpoint": str(config.output)}
    more = make_config(inputs, tmp_path / "more", **changes)
    with pytest.raises(ValueError, match=rf"must be that of {config.output}, bytes, got .* ids"):
        pretrain(more)
    assert not (tmp_path / "more").exists()
    allowed = dataclasses.replace(more, allow_other_tokenizer=True, fit=FitConfig(steps=1))
    pretrain(allowed)


def test_config_refuses_a_model_beside_a_checkpoint():
    with pytest.raises(ValueError, match="model must be left out with a checkpoint, got t5-small"):
        PretrainConfig(checkpoint="runs/words", model="t5-small")
    with pytest.raises(ValueError, match="vocab_size must be left out with a checkpoint, got 500"):
        PretrainConfig(checkpoint="runs/words", vocab_size=500)


def test_config_refuses_what_leaves_nothing_to_hide_or_to_evaluate_on():
    with pytest.raises(ValueError, match="input_length must be at least"):
        PretrainConfig(input_length=1)
    with pytest.raises(ValueError, match="eval_examples must be at least 1, got 0"):
        PretrainConfig(eval_examples=0)


def test_run_says_which_inputs_are_missing_or_do_not_fit(inputs, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer must be a folder.*does not exist"):
        pretrain(make_config(inputs, tmp_path / "a", tokenizer=str(tmp_path / "absent")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"must hold spiece\.model"):
        pretrain(make_config(inputs, tmp_path / "b", tokenizer=str(tmp_path / "empty")))
    narrow = tmp_path / "narrow.json"
    narrow.write_text(TINY.replace(vocab_size=200).to_json())
    with pytest.raises(ValueError, match="at least the tokenizer's 259, got 200; 384 fits"):
        pretrain(make_config(inputs, tmp_path / "c", model=str(narrow)))
    with pytest.raises(ValueError, match="the held-out text must have at least one chunk of"):
        pretrain(make_config(inputs, tmp_path / "d", input_length=2000))
    with pytest.raises(ValueError, match="multiple of data x fsdp = 8, got 6"):
        pretrain(make_config(inputs, tmp_path / "e", batch_size=6))
    with pytest.raises(FileNotFoundError, match=r"absent\.json, which does not exist"):
        pretrain(make_config(inputs, tmp_path / "f", model=str(tmp_path / "absent.json")))


def test_run_refuses_a_model_file_that_changed_since(finished, tmp_path):
    config, _, _ = finished
    output, model = tmp_path / "run", tmp_path / "model.json"
    shutil.copytree(config.output, output)
    model.write_text(TINY.replace(d_ff=40).to_json())
    changed = dataclasses.replace(config, output=str(output), model=str(model))
    with pytest.raises(ValueError, match="d_ff = 32, got 40"):
        pretrain(changed)
    assert [p.name for p in (output / "checkpoints").glob("*damaged*")] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": DataConfig(path="absent.txt")}, "does not exist"),
        ({"input_length": 3000}, "must have at most 125 spans"),
        ({"fit": FitConfig(steps=5), "optimizer": "short cosine"}, "more than warmup_steps=9"),
        ({"mesh": MeshConfig(data=2, tensor=4)}, "must divide num_heads = 2"),
        ({"mesh": MeshConfig(data=1, sequence=8)}, "= 8 must divide the length of targets, 12"),
    ],
)
def test_run_leaves_no_folder_behind_when_options_are_wrong(inputs, tmp_path, changes, message):
    if "optimizer" in changes:
        cosine = ScheduleConfig(name="cosine", learning_rate=0.1, warmup_steps=9)
        changes = {**changes, "optimizer": OptimizerConfig(name="adamw", schedule=cosine)}
    with pytest.raises((ValueError, OSError), match=message):
        pretrain(make_config(inputs, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_run_begins_again_where_a_crash_left_half_a_file(inputs, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.json.writing").write_text('{"opti')
    pretrain(make_config(inputs, tmp_path / "run", fit=FitConfig(steps=1)))
    assert sorted(training_losses(tmp_path / "run")) == [1]


def test_run_file_holds_what_the_numbers_depend_on(finished, inputs):
    config, _, _ = finished
    options = json.loads((Path(config.output) / "run.json").read_text())["options"]
    assert options["seed"] == 0
    assert options["data.column"] == "text"
    assert "data.path" not in options  # the text is recorded by its digest
    assert not {"output", "mesh.data", "fit.log_every"} & set(options)


@pytest.mark.slow
def test_run_continues_on_other_meshes(inputs, tmp_path, monkeypatch):
    model = tmp_path / "model.json"
    model.write_text(TINY.replace(num_heads=4).to_json())

    def train_on(folder: Path, steps: int, mesh: MeshConfig) -> dict[int, float]:
        fit = FitConfig(steps=steps, eval_every=50, checkpoint_every=50)
        config = make_config(inputs, folder, model=str(model), mesh=mesh, fit=fit)
        pretrain(config)
        return training_losses(folder)

    straight = train_on(tmp_path / "straight", 9, MeshConfig())
    moved = tmp_path / "moved"
    train_on(moved, 3, MeshConfig(fsdp=8))
    train_on(moved, 6, MeshConfig(tensor=4))
    one_device = functools.partial(make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(setup, "make_mesh", one_device)
    found = train_on(moved, 9, MeshConfig())
    assert sorted(found) == list(range(1, 10))
    for step, loss in straight.items():  # float32 sums in other orders
        assert found[step] == pytest.approx(loss, abs=1e-4)
