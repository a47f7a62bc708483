import json
import sys

import pytest

from t5jax.training.tracker import (
    NON_PAD_TOKEN_RATE,
    TOKEN_RATE,
    MetricsFile,
    Tracker,
    open_tracker,
    read_evaluations,
    read_metrics,
)

TOKENS = {"batch/tokens": 100, "batch/non_pad_tokens": 80}


def log_steps(tracker: Tracker, start: int, stop: int) -> None:
    for step in range(start, stop):
        tracker.log(step, {"train/loss": 1.0 / step, **TOKENS})
    tracker.log(stop - 1, {TOKEN_RATE: 50.0, NON_PAD_TOKEN_RATE: 40.0})


def test_trackers_writes_every_step_and_evaluation(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with open_tracker(tmp_path, total_steps=3, start_step=0) as tracker:
        log_steps(tracker, 1, 4)
        tracker.log(3, {"eval/loss": 0.25, "eval/accuracy": 0.5, "eval/de/bleu": float("nan")})
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 1 / 3},
        {"step": 3, "eval_loss": 0.25, "eval_accuracy": 0.5, "eval_de/bleu": None},
    ]
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "non-pad tok/s" in shown


def test_trackers_is_json_where_a_loss_is_not_finite(tmp_path):
    with open_tracker(tmp_path, total_steps=2, start_step=0) as tracker:
        tracker.log(1, {"train/loss": float("nan"), **TOKENS})
        tracker.log(2, {"train/loss": 0.5, **TOKENS})

    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert read_metrics(tmp_path) == [{"step": 1, "loss": None}, {"step": 2, "loss": 0.5}]


def test_trackers_mends_what_is_not_json_and_draws_nothing_of_it(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n')
    with open_tracker(tmp_path, total_steps=2, start_step=1):
        pass
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null}\n'
    assert not (tmp_path / "loss.png").exists()


def test_trackers_drops_what_a_resumed_run_will_write_again(tmp_path):
    with open_tracker(tmp_path, total_steps=9, start_step=0) as tracker:
        log_steps(tracker, 1, 8)
    with open_tracker(tmp_path, total_steps=9, start_step=4) as tracker:
        assert [entry["step"] for entry in read_metrics(tmp_path)] == [1, 2, 3, 4]
        log_steps(tracker, 5, 10)
    assert [entry["step"] for entry in read_metrics(tmp_path)] == list(range(1, 10))


def test_read_metrics_leaves_out_a_line_that_was_cut_off(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_trackers_closes_when_nothing_was_logged(tmp_path):
    with open_tracker(tmp_path, total_steps=2, start_step=0):
        pass
    assert not (tmp_path / "loss.png").exists()
    assert json.loads("[]") == read_metrics(tmp_path)


def test_trackers_log_lines_off_a_terminal(tmp_path, capsys, caplog):
    with open_tracker(tmp_path, total_steps=2, start_step=0) as tracker:
        tracker.log(1, {"speed/goodput": 0.5, "speed/mfu": 0.25, TOKEN_RATE: 9.0})
        tracker.log(2, {"skipped/steps": 1, "skipped/chunks": [3, 4]})
    assert read_metrics(tmp_path) == [
        {"step": 1, "goodput": 0.5, "mfu": 0.25},
        {"step": 2, "skipped_steps": 1, "skipped_chunks": [3, 4]},
    ]
    assert capsys.readouterr() == ("", "")
    progress, skipped = caplog.messages
    assert progress == "step 1 of 2: mfu 25.0%, tok/s 9"
    assert skipped.startswith("step 2 was skipped")


def test_files_are_complete_after_all_but_training_steps(tmp_path):
    tracker = MetricsFile(tmp_path, start_step=0)
    log_steps(tracker, 1, 4)
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1, 2, 3]
    tracker.log(3, {"eval/loss": float("inf")})
    (evaluation,) = read_evaluations(tmp_path, until=3)
    assert str(evaluation) == "{'loss': nan}"
    assert read_evaluations(tmp_path, until=2) == []
    tracker.close()


def test_trackers_close_after_an_error_which_stays_the_first(tmp_path):
    class Full:
        def log(self, step, metrics):
            raise ValueError("first")

        def close(self):
            raise OSError("second")

    with (
        pytest.raises(ValueError, match="first"),
        open_tracker(tmp_path, total_steps=2, start_step=0, others=[Full()]) as tracker,
    ):
        tracker.log(1, {"train/loss": 1.0, **TOKENS})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]


def test_other_processes_have_a_file_of_their_own(tmp_path):
    with open_tracker(tmp_path, total_steps=2, start_step=0, process=3) as tracker:
        tracker.log(1, {"train/loss": 2.5, **TOKENS})
        tracker.log(1, {"eval/loss": 2.25})
        tracker.log(1, {"speed/goodput": 0.5, TOKEN_RATE: 9.0})
        tracker.log(2, {"skipped/steps": 1, "skipped/chunks": [7]})
    lines = (tmp_path / "logs" / "process-3.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        "started",
        "step 1: loss 2.5000, 80 of 100 tokens",
        "step 1: held-out loss 2.2500",
        "step 1: goodput 0.5",
        "step 2 was skipped, chunks [7]",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["logs"]
