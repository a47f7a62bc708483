"""Whole fine-tuning runs, of a moment each; what they are made of is tested beside its module."""

import dataclasses
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from helpers import launched_runs

import t5jax as package
from t5jax.checkpoint.manager import complete_steps, load_checkpoint_tree
from t5jax.data.tasks import Task
from t5jax.evaluation.metrics.registry import MetricOptions
from t5jax.optim.optimizer import OptimizerConfig
from t5jax.optim.schedules import ScheduleConfig
from t5jax.parallel.mesh import MeshConfig
from t5jax.recipes import validation
from t5jax.recipes.finetune import finetune
from t5jax.recipes.finetune_config import FinetuneConfig
from t5jax.recipes.validation import mean_score
from t5jax.training.step import StepConfig
from t5jax.training.tracker import MetricsFile, read_evaluations
from t5jax.training.trainer import FitConfig

ARCHITECTURE = {
    "d_model": 32,
    "d_ff": 64,
    "d_kv": 16,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "dropout_rate": 0.0,
}
LETTERS = "abcdef"


def rows(count, seed):
    """One letter, written twice over: learned in a moment."""
    rng = np.random.default_rng(seed)
    return [{"one": x, "two": x.upper()} for x in rng.choice(list(LETTERS), count)]


def task(**changes):
    given = {
        "name": "up",
        "train": rows(200, 0),
        "validation": [{"one": x, "two": x.upper()} for x in LETTERS],
        "input": "up: {one}",
        "target": "{two}",
        "metrics": ("exact_match",),
    }
    return Task(**{**given, **changes})


def config(folder, *, steps=60, **changes):
    given = {
        "output": str(folder),
        "tokenizer": "bytes",
        "input_length": 24,
        "target_length": 12,
        "batch_size": 8,
        "final_num_beams": 2,
        "fit": FitConfig(steps=steps, eval_every=20, checkpoint_every=20),
        "optimizer": OptimizerConfig(
            name="adafactor",
            schedule=ScheduleConfig(name="constant", learning_rate=0.1, warmup_steps=10),
        ),
    }
    return FinetuneConfig(**{**given, **changes})


def run(folder, *tasks, steps=60, **changes):
    return finetune(tasks or [task()], config(folder, steps=steps, **changes), **FROM_SCRATCH)


FROM_SCRATCH = {"architecture": ARCHITECTURE}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned") / "run"
    test = [{"one": x, "two": [x.upper(), "?"]} for x in "fed"]
    return folder, run(folder, task(test=test))


def test_finetune_learns_a_task_and_its_model_loads(learned):
    folder, found = learned
    assert found.validation == {"up": {"exact_match": 100.0}}
    assert found.test == {"up": {"exact_match": 100.0}}
    again = package.load(folder / "model")
    assert again.generate(["up: b", "up: e"]) == ["B", "E"]


def test_finetune_writes_predictions_that_evaluate_reads(learned, t5jax):
    folder, _ = learned
    path = folder / "predictions" / "up-test.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    assert first == {"input": "up: f", "prediction": "F", "references": ["F", "?"]}
    status, out, _ = t5jax("evaluate", "--predictions", path, "--metrics", "exact_match")
    assert status == 0
    assert "3 examples, 6 references" in out
    assert "100.00" in out
    steps = [20, 40, 60]
    assert all((folder / "predictions" / f"up-{step}.jsonl").is_file() for step in steps)


def test_finetune_logs_loss_score_and_metrics_of_each_evaluation(learned):
    folder, _ = learned
    found = read_evaluations(folder, until=60)
    assert [set(one) for one in found] == [{"loss", "accuracy", "score", "up/exact_match"}] * 3
    assert found[-1]["loss"] < found[0]["loss"]
    assert found[-1]["score"] == found[-1]["up/exact_match"] == 100.0


def test_finetune_again_measures_the_finished_run_without_training(learned):
    folder, found = learned
    again = run(folder, task(test=[{"one": x, "two": x.upper()} for x in "fed"]))
    assert again.validation == found.validation
    assert complete_steps(folder / "checkpoints")[-1] == 60


