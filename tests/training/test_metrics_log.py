import json

import pytest

from t5jax.training.metrics_log import MetricsLog, ProcessLog, open_metrics_log, read_metrics


def write_steps(log: MetricsLog, start: int, stop: int) -> None:
    for step in range(start, stop):
        log.training(step, {"loss": 1.0 / step}, 100, 80)
    log.refresh()


def test_run_log_writes_every_step_and_evaluation(tmp_path, capsys):
    with MetricsLog(tmp_path, total_steps=3, start_step=0) as log:
        write_steps(log, 1, 4)
        log.evaluation(3, {"loss": 0.25, "accuracy": 0.5})
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 1 / 3},
        {"step": 3, "eval_loss": 0.25, "eval_accuracy": 0.5},
    ]
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "non-pad tok/s" in shown


def test_run_log_is_json_where_a_loss_is_not_finite(tmp_path):
    with MetricsLog(tmp_path, total_steps=2, start_step=0) as log:
        log.training(1, {"loss": float("nan")}, 100, 80)
        log.training(2, {"loss": 0.5}, 100, 80)

    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert read_metrics(tmp_path) == [{"step": 1, "loss": None}, {"step": 2, "loss": 0.5}]


def test_run_log_mends_what_is_not_json_and_draws_nothing_of_it(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n')
    with MetricsLog(tmp_path, total_steps=2, start_step=1):
        pass
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null}\n'
    assert not (tmp_path / "loss.png").exists()


def test_run_log_drops_what_a_resumed_run_will_write_again(tmp_path):
    with MetricsLog(tmp_path, total_steps=9, start_step=0) as log:
        write_steps(log, 1, 8)
    with MetricsLog(tmp_path, total_steps=9, start_step=4) as log:
        assert [entry["step"] for entry in read_metrics(tmp_path)] == [1, 2, 3, 4]
        write_steps(log, 5, 10)
    assert [entry["step"] for entry in read_metrics(tmp_path)] == list(range(1, 10))


def test_read_metrics_leaves_out_a_line_that_was_cut_off(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_run_log_closes_when_nothing_was_logged(tmp_path):
    with MetricsLog(tmp_path, total_steps=2, start_step=0):
        pass
    assert not (tmp_path / "loss.png").exists()
    assert json.loads("[]") == read_metrics(tmp_path)


def test_run_log_counts_padding_apart(tmp_path, capsys):
    with MetricsLog(tmp_path, total_steps=1, start_step=0) as log:
        log.training(1, {"loss": 1.0}, 1000, 0)
        log.refresh()
    assert "non-pad tok/s=0" in capsys.readouterr().err
    assert pytest.approx(1.0) == read_metrics(tmp_path)[0]["loss"]


def test_run_log_writes_speed_and_skipped_steps(tmp_path, capsys):
    with MetricsLog(tmp_path, total_steps=2, start_step=0) as log:
        log.speed(1, {"goodput": 0.5, "mfu": 0.25})
        log.skipped(2, {"skipped_steps": 1, "skipped_chunks": [3, 4]})
        log.refresh()
    assert read_metrics(tmp_path) == [
        {"step": 1, "goodput": 0.5, "mfu": 0.25},
        {"step": 2, "skipped_steps": 1, "skipped_chunks": [3, 4]},
    ]
    shown = capsys.readouterr().err
    assert "mfu=25.0%" in shown
    assert "step 2 was skipped" in shown


def test_open_log_gives_other_processes_a_file_of_their_own(tmp_path):
    with open_metrics_log(tmp_path, total_steps=2, start_step=0, process=3) as log:
        assert isinstance(log, ProcessLog)
        log.training(1, {"loss": 2.5}, 100, 80)
        log.evaluation(1, {"loss": 2.25})
        log.speed(1, {"goodput": 0.5})
        log.skipped(2, {"skipped_chunks": [7]})
        log.refresh()
    text = (tmp_path / "logs" / "process-3.log").read_text()
    for part in ("step 1: loss 2.5000", "held-out loss 2.25", "goodput 0.5", "chunks [7]"):
        assert part in text
    assert [p.name for p in tmp_path.iterdir()] == ["logs"]
    with open_metrics_log(tmp_path, total_steps=2, start_step=0, process=0) as log:
        assert isinstance(log, MetricsLog)
