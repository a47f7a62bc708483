"""The trainer's bookkeeping, with a training step that only counts."""

import os
import signal

import jax
import numpy as np
import pytest

from t5jax.checkpoint.manager import CheckpointManager
from t5jax.parallel.mesh import MeshConfig, make_mesh
from t5jax.training.step import TrainState
from t5jax.training.tracker import open_tracker, read_metrics
from t5jax.training.trainer import FitConfig, FitResult, Trainer, final_step, restore_state

MESH = make_mesh(MeshConfig(data=1), devices=jax.devices()[:1])


class Numbers:
    """Batches that are all the same but for their place."""

    def __init__(self):
        self.place = 0

    def __next__(self):
        self.place += 1
        ones = np.ones((2, 3), np.int32)
        return {"encoder_input_tokens": ones, "decoder_loss_weights": ones.astype(np.float32)}

    def get_state(self):
        return {"place": self.place}

    def set_state(self, state):
        self.place = state["place"]


def fresh_state() -> TrainState:
    zero = jax.device_put(np.float32(0))
    return TrainState(jax.device_put(np.int32(0)), {"x": zero}, {"m": zero})


def count_step(state, batch):
    step = state.step + 1
    params = {"x": state.params["x"] + 1}
    return TrainState(step, params, state.opt_state), {"loss": params["x"]}


def diverge(state, batch):
    state, metrics = count_step(state, batch)
    return state, {"loss": metrics["loss"] * (np.nan if int(state.step) == 5 else 1)}


def skip_from(first: int):
    """Steps that change nothing from `first` on."""

    def step(state, batch):
        skipped = int(state.step) + 1 >= first
        state, _ = count_step(state, batch)
        loss = np.float32(np.nan if skipped else 1)
        return state, {"loss": jax.device_put(loss), "skipped": jax.device_put(np.float32(skipped))}

    return step


one_step = count_step


class BestAtFour:
    def evaluate(self, params, step):
        return {"loss": abs(float(params["x"]) - 4) + 1}

    def ranking_key(self, evaluation):
        return evaluation["loss"]


def run(
    folder,
    *,
    steps: int,
    at_step=None,
    state=None,
    data=None,
    keep_best=0,
    trackers=(),
    previous_evaluations=(),
    **options,
) -> FitResult:
    def step(state, batch):
        state, metrics = one_step(state, batch)
        if at_step is not None:
            at_step(int(state.step))
        return state, metrics

    data = Numbers() if data is None else data
    state = fresh_state() if state is None else state
    checkpoints = CheckpointManager(folder / "checkpoints", keep=3, keep_best=keep_best)
    start = int(state.step)
    with open_tracker(folder, total_steps=steps, start_step=start, others=trackers) as tracker:
        trainer = Trainer(
            FitConfig(steps=steps, **options),
            train_step=step,
            evaluator=BestAtFour(),
            checkpoints=checkpoints,
            tracker=tracker,
            mesh=MESH,
            pad_id=0,
            chunk_ids=lambda step: [2 * step, 2 * step + 1],
        )
        result = trainer.fit(state, data, previous_evaluations=previous_evaluations)
    checkpoints.close()
    return result


def test_fit_evaluates_and_saves_when_asked_and_at_the_end(tmp_path):
    result = run(tmp_path, steps=7, eval_every=3, checkpoint_every=2)
    assert (int(result.state.step), result.interrupted) == (7, False)
    assert result.evaluation == {"loss": 4.0}
    evaluated = [e["step"] for e in read_metrics(tmp_path) if "eval_loss" in e]
    trained = [(e["step"], e["loss"]) for e in read_metrics(tmp_path) if "loss" in e]
    assert evaluated == [3, 6, 7]
    assert trained == [(i, float(i)) for i in range(1, 8)]
    assert CheckpointManager(tmp_path / "checkpoints", keep=3).steps() == [4, 6, 7]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_fit_saves_and_stops_on_a_signal(tmp_path, number):
    before = signal.getsignal(number)
    result = run(
        tmp_path, steps=50, at_step=lambda step: step == 5 and os.kill(os.getpid(), number)
    )
    assert (int(result.state.step), result.interrupted, result.evaluation) == (5, True, None)
    assert signal.getsignal(number) is before
    data = Numbers()
    checkpoints = CheckpointManager(tmp_path / "checkpoints", keep=3)
    state = restore_state(checkpoints, jax.eval_shape(fresh_state), data, warn=pytest.fail)
    assert (int(state.step), float(state.params["x"]), data.place) == (5, 5.0, 5)
    finished = run(tmp_path, steps=8, state=state, data=data)
    assert int(finished.state.step) == 8
    assert [e["step"] for e in read_metrics(tmp_path) if "loss" in e] == list(range(1, 9))


def test_fit_interrupts_at_once_on_a_second_signal(tmp_path):
    def twice(step):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, steps=50, at_step=twice)
    assert signal.getsignal(signal.SIGINT) is before


def test_fit_has_nothing_to_do_when_the_run_is_complete(tmp_path):
    run(tmp_path, steps=3)
    data = Numbers()
    checkpoints = CheckpointManager(tmp_path / "checkpoints", keep=3)
    state = restore_state(checkpoints, jax.eval_shape(fresh_state), data, warn=pytest.fail)
    result = run(tmp_path, steps=3, state=state, data=data)
    assert (int(result.state.step), result.evaluation, data.place) == (3, None, 3)