def test_finetune_goes_on_where_it_was_bit_for_bit(tmp_path):
    tasks = [task(), task(name="same", target="{one}", weight=None)]
    whole = run(tmp_path / "whole", *tasks, steps=6, use="last").t5
    run(tmp_path / "parts", *tasks, steps=3, use="last")
    parts = run(tmp_path / "parts", *tasks, steps=6, use="last").t5
    for one, other in zip(
        jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_finetune_drops_only_in_the_first_steps(tmp_path):
    given = {"use": "last", "dropout_rate": 0.3}
    early = run(tmp_path / "early", steps=20, dropout_steps=8, **given).t5
    run(tmp_path / "parts", steps=12, dropout_steps=8, **given)
    parts = run(tmp_path / "parts", steps=20, dropout_steps=8, **given).t5
    # The same by hand: another run's files say that it never had dropout.
    run(tmp_path / "hand", steps=8, **given)
    for name, options in (("run.json", "options"), ("config.json", None)):
        path = tmp_path / "hand" / name
        record = json.loads(path.read_text())
        fields = record[options] if options else record
        assert fields["dropout_rate"] == 0.3
        fields["dropout_rate"] = 0.0
        path.write_text(json.dumps(record))
    hand = run(tmp_path / "hand", steps=20, use="last", dropout_rate=0.0).t5
    always = run(tmp_path / "always", steps=20, **given).t5
    table = early.params["token_embedder"]["embedding"]
    for other in (parts, hand):
        np.testing.assert_array_equal(other.params["token_embedder"]["embedding"], table)
    assert np.any(always.params["token_embedder"]["embedding"] != table)


def test_finetune_interrupted_saves_and_goes_on(tmp_path, monkeypatch):
    log = MetricsFile.log

    def interrupt(tracker, step, metrics):
        log(tracker, step, metrics)
        if step == 10 and "train/loss" in metrics:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(MetricsFile, "log", interrupt)
    found = run(tmp_path / "run", steps=40)
    assert found.validation is None
    assert complete_steps(tmp_path / "run" / "checkpoints")[-1] < 40
    assert run(tmp_path / "run", steps=40).validation is not None


def test_finetune_from_a_checkpoint_begins_with_what_it_knows(learned, tmp_path):
    folder, _ = learned
    still = OptimizerConfig(
        name="adafactor",
        schedule=ScheduleConfig(name="constant", learning_rate=1e-9, warmup_steps=0),
    )
    given = config(
        tmp_path / "run",
        steps=20,
        checkpoint=str(folder / "model"),
        tokenizer=None,
        optimizer=still,
        final_num_beams=1,
    )
    found = finetune([task()], given)
    assert found.validation == {"up": {"exact_match": 100.0}}
    before = package.load(folder / "model").params
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(found.t5.params), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.slow
def test_finetune_holds_narrow_parameters_of_a_checkpoint_in_float32(learned, tmp_path):
    known = package.load(learned[0] / "model", dtype="bfloat16")
    assert {x.dtype.name for x in jax.tree.leaves(known.params)} == {"bfloat16"}
    known.save(tmp_path / "narrow")
    given = config(tmp_path / "run", steps=20, checkpoint=str(tmp_path / "narrow"), tokenizer=None)
    found = finetune([task()], given)
    assert {x.dtype.name for x in jax.tree.leaves(found.t5.params)} == {"float32"}
    longer = dataclasses.replace(given, fit=dataclasses.replace(given.fit, steps=40))
    assert finetune([task()], longer).validation is not None


def test_finetune_refuses_a_tokenizer_that_is_not_there(learned, tmp_path):
    given = {"checkpoint": str(learned[0] / "model"), "tokenizer": str(tmp_path / "absent")}
    with pytest.raises(FileNotFoundError, match=r"absent, which .*does not exist"):
        finetune([task()], config(tmp_path / "run", **given))


def test_finetune_refuses_an_encoder_before_it_makes_a_folder(learned, tmp_path):
    package.load(learned[0] / "model", encoder_only=True).save(tmp_path / "encoder")
    given = {"checkpoint": str(tmp_path / "encoder"), "tokenizer": None}
    with pytest.raises(ValueError, match=r"checkpoint must have a decoder, got .*encoder"):
        finetune([task()], config(tmp_path / "run", **given))
    assert not (tmp_path / "run").exists()


def test_finetune_refuses_lengths_that_devices_do_not_divide(tmp_path):
    mesh = MeshConfig(sequence=2)
    with pytest.raises(ValueError, match="sequence = 2 must divide the length of targets, 13"):
        run(tmp_path / "run", mesh=mesh, target_length=13)
    assert not (tmp_path / "run").exists()


def test_finetune_says_early_that_references_cannot_be_measured(tmp_path):
    with pytest.raises(ValueError, match=r"validation of task 'up': .*number"):
        run(tmp_path / "run", task(metrics=("pearson",)))
    assert not (tmp_path / "run").exists()


def test_finetune_stops_without_patience_and_takes_the_best(tmp_path, monkeypatch, caplog):
    scores = iter([10.0, 30.0, 20.0, 25.0, 90.0])
    monkeypatch.setattr(validation, "mean_score", lambda results: next(scores))
    given = FitConfig(steps=200, eval_every=5, checkpoint_every=200, patience=2)
    run(tmp_path / "run", fit=given, use="best")
    entries = read_evaluations(tmp_path / "run", until=200)
    assert [entry["score"] for entry in entries] == [10.0, 30.0, 20.0, 25.0]
    assert complete_steps(tmp_path / "run" / "checkpoints") == [10, 15, 20]
    monkeypatch.undo()
    # Stopped is stopped: the same command trains no further.
    run(tmp_path / "run", fit=given, use="best")
    assert complete_steps(tmp_path / "run" / "checkpoints")[-1] == 20
    assert "its checkpoint was not kept" not in caplog.text


def test_finetune_averages_the_checkpoints_that_it_says(tmp_path, caplog, monkeypatch):
    scores = iter([90.0, 10.0, 20.0])
    monkeypatch.setattr(validation, "mean_score", lambda results: next(scores))
    found = run(tmp_path / "run", steps=60, use="last", average=2)
    assert "the mean of 2 (step 60, 40)" in caplog.text
    checkpoints = tmp_path / "run" / "checkpoints"
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), found.t5.params
    )
    params = [
        load_checkpoint_tree(checkpoints / str(step), "params", abstract) for step in (40, 60)
    ]
    mean = jax.tree.map(lambda x, y: (np.asarray(x) + np.asarray(y)) / 2, *params)
    for one, other in zip(jax.tree.leaves(mean), jax.tree.leaves(found.t5.params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    run(tmp_path / "run", steps=60, use="best")
    assert "better than that of step 60, but its checkpoint was not kept" in caplog.text


def test_finetune_mixes_tasks_and_judges_each(tmp_path, caplog):
    same = task(name="same", input="same: {one}", target="{one}", metrics=("cer",), weight=3.0)
    step = StepConfig(label_smoothing=0.1)
    found = run(tmp_path / "run", task(weight=1.0), same, steps=20, step=step)
    assert set(found.validation) == {"up", "same"}
    assert "share 75.0%" in caplog.text
    score = mean_score(found.validation)
    assert 0 < score < 100
    assert (
        score == (found.validation["up"]["exact_match"] + 100 - found.validation["same"]["cer"]) / 2
    )


def test_finetune_warns_of_what_training_has_seen(tmp_path, caplog):
    seen = [{"one": "a", "two": "A"}, {"one": "zz", "two": "b"}]
    run(tmp_path / "run", task(validation=seen), steps=1)
    assert "warning: 1 of 2 inputs in validation of task 'up'" in caplog.text


def test_finetune_counts_what_it_drops(tmp_path, caplog):
    more = [{"one": "x" * 40, "two": "X"}, {"one": "y", "two": ""}]
    run(
        tmp_path / "run",
        task(train=rows(100, 0) + more),
        steps=20,
        too_long="drop",
        empty_targets="drop",
    )
    out = caplog.text
    assert "task 'up': dropped 1 inputs with more than 24 tokens" in out
    assert "task 'up': dropped 1 empty targets" in out
    assert "100 examples" in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": [{"one": "x" * 40, "two": "X"}]}, "got 1 of 1 with more, the longest 45"),
        ({"train": [{"one": "x", "two": ""}]}, "must not be empty, got 1 empty of 1"),
        ({"validation": [{"one": "x" * 40, "two": "X"}]}, "inputs in validation of task 'up'"),
        ({"train": [{"one": "x"}]}, "must have the column 'two'"),
        ({"input": "up: {on}"}, "did you mean 'one'"),
    ],
)
def test_finetune_refuses_data_before_it_makes_a_folder(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", task(**changes))
    assert not (tmp_path / "run").exists()


def test_finetune_continues_a_run_begun_before_options_were_added(learned, tmp_path):
    folder, found = learned
    shutil.copytree(folder, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["options"].pop("optimizer.momentum") == 0.95
    assert record["options"].pop("tasks.up.metric_options.tokenize") == "13a"
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert run(tmp_path / "run").validation == found.validation


def test_finetune_refuses_another_run_in_its_folder(learned):
    folder, _ = learned
    with pytest.raises(ValueError, match="seed = 0, got 1"):
        run(folder, seed=1)
    with pytest.raises(ValueError, match="other data"):
        run(folder, task(train=rows(201, 5)))
    other = task(metrics=("exact_match", "f1"), metric_options=MetricOptions(positive="B"))
    with pytest.raises(ValueError, match=r"tasks\.up\.metric_options\.positive = None, got 'B'"):
        run(folder, other)
    with pytest.raises(ValueError, match=r"steps must be at least 60, .*got 40"):
        run(folder, steps=40)
    with pytest.raises(ValueError, match="names must be unique, got 'up' twice"):
        run(folder, task(), task())


@pytest.mark.slow
def test_finetune_in_two_processes_is_the_run_of_one(tmp_path):
    train = "".join(f"{row['one']}\t{row['two']}\n" for row in rows(200, 0))
    (tmp_path / "train.tsv").write_text(f"one\ttwo\n{train}")
    (tmp_path / "held.tsv").write_text(
        "one\ttwo\n" + "".join(f"{x}\t{x.upper()}\n" for x in LETTERS)
    )
    named = {"name": "up", "train": "train.tsv", "validation": "held.tsv", "input": "up: {one}"}
    (tmp_path / "tasks.json").write_text(json.dumps({**named, "target": "{two}"}))
    fields = {**ARCHITECTURE, "vocab_size": 384}
    (tmp_path / "model.json").write_text(json.dumps(fields))
    finished = []
    for count in (1, 2):
        arguments = {
            "tasks": tmp_path / "tasks.json",
            "model": tmp_path / "model.json",
            "tokenizer": "bytes",
            "output": tmp_path / f"{count}",
            "input-length": 24,
            "target-length": 12,
            "batch-size": 8,
            "steps": 30,
            "eval-every": 15,
            "checkpoint-every": 15,
        }
        listed = [x for name, value in arguments.items() for x in (f"--{name}", str(value))]
        with launched_runs.started(
            listed, tmp_path, count=count, devices=2 // count, script="finetune.py"
        ) as running:
            finished.append(launched_runs.wait(running))
    assert [status for found in finished for status, _ in found] == [0, 0, 0]
    one, two = (read_evaluations(tmp_path / str(count), until=30) for count in (1, 2))
    assert [found["loss"] for found in one] == pytest.approx(
        [found["loss"] for found in two], rel=1e-5
    )
    assert one[-1]["score"] == pytest.approx(two[-1]["score"])
    assert (tmp_path / "2" / "model" / "config.json").is_file()
