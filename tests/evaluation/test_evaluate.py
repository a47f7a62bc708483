import pytest

from t5jax.evaluation.evaluate import EvalTask, evaluate_files
from t5jax.evaluation.metrics.registry import MetricOptions


@pytest.fixture
def files(tmp_path):
    """Three classes, of which two are right and one "yes" too many, and two words of three."""
    contents = {
        "yes": ("yes\nno\nyes\n", "yes\nno\nno\n"),
        "words": ("a b\nc\n", "a x\nc\n"),
        "constant": ("2\n2\n", "1\n3\n"),
    }
    for name, texts in contents.items():
        for suffix, text in zip((".txt", ".ref"), texts, strict=True):
            (tmp_path / f"{name}{suffix}").write_text(text)

    def task(name, *metrics, **options):
        return EvalTask(
            predictions=tmp_path / f"{name}.txt",
            references=[tmp_path / f"{name}.ref"],
            metrics=metrics,
            options=MetricOptions(**options),
        )

    return task


def test_evaluate_files_prints_nothing_and_returns_scores_by_task(files, capsys):
    """F1 of "yes" is 2 / 3 (1 hit, 1 too many); its average is of accuracy and F1."""
    report = evaluate_files(
        {"a": files("yes", "accuracy", "f1", positive="yes"), "b": files("words", "wer")}
    )
    assert capsys.readouterr() == ("", "")
    scores = {
        name: {metric: value["score"] for metric, value in task["metrics"].items()}
        for name, task in report["tasks"].items()
    }
    assert scores["a"] == pytest.approx({"accuracy": 200 / 3, "f1": 200 / 3})
    assert scores["b"] == pytest.approx({"wer": 100 / 3})
    assert report["average"] == pytest.approx(200 / 3)
    assert (report["tasks"]["a"]["examples"], report["tasks"]["b"]["references"]) == (3, 2)
    assert "bootstrap" not in report


def test_evaluate_files_has_neither_an_average_of_one_task_nor_nan(files):
    report = evaluate_files({"a": files("constant", "pearson")}, bootstrap=3, seed=4)
    assert report["tasks"]["a"]["metrics"] == {"pearson": {"score": None, "interval": [None, None]}}
    assert report["bootstrap"] == {"resamples": 3, "seed": 4, "level": 0.95}
    assert "average" not in report


def test_evaluate_files_checks_all_metrics_before_it_reads(tmp_path):
    nowhere = EvalTask(predictions=tmp_path / "nowhere", metrics=["wer"])
    with pytest.raises(ValueError, match="unknown metric 'blue'"):
        evaluate_files(
            {"a": nowhere, "b": EvalTask(predictions=tmp_path / "nowhere", metrics=["blue"])}
        )


@pytest.mark.parametrize("option", ["bootstrap", "seed"])
def test_evaluate_files_refuses_numbers_below_0(option, files):
    with pytest.raises(ValueError, match=f"{option} must be at least 0, got -1"):
        evaluate_files({"a": files("words", "wer")}, **{option: -1})
