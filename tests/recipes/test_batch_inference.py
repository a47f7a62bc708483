"""A file of answers: in order, each once, also after a process was killed."""

import json
from pathlib import Path

import pytest

from t5jax.fileio import exclusive
from t5jax.generation import GenerationConfig
from t5jax.recipes import batch_inference
from t5jax.recipes.batch_inference import _generate, generate_file

LIMIT = 12


@pytest.fixture(scope="module")
def folder(t5, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "saved"
    t5.save(path)
    return path


def command(folder, tmp_path, texts, *, output="out.txt", source="in.txt", **options):
    path = tmp_path / source
    if source.endswith(".jsonl"):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    elif source.endswith(".txt"):
        path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    arguments = {name: options.pop(name) for name in ("weights", "overwrite") if name in options}
    return arguments | {
        "model": str(folder),
        "input": str(path),
        "output": str(tmp_path / output),
        "dtype": "float32",
        "config": GenerationConfig(**({"max_new_tokens": LIMIT, "batch_size": 3} | options)),
    }


def lines(path):
    return Path(path).read_text(encoding="utf-8").split("\n")[:-1]


def test_run_writes_a_line_for_every_line_in_order(t5, texts, folder, tmp_path):
    given = [texts[3], *texts, texts[3]]  # lines that are alike, and an empty one
    assert "" in given
    options = command(folder, tmp_path, given)
    assert generate_file(**options) == (len(given), 0, 0, None)
    assert lines(options["output"]) == t5.generate(given, max_new_tokens=LIMIT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.txt"]


def test_run_writes_objects_with_input_output_and_reason(t5, texts, folder, tmp_path):
    options = command(folder, tmp_path, texts, source="in.jsonl", output="out.jsonl", num_beams=2)
    generate_file(**options)
    found = [json.loads(line) for line in lines(options["output"])]
    expected = [row[0] for row in t5.generate_outputs(texts, max_new_tokens=LIMIT, num_beams=2)]
    assert [one["input"] for one in found] == texts
    assert [one["output"] for one in found] == [one.text for one in expected]
    assert [one["finish_reason"] for one in found] == [one.finish_reason for one in expected]


def test_run_draws_what_generate_draws(t5, texts, folder, tmp_path):
    draws = {"temperature": 1.0, "seed": 5}
    options = command(folder, tmp_path, texts, **draws)
    generate_file(**options)
    assert lines(options["output"]) == t5.generate(texts, max_new_tokens=LIMIT, **draws)


def run_interrupted(options, *, after):
    """Runs until Ctrl-C in front of a later batch."""
    whole = _generate

    def some(*arguments):
        for count, batch in enumerate(whole(*arguments)):
            if count == after:
                raise KeyboardInterrupt
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_inference, "_generate", some)
        with pytest.raises(KeyboardInterrupt):
            generate_file(**options)


@pytest.mark.parametrize("cut", [0, 5])
def test_run_goes_on_where_it_was_interrupted(t5, texts, folder, tmp_path, cut):
    given = texts * 2
    options = command(folder, tmp_path, given, temperature=1.0, seed=2)
    run_interrupted(options, after=2)
    partial = Path(options["output"] + ".partial")
    assert not Path(options["output"]).exists()
    content = partial.read_bytes()
    assert content.count(b"\n") == 1 + 6
    partial.write_bytes(content[: len(content) - cut])  # as a crash in the middle of a line
    counts = generate_file(**options)
    assert counts == (len(given), 6 - (cut > 0), 0, None)
    expected = t5.generate(given, max_new_tokens=LIMIT, temperature=1.0, seed=2)
    assert lines(options["output"]) == expected
    assert not partial.exists()


def test_run_prints_nothing_and_reports_its_progress(texts, folder, tmp_path, capfd):
    calls = []
    options = command(folder, tmp_path, texts)
    run_interrupted(options, after=1)
    capfd.readouterr()
    generate_file(**options, progress=lambda *call: calls.append(call))
    assert capfd.readouterr().out == ""
    assert calls == [(3, 7), (6, 7), (7, 7)]


def test_run_refuses_a_partial_output_of_another_command(texts, folder, tmp_path):
    run_interrupted(command(folder, tmp_path, texts), after=1)
    others = (
        {"max_new_tokens": 5},
        {"num_beams": 2},
        {"temperature": 1.0},
        {"weights": "int8"},
    )
    for other in others:
        with pytest.raises(ValueError, match="another model, input or options"):
            generate_file(**command(folder, tmp_path, texts, **other))
    with pytest.raises(ValueError, match="another model, input or options"):
        generate_file(**command(folder, tmp_path, texts[1:]))
    # How many are computed at once has no part in the answers.
    generate_file(**command(folder, tmp_path, texts, batch_size=2))


@pytest.mark.parametrize("damage", ["{}\n[]", '{"a"\n[]', "[1]\n[2]"])
def test_run_refuses_a_damaged_partial_output(texts, folder, tmp_path, damage):
    options = command(folder, tmp_path, texts)
    Path(options["output"] + ".partial").write_text(damage + "\n")
    with pytest.raises(ValueError, match="--overwrite"):
        generate_file(**options)
    generate_file(**command(folder, tmp_path, texts, overwrite=True))
    assert len(lines(options["output"])) == len(texts)


def test_run_refuses_to_replace_an_output(texts, folder, tmp_path):
    (tmp_path / "out.txt").write_text("kept")
    with pytest.raises(FileExistsError, match=r"out\.txt, which exists; pass --overwrite"):
        generate_file(**command(folder, tmp_path, texts))
    assert (tmp_path / "out.txt").read_text() == "kept"
    generate_file(**command(folder, tmp_path, texts[:2], overwrite=True))
    assert len(lines(tmp_path / "out.txt")) == 2


def test_run_of_an_empty_file_writes_an_empty_file(folder, tmp_path):
    options = command(folder, tmp_path, [])
    assert generate_file(**options).inputs == 0
    assert Path(options["output"]).read_bytes() == b""


def test_run_counts_answers_that_constraints_left_empty(t5, folder, tmp_path):
    every = list(range(t5.config.vocab_size))
    options = command(folder, tmp_path, ["a", "b"], suppress_tokens=every)
    assert generate_file(**options).dead_ends == 2
    assert lines(options["output"]) == ["", ""]


def test_run_names_an_input_that_is_too_long(texts, folder, tmp_path):
    with pytest.raises(ValueError, match=r"inputs\[3\] must have at most 15 tokens"):
        generate_file(**command(folder, tmp_path, texts, max_input_tokens=15))
    with pytest.warns(UserWarning, match="1 of 7 inputs were cut to 15 tokens"):
        generate_file(**command(folder, tmp_path, texts, max_input_tokens=15, truncate=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "out.csv"}, r"output must end in \.txt or \.jsonl, got"),
        ({"source": "in.docx"}, r"input must end in \.txt"),
        ({"num_beams": 2, "temperature": 1.0}, r"temperature .* got 1\.0"),
        ({"min_new_tokens": 13}, "min_new_tokens must be at most max_new_tokens = 12"),
    ],
)
def test_generate_refuses_options_before_it_reads(folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        generate_file(**command(folder, tmp_path, [], **options))


def test_run_goes_on_after_an_interrupt_with_overwrite(t5, texts, folder, tmp_path):
    (tmp_path / "out.txt").write_text("old")
    options = command(folder, tmp_path, texts, overwrite=True)
    run_interrupted(options, after=1)
    assert (tmp_path / "out.txt").read_text() == "old"
    assert generate_file(**options).resumed == 3
    assert lines(options["output"]) == t5.generate(texts, max_new_tokens=LIMIT)


def test_run_is_one_process_at_a_time(texts, folder, tmp_path):
    options = command(folder, tmp_path, texts)
    with (
        exclusive(options["output"] + ".lock", "held"),
        pytest.raises(FileExistsError, match="another process is writing; wait for it"),
    ):
        generate_file(**options)


def test_run_goes_on_with_no_other_weights(t5, texts, folder, tmp_path):
    model = tmp_path / "model"
    t5.save(model)
    options = command(model, tmp_path, texts)
    run_interrupted(options, after=1)
    t5.save(model, overwrite=True)
    with pytest.raises(ValueError, match="another model, input or options"):
        generate_file(**options)


def test_run_leaves_out_blank_lines_of_objects(folder, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n\n{"text": null}\n{"text": "b"}\n\n')
    options = command(folder, tmp_path, [], source="in.csv", output="out.jsonl")
    options = options | {"input": str(tmp_path / "in.jsonl")}
    assert generate_file(**options).inputs == 3
    assert [json.loads(line)["input"] for line in lines(options["output"])] == ["a", "", "b"]
