import gzip
import json

import pytest

from t5jax.evaluation.metrics.bootstrap import bootstrap_interval
from t5jax.evaluation.metrics.registry import METRICS, compute_metrics


@pytest.fixture
def evaluate(t5jax, monkeypatch, tmp_path):
    """Runs the command among a few files; returns its exit status and what it prints."""
    monkeypatch.chdir(tmp_path)
    contents = {
        "de.txt": "das ist gut\nja\nnein danke sehr\n",
        "de.ref": "das ist gut\nja\nnein danke\n",
        "yes.txt": "yes\nno\nyes\n",
        "yes.ref": "yes\nno\nno\n",
        "one.txt": "yes\n",
        "sts.txt": "2.0\n2.0\n2.0\n",
        "sts.ref": "1.0\n2.0\n3.0\n",
        "g2p.tsv": "READ\tR IY D\nA\tAH\nCAT\tK AE\n",
        "g2p.ref": "A\tEY\nA(2)\tAH\nREAD\tR IY D\nREAD\tR EH D\nCAT\tK AE T\n",
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text)

    return lambda arguments: t5jax("evaluate", *arguments.split())


def test_evaluate_prints_a_table_and_writes_json(evaluate, tmp_path):
    status, out, err = evaluate(
        "--predictions de.txt --references de.ref --metrics wer exact_match --bootstrap 200 "
        "--seed 5 --json out.json"
    )
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "de.txt: 3 examples, 3 references"
    assert lines[1].startswith("  wer            16.67   95 %: 0.00 to ")
    assert lines[2].startswith("  exact_match    66.67   95 %: ")
    assert lines[3] == "intervals: 200 bootstrap resamples, seed 5"
    assert len(lines) == 4
    found = json.loads((tmp_path / "out.json").read_text())
    measured = compute_metrics(["wer"], ["a b c", "d", "e f g"], ["a b c", "d", "e f"])["wer"]
    low, high = bootstrap_interval(measured, resamples=200, seed=5)
    assert found == {
        "tasks": {
            "de.txt": {
                "examples": 3,
                "references": 3,
                "metrics": {
                    "wer": {"score": pytest.approx(100 / 6), "interval": [low, high]},
                    "exact_match": found["tasks"]["de.txt"]["metrics"]["exact_match"],
                },
            }
        },
        "bootstrap": {"resamples": 200, "seed": 5, "level": 0.95},
    }


def test_evaluate_joins_by_key_and_counts_pronunciations(evaluate):
    status, out, _ = evaluate("--predictions g2p.tsv --references g2p.ref --metrics per g2p_wer")
    assert status == 0
    assert out.splitlines() == [
        "g2p.tsv: 3 examples, 5 references",
        "  per        14.29",
        "  g2p_wer    33.33",
    ]


def test_evaluate_averages_tasks_and_not_metrics(evaluate, tmp_path):
    """de: 2/3; yes: accuracy 2/3 and F1 of "yes" 2/3 (1 hit, 1 too many) -> mean of means."""
    status, out, _ = evaluate(
        "--predictions de=de.txt yes=yes.txt --references de=de.ref yes=yes.ref "
        "--metrics exact_match yes=f1 yes=matthews --positive yes --json out.json"
    )
    assert status == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found["tasks"]["de"]["metrics"]) == ["exact_match"]
    yes = {name: x["score"] for name, x in found["tasks"]["yes"]["metrics"].items()}
    # Indicators (1, 0, 1) and (1, 0, 0): covariance 1/9, variances 2/9 each.
    assert yes == pytest.approx({"exact_match": 200 / 3, "f1": 200 / 3, "matthews": 50})
    average = (200 / 3 + (200 / 3 + 200 / 3 + 50) / 3) / 2
    assert found["average"] == pytest.approx(average)
    assert out.splitlines()[-1] == f"average of 2 tasks  {average:.2f}"


def test_evaluate_knows_the_class_of_each_task(evaluate, tmp_path):
    """Of QQP, "duplicate" has 1 hit of 2 + 2, and "other" none."""
    (tmp_path / "mrpc.txt").write_text("equivalent\nother\nother\n")
    (tmp_path / "qqp.txt").write_text("duplicate\nother\nduplicate\n")
    (tmp_path / "qqp.ref").write_text("duplicate\nduplicate\nother\n")
    command = (
        "--predictions mrpc=mrpc.txt qqp=qqp.txt --references mrpc=mrpc.txt qqp=qqp.ref "
        "--metrics f1 --json new/folder/out.json --positive"
    )
    for classes in ("mrpc=equivalent qqp=duplicate", "qqp=duplicate other"):
        status, _, err = evaluate(f"{command} {classes}")
        assert (status, err) == (0, "")
        found = json.loads((tmp_path / "new" / "folder" / "out.json").read_text())["tasks"]
        scores = [task["metrics"]["f1"]["score"] for task in found.values()]
        assert scores == pytest.approx([100, 50], rel=1e-12)


def test_evaluate_takes_a_class_with_an_equals_sign_where_no_task_has_a_name(evaluate, tmp_path):
    (tmp_path / "eq.txt").write_text("a=b\nc\n")
    status, out, _ = evaluate(
        "--predictions eq.txt --references eq.txt --metrics f1 --positive a=b"
    )
    assert (status, out.splitlines()[1]) == (0, "  f1   100.00")


def test_evaluate_makes_the_folder_of_its_json_before_it_reads(evaluate, tmp_path):
    (tmp_path / "file").touch()
    status, out, err = evaluate(
        "--predictions nowhere --references de.ref --metrics wer --json file/out.json"
    )
    assert (status, out) == (2, "")
    assert "nowhere" not in err
    assert "file" in err