def test_fit_config_refuses_intervals_below_one():
    with pytest.raises(ValueError, match="eval_every must be at least 1, got 0"):
        FitConfig(steps=5, eval_every=0)


def test_fit_refuses_fewer_steps_than_are_done(tmp_path):
    run(tmp_path, steps=3)
    late = TrainState(jax.device_put(np.int32(3)), *fresh_state()[1:])
    with pytest.raises(ValueError, match=r"steps must be at least 3, .*got 2"):
        run(tmp_path, steps=2, state=late)


def test_fit_does_not_save_after_a_loss_that_is_not_finite(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "one_step", diverge)
    with pytest.raises(ValueError, match="must be finite, got nan at step 5"):
        run(tmp_path, steps=9, checkpoint_every=2, log_every=100)
    assert CheckpointManager(tmp_path / "checkpoints", keep=9).steps() == [2, 4]


def test_fit_lets_a_save_finish_before_it_says_what_is_wrong(tmp_path, monkeypatch, caplog):
    def fail(checkpoints):
        raise OSError("the disk is full")

    monkeypatch.setitem(globals(), "one_step", diverge)
    monkeypatch.setattr(CheckpointManager, "wait", fail)
    with pytest.raises(ValueError, match="must be finite, got nan at step 5"):
        run(tmp_path, steps=9, checkpoint_every=2)
    assert "the disk is full" in caplog.text


def test_fit_bears_skipped_steps_and_names_their_text(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "one_step", skip_from(4))
    result = run(tmp_path, steps=6, max_skipped=3)
    assert int(result.state.step) == 6
    skipped = [e for e in read_metrics(tmp_path) if "skipped_chunks" in e]
    assert skipped[0] == {"step": 4, "skipped_steps": 1, "skipped_chunks": [8, 9]}
    assert [e["step"] for e in skipped] == [4, 5, 6]


def test_fit_stops_when_nothing_but_skipped_steps_is_left(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "one_step", skip_from(4))
    with pytest.raises(ValueError, match="at most 3 steps in a row may be skipped, got 4 up to st"):
        run(tmp_path, steps=50, max_skipped=3, checkpoint_every=3)
    assert CheckpointManager(tmp_path / "checkpoints", keep=9).steps() == [3, 6]


def test_fit_keeps_the_best_checkpoint(tmp_path):
    run(tmp_path, steps=16, eval_every=2, checkpoint_every=2, keep_best=1)
    assert CheckpointManager(tmp_path / "checkpoints", keep=9).steps() == [4, 12, 14, 16]


def test_fit_logs_how_fast_it_was(tmp_path):
    run(tmp_path, steps=9, log_every=3)
    readings = [e for e in read_metrics(tmp_path) if "goodput" in e]
    assert [e["step"] for e in readings] == [3, 6, 9]
    for reading in readings:
        assert 0 < reading["goodput"] <= 1
        assert reading["step_seconds_p50"] <= reading["step_seconds_p99"]
        assert reading["data_wait_seconds"] >= 0
        assert reading["memory_bytes"] > 0
        assert "mfu" not in reading  # nobody knows what a CPU can do


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_every": 0}, "keep_every must be at least 1, got 0"),
        ({"keep_best": -1}, "keep_best must be at least 0, got -1"),
        ({"profile_steps": (5, 4)}, "must be a first and a last step"),
    ],
)
def test_fit_config_refuses_what_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        FitConfig(steps=5, **options)


def test_fit_last_counts_evaluations_since_the_best():
    config = FitConfig(steps=100, patience=2)
    assert final_step(config, 30, [3.0, 1.0, 2.0]) == 100
    assert final_step(config, 40, [3.0, 1.0, 2.0, 1.0]) == 40


def test_fit_stops_when_patience_of_earlier_evaluations_runs_out(tmp_path):
    # None after the first is better; this call adds one.
    earlier = [{"loss": 0.5}, {"loss": 0.6}]
    result = run(tmp_path, steps=9, eval_every=2, patience=2, previous_evaluations=earlier)
    assert (int(result.state.step), result.interrupted) == (2, False)
    assert result.evaluation == {"loss": 3.0}


def test_a_tracker_of_a_few_lines_receives_the_metrics(tmp_path, monkeypatch):
    class Lists:
        def __init__(self):
            self.entries, self.closed = [], False

        def log(self, step, metrics):
            self.entries.append((step, dict(metrics)))

        def close(self):
            self.closed = True

    monkeypatch.setitem(globals(), "one_step", skip_from(5))
    tracker = Lists()
    run(tmp_path, steps=5, eval_every=2, log_every=2, trackers=[tracker])
    assert tracker.closed

    def values(name):
        return [(step, metrics[name]) for step, metrics in tracker.entries if name in metrics]

    assert [step for step, _ in values("train/loss")] == [1, 2, 3, 4, 5]
    # Two rows of three input and three target positions, none of them padding.
    assert (
        values("batch/tokens") == values("batch/non_pad_tokens") == [(i, 12) for i in range(1, 6)]
    )
    assert values("eval/loss") == [(2, 3.0), (4, 1.0), (5, 2.0)]
    assert values("skipped/steps") == [(5, 1)]
    assert values("skipped/chunks") == [(5, [10, 11])]
    assert [step for step, _ in values("speed/goodput")] == [2, 4, 5]