def test_evaluate_averages_error_rates_as_validation_does(evaluate):
    """a: (200 / 3 + 100 - 100 / 6) / 2; b: no text is equal but "2.0", 100 / 3."""
    files = "--predictions a=de.txt b=sts.txt --references a=de.ref b=sts.ref"
    status, out, _ = evaluate(f"{files} --metrics exact_match a=wer")
    average = ((200 / 3 + 100 - 100 / 6) / 2 + 100 / 3) / 2
    assert (status, out.splitlines()[-1]) == (0, f"average of 2 tasks  {average:.2f}")


def test_evaluate_averages_what_is_undefined_as_0_and_says_so(evaluate, tmp_path):
    files = "--predictions a=de.txt b=sts.txt --references a=de.ref b=sts.ref --json out.json"
    status, out, _ = evaluate(f"{files} --metrics exact_match b=pearson --bootstrap 5")
    assert status == 0
    assert "  pearson      undefined" in out.splitlines()
    assert "undefined metrics count as 0 in the average" in out.splitlines()
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["average"] == pytest.approx((200 / 3 + (100 / 3 + 0) / 2) / 2)
    assert found["tasks"]["b"]["metrics"]["pearson"] == {"score": None, "interval": [None, None]}


def test_evaluate_reads_compressed_files(evaluate, tmp_path):
    for name in ("de.txt", "de.ref"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    status, out, _ = evaluate("--predictions de.txt.gz --references de.ref.gz --metrics wer")
    assert (status, out.splitlines()[1]) == (0, "  wer    16.67")


def test_evaluate_takes_several_references_and_paths_with_equals(evaluate, tmp_path):
    (tmp_path / "x=1.txt").write_text("das ist\nja ja\nnein danke sehr\n")
    status, out, _ = evaluate(
        "--predictions de.txt --references de.ref x=1.txt --metrics exact_match"
    )
    assert status == 0
    assert out.splitlines() == ["de.txt: 3 examples, 6 references", "  exact_match   100.00"]


def test_evaluate_prints_sacrebleu_s_signature(evaluate):
    pytest.importorskip("sacrebleu")
    status, out, _ = evaluate(
        "--predictions de.txt --references de.ref --metrics bleu --tokenize none"
    )
    assert status == 0
    assert "|tok:none|" in out.splitlines()[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--predictions one.txt --references de.ref --metrics wer", "got 1 and 3."),
        ("--predictions de.txt --references de.ref --metrics blue", "did you mean 'bleu'?"),
        ("--predictions de.txt --references nowhere --metrics wer", "No such file"),
        ("--predictions de.txt --metrics wer", "references must be set for de.txt"),
        ("--predictions de.txt yes.txt --references de.ref --metrics wer", "write NAME=FILE"),
        ("--predictions de.txt a=yes.txt --references de.ref --metrics wer", "or all be written"),
        ("--predictions a=de.txt --references b=de.ref --metrics wer", "got 'b'; tasks are 'a'."),
        ("--predictions a=de.txt --references de.ref --metrics wer", "written NAME=FILE"),
        (
            "--predictions de.txt --references a=de.ref --metrics wer",
            "write --predictions a=FILE.",
        ),
        (
            "--predictions de.txt --references de.ref --metrics a=wer",
            "write --predictions a=FILE.",
        ),
        ("--predictions de.jsonl --metrics wer --keyed", "drop --keyed."),
        (
            "--predictions de.txt --references de.ref --metrics wer --seed -1",
            "seed must be at least 0, got -1.",
        ),
        (
            (
                "--predictions a=yes.txt b=yes.txt --references a=yes.ref b=yes.ref --metrics f1"
                " --positive a=yes"
            ),
            "f1 of task 'b' requires a class, got none; add --positive b=CLASS.",
        ),
        (
            (
                "--predictions a=yes.txt b=yes.txt --references a=yes.ref b=yes.ref --metrics a=f1 "
                "b=accuracy --positive a=yes b=yes"
            ),
            "the class of task 'b' requires metric f1, got accuracy",
        ),
        (
            "--predictions a=yes.txt --references a=yes.ref --metrics f1 --positive b=yes",
            "class 'yes' must name a known task, got 'b'; tasks are 'a'.",
        ),
        (
            "--predictions yes.txt --references yes.ref --metrics f1 --positive yes no",
            "positive must be one class per task, got 'yes' and 'no'",
        ),
        (
            "--predictions yes.txt --references yes.ref --metrics accuracy --positive yes",
            "positive must go with one of f1, got accuracy.",
        ),
        ("--predictions a=de.txt --references a=de.ref --metrics b=wer", "tasks are 'a'."),
        (
            "--predictions a=de.txt b=de.txt --references a=de.ref b=de.ref --metrics a=wer",
            "task 'b' must have a metric, got none; write b=METRIC.",
        ),
        (
            "--predictions de.txt --references de.ref --metrics wer --use-stemmer",
            "use_stemmer must go with one of rouge1",
        ),
        ("--predictions sts.txt --references de.ref --metrics pearson", "must be a number"),
    ],
)
def test_evaluate_refuses_in_one_sentence(evaluate, arguments, message):
    status, out, err = evaluate(arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_metrics_list_prints_every_metric(evaluate):
    status, out, err = evaluate("--metrics list")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == list(METRICS)
    assert "wer                word error rate (lower is better)\n" in out
    assert "(--tokenize --lowercase)\n" in out


def test_predictions_are_required(evaluate):
    status, _, err = evaluate("--metrics wer")
    assert status == 2
    assert "--predictions" in err
