"""Rows of every source as examples, against what was written there and against loops."""

import dataclasses
import datetime
import decimal
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t5jax.data import corpus
from t5jax.data.tasks import (
    Example,
    Overlap,
    Task,
    check_task_names,
    load_tasks,
    read_split,
    split_overlap,
)
from t5jax.evaluation.metrics.registry import MetricOptions

ROWS = [
    {"en": "a house, red", "de": "ein Haus", "id": "1"},
    {"en": 'the "sun"', "de": "die Sonne; 太陽", "id": "2"},
    {"en": "two\nlines", "de": "zwei\tZeilen", "id": "3"},
]


def make(rows=ROWS, **fields):
    given = {"name": "t", "train": rows, "validation": rows, "input": "{en}", "target": "{de}"}
    return Task(**{**given, **fields})


def read_one(row, **fields):
    (found,) = read_split(make([row], **fields), "train")
    return found


def refusal(function, *args, kind=ValueError, **kwargs):
    """The message: one line that ends as a sentence, or with a question that suggests a name."""
    with pytest.raises(kind) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert message[-1] in ".?"
    return message


# Templates


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{en}", "a {b}"),
        ("translate English to German: {en}", "translate English to German: a {b}"),
        ("{en} -> {de}", "a {b} -> c"),
        ("{en}{de}{en}", "a {b}ca {b}"),
        ("{{en}} {en}}}", "{en} a {b}}"),
        ("{first name} {a.b} {0}", "x y z"),
    ],
)
def test_read_fills_templates(template, expected):
    row = {"en": "a {b}", "de": "c", "first name": "x", "a.b": "y", "0": "z"}
    assert read_one(row, input=template).input == expected
    assert read_one(row, target=template).references == [expected]


@pytest.mark.parametrize("field", ["input", "target"])
@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("", "must name a column, got ''"),
        ("summarize: text", "must name a column"),
        ("{{en}}", "must name a column"),
        ("{}", "must name a column, got '{}'"),
        ("{en} {}", "must have plain names"),
        ("{en:>8}", "must have plain names"),
        ("{en!r}", "must have plain names"),
        ("{en", "must have its columns in braces"),
        ("en} {de}", "must have its columns in braces"),
    ],
)
def test_task_refuses_a_template_without_plain_columns(field, template, message):
    found = refusal(make, name="mine", **{field: template})
    assert message in found
    assert "task 'mine'" in found


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..\\x", "naïve", "a\n", "a:b", "{a}"])
def test_task_refuses_a_name_that_is_no_file_name(name):
    assert f"got {name!r}" in refusal(make, name=name)


def test_task_takes_a_name_of_letters_digits_and_marks(tmp_path):
    name = make(name="wmt14.en-de_v2").name
    (tmp_path / name).touch()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_task_refuses_a_weight_that_is_no_share(weight):
    assert "weight of task 't' must be > 0" in refusal(make, weight=weight)


def test_task_refuses_unknown_metrics_and_options_nobody_takes():
    unknown = refusal(make, metrics=("blue",))
    assert "unknown metric 'blue', metrics are " in unknown
    assert unknown.endswith("; did you mean 'bleu'?")
    options = MetricOptions(lowercase=True)
    assert "lowercase must go with" in refusal(make, metric_options=options)


def test_check_names_wants_tasks_with_names_of_their_own():
    check_task_names([make(name="a"), make(name="b")])
    assert "at least one task" in refusal(check_task_names, [])
    twice = [make(name="a"), make(name="b"), make(name="a")]
    assert "got 'a' twice" in refusal(check_task_names, twice)


# Rows


def write_jsonl(path, rows):
    path.write_text("\n\n".join(json.dumps(row) for row in rows))


def write_json(path, rows):
    path.write_text(json.dumps(rows, indent=1))


def write_table(path, rows):
    # RFC 4180 by hand: every field in quotes, and quotes in it doubled.
    quoted = [
        ",".join('"' + str(field).replace('"', '""') + '"' for field in line)
        for line in [list(rows[0]), *(row.values() for row in rows)]
    ]
    path.write_text("\n".join(quoted) + "\n")


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)


WRITE = {
    ".jsonl": write_jsonl,
    ".json": write_json,
    ".csv": write_table,
    ".parquet": write_parquet,
}


@pytest.fixture(params=["memory", *WRITE])
def source(request, tmp_path):
    """Turns rows into a source of each kind."""

    def write(rows, name="rows"):
        if request.param == "memory":
            return rows
        path = tmp_path / f"{name}{request.param}"
        WRITE[request.param](path, rows)
        return str(path)

    return write


def test_read_takes_rows_from_anywhere(source):
    task = make(source(ROWS), input="translate: {en}", target="{de}!", test=source(ROWS[1:], "b"))
    expected = [Example(f"translate: {row['en']}", [f"{row['de']}!"]) for row in ROWS]
    assert read_split(task, "train") == read_split(task, "validation") == expected
    assert read_split(task, "test") == expected[1:]


def test_read_names_the_column_that_is_missing(source):
    message = refusal(read_split, make(source(ROWS), target="{dee}"), "train")
    assert "must have" in message
    assert "column 'dee'" in message
    assert "got en, de, id" in message
    assert message.endswith("did you mean 'de'?")
    message = refusal(read_split, make(source(ROWS), input="{something else}"), "train")
    assert message.endswith(".")


def test_read_names_the_row_of_a_list_that_lacks_a_column():
    rows = [*ROWS, {"en": "without"}]
    assert "row 4 of train of task 't' must have the column 'de'" in refusal(
        read_split, make(rows), "train"
    )


@pytest.mark.parametrize("rows", [[["en", "de"]], [5]])
def test_read_refuses_rows_that_are_no_dicts(own_checks, rows):
    assert "row 1 of train of task 't' must be a dict" in refusal(read_split, make(rows), "train")


def test_read_of_a_split_that_is_not_there_is_empty():
    assert read_split(make(), "test") == []


def test_read_refuses_a_split_without_rows(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    for empty in ([], str(tmp_path / "empty.jsonl")):
        message = refusal(read_split, make(validation=empty), "validation")
        assert "validation of task 't' must have at least one row" in message


def test_read_refuses_files_without_columns_and_damaged_ones(tmp_path):
    for name in ("lines.txt", "lines.txt.gz", "model.bin"):
        (tmp_path / name).write_text("a\tb\n")
        message = refusal(read_split, make(str(tmp_path / name)), "train")
        assert "must have columns" in message or "must have a known ending" in message
    (tmp_path / "bad.jsonl").write_text('{"en": "a", "de": "b"}\n{"en": \n')
    message = refusal(read_split, make(str(tmp_path / "bad.jsonl")), "train")
    assert "bad.jsonl must be a complete .jsonl file" in message
    assert "row 2" in message


def test_read_finds_files_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    assert len(read_split(make("~/rows.jsonl"), "train")) == len(ROWS)


@pytest.mark.parametrize("name", ["glue", "rows.jsonl", "folder/rows.csv", "a/b/c"])
def test_read_refuses_what_is_neither_file_nor_hub_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    message = refusal(read_split, make(name), "train", kind=FileNotFoundError)
    assert (
        "train of task 't' must be a file, a folder, a glob or a Hub name 'owner/name'" in message
    )
    assert str(tmp_path / name) in message


# What columns hold


@pytest.mark.parametrize("kind", ["memory", ".jsonl", ".json", ".parquet"])
def test_read_takes_a_list_of_targets_as_references(tmp_path, kind):
    rows = [{"q": "one", "a": ["x", "y", "x"]}, {"q": "two", "a": ["z"]}]
    source = rows
    if kind != "memory":
        source = str(tmp_path / f"rows{kind}")
        WRITE[kind](tmp_path / f"rows{kind}", rows)
    task = make(source, input="question: {q}", target="{a}")
    expected = [Example("question: one", ["x", "y", "x"]), Example("question: two", ["z"])]
    assert read_split(task, "validation") == expected
    # Training takes the first of them.
    assert [one.references[0] for one in read_split(task, "train")] == ["x", "z"]


def test_read_takes_lists_in_rows_among_texts():
    values = ["x", ("y", "z"), ["u", 3]]
    task = make([{"q": "?", "a": value} for value in values], input="{q}", target="{a}")
    found = read_split(task, "train")
    assert [one.references for one in found] == [["x"], ["y", "z"], ["u", "3"]]


def test_read_takes_the_list_of_the_target_wherever_its_column_stands():
    # The target's column may be the first of all that are named, with another kind behind it.
    row = {"a": "xy", "n": 5}
    assert read_one(row, input="{a} {n}", target="{a}") == Example("xy 5", ["xy"])
    row = {"q": "two", "a": ["x", "y"], "b": "z"}
    assert read_one(row, input="{b} {q}", target="{a}") == Example("z two", ["x", "y"])


@pytest.mark.parametrize(
    ("reads", "writes"), [("{a} {q}", "{a}"), ("{q}", "{a}."), ("{q}", "{a}{q}"), ("{a}", "{q}")]
)
def test_read_refuses_a_list_that_is_not_all_of_the_target(reads, writes):
    rows = [{"q": "x", "a": "one"}, {"q": "x", "a": ["one", "two"]}]
    message = refusal(read_split, make(rows, input=reads, target=writes), "train")
    assert "column 'a' must hold one text, got ['one', 'two'] in row 2 of train" in message


def test_read_refuses_an_empty_list_and_what_is_no_text_in_one():
    for values, expected in (
        ([], "row 1 of train of task 't' must have a target, got an empty list"),
        ([None], "must hold text or numbers, got None in row 1"),
        ([["x"]], "column 'a' must hold one text, got ['x'] in row 1"),
    ):
        task = make([{"q": "x", "a": values}], input="{q}", target="{a}")
        assert expected in refusal(read_split, task, "train")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, "3"),
        (-2.5, "-2.5"),
        (3.0, "3.0"),
        (0.1, "0.1"),
        (1 / 3, repr(1 / 3)),
        (1e300, "1e+300"),
        (2.5999999046325684, "2.6"),  # the float32 nearest to 2.6
        (1e10, "10000000000.0"),
        (np.int64(7), "7"),
        (np.float32(4.2), "4.2"),
        (np.float64(4.2), "4.2"),
        (np.str_("s"), "s"),
        (True, "True"),
        (np.bool_(False), "False"),
        (None, ""),
        ("", ""),
    ],
)
def test_read_writes_numbers_as_text_and_null_as_none(own_checks, value, expected):
    found = read_one({"x": value}, input="score {x}", target="{x}")
    assert found == Example(f"score {expected}", [expected])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {"text": "x"}])
def test_read_refuses_what_is_no_text(own_checks, value):
    task = make([{"x": value}], name="mine", input="{x}", target="{x}")
    message = refusal(read_split, task, "train")
    assert f"column 'x' must hold text or numbers, got {value!r} in row 1 of train" in message
    assert "task 'mine'" in message


def test_read_takes_numbers_and_null_from_files(tmp_path):
    rows = [{"q": "a", "score": 2.6, "n": 1}, {"q": None, "score": 5.0, "n": 2}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    schema = pa.schema([("q", pa.string()), ("score", pa.float32()), ("n", pa.int8())])
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.parquet"):
        task = make(str(tmp_path / name), input="{n}: {q}", target="{score}")
        assert read_split(task, "train") == [Example("1: a", ["2.6"]), Example("2: ", ["5.0"])]


@pytest.mark.parametrize("write", [write_jsonl, write_json])
def test_read_tells_a_missing_key_from_null(tmp_path, write):
    path = tmp_path / "rows.json"
    rows = [{"en": "a", "de": "b"}, {"en": "c", "de": None}]
    write(path, rows)
    assert read_split(make(str(path)), "train") == [Example("a", ["b"]), Example("c", [""])]
    # Row 3 of the array, but line 5 of the lines: blank lines are numbered.
    write(path, [*rows, {"en": "d"}])
    message = refusal(read_split, make(str(path)), "train")
    number = 3 if write is write_json else 5
    assert f"row {number} of {path} must have the column 'de', got en;" in message
    write(path, [{}, *rows])
    assert "row 1 of" in refusal(read_split, make(str(path)), "train")


# Preprocessing


def test_read_gives_preprocess_all_columns_and_takes_what_it_makes(source):
    def turn(row):
        assert set(row) == {"en", "de", "id"}
        row["both"] = f"{row.pop('en')} {row['id']}"
        return None if row["id"] == "2" else row

    rows = source([dict(row) for row in ROWS])
    task = make(rows, input="say: {both}", target="{de}", preprocess=turn)
    expected = [Example(f"say: {r['en']} {r['id']}", [r["de"]]) for r in (ROWS[0], ROWS[2])]
    # Twice: rows in memory stay as they were.
    assert read_split(task, "train") == read_split(task, "train") == expected


def test_read_lets_preprocess_open_what_is_nested_and_rows_lack_keys(tmp_path):
    rows = [{"q": "a", "answers": {"text": ["x", "y"]}}, {"q": "b"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)

    def flat(row):
        return {"q": row["q"], "a": row.get("answers", {"text": ["none"]})["text"]}

    for given in (rows, str(tmp_path / "rows.jsonl")):
        task = make(given, input="{q}", target="{a}", preprocess=flat)
        assert read_split(task, "validation") == [
            Example("a", ["x", "y"]),
            Example("b", ["none"]),
        ]


def test_read_checks_what_preprocess_makes(source):
    rows = source(ROWS)
    task = make(rows, preprocess=lambda row: {"en": row["en"]} if row["id"] == "2" else row)
    message = refusal(read_split, task, "train")
    assert "row 2 of train of task 't' must have the column 'de'" in message
    task = make(rows, preprocess=lambda row: None)
    assert "must have at least one row" in refusal(read_split, task, "train")


def test_read_refuses_what_preprocess_makes_that_is_no_row(own_checks):
    task = make(preprocess=lambda row: row["en"])
    message = refusal(read_split, task, "train")
    assert "preprocess of task 't' must return a dict from column to text, or None" in message
    assert "got 'a house, red' for row 1 of train of task 't'" in message


# Several rows of one input


SEVERAL = [
    {"en": "b", "de": "2"},
    {"en": "a", "de": "1"},
    {"en": "b", "de": ["0", "2", "0"]},
    {"en": "a", "de": "1"},
    {"en": "c", "de": "2"},
    {"en": "b", "de": "1"},
]


def test_read_joins_several_targets_but_not_to_train():
    task = make(SEVERAL, several_targets=True, test=SEVERAL)
    expected = [Example("b", ["2", "0", "1"]), Example("a", ["1"]), Example("c", ["2"])]
    assert read_split(task, "validation") == read_split(task, "test") == expected
    one_by_one = read_split(dataclasses.replace(task, several_targets=False), "validation")
    assert read_split(task, "train") == one_by_one
    assert [one.input for one in one_by_one] == list("babacb")


def test_overlap_counts_as_loops_do():
    rng = np.random.default_rng(0)

    def draw(count):
        sizes = rng.integers(1, 3, count)
        return [
            Example(str(rng.integers(12)), list(map(str, rng.integers(6, size=n)))) for n in sizes
        ]

    seen = set()
    for size in (0, 1, 3, 6, 12):
        train, heldout = draw(size), draw(15)
        inputs = pairs = 0
        for one in heldout:
            same = [other for other in train if other.input == one.input]
            inputs += bool(same)
            pairs += any(text in other.references for other in same for text in one.references)
        assert split_overlap(train, heldout) == Overlap(inputs, pairs)
        seen.add((inputs, pairs))
    assert len(seen) > 3


# Tasks in a file


FIELDS = {
    "name": "t",
    "train": ROWS,
    "validation": ROWS[:1],
    "test": None,
    "input": "{en}",
    "target": "{de}",
    "metrics": ["bleu", "chrf"],
    "metric_options": {"tokenize": "intl", "lowercase": True},
    "weight": 2,
    "several_targets": True,
    "subset": None,
}


@pytest.fixture
def load(tmp_path):
    def load(content):
        path = tmp_path / "tasks.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return load_tasks(path)

    return load


def test_load_takes_every_field_but_functions(load):
    expected = Task(
        name="t",
        train=ROWS,
        validation=ROWS[:1],
        input="{en}",
        target="{de}",
        metrics=("bleu", "chrf"),
        metric_options=MetricOptions(tokenize="intl", lowercase=True),
        weight=2.0,
        several_targets=True,
    )
    assert set(FIELDS) | {"preprocess", "postprocess"} == {
        field.name for field in dataclasses.fields(Task)
    }
    assert load(FIELDS) == [expected]
    needed = {name: FIELDS[name] for name in ("name", "train", "validation")}
    other = Task(name="other", train=ROWS, validation=ROWS[:1])
    assert load([FIELDS, {**needed, "name": "other"}]) == [expected, other]


def test_load_finds_paths_beside_the_file(load, tmp_path, monkeypatch):
    here, elsewhere = tmp_path, tmp_path / "elsewhere"
    for folder in (elsewhere, here / "data", here / "own"):
        folder.mkdir()
    monkeypatch.chdir(elsewhere)
    write_jsonl(here / "data" / "a.jsonl", ROWS)
    write_jsonl(elsewhere / "b.jsonl", ROWS)
    (here / "own" / "set").touch()
    absolute = str(elsewhere / "b.jsonl")
    sources = {"train": "data/a.jsonl", "validation": absolute, "test": "o/n:v"}
    (task,) = load({**FIELDS, **sources})
    assert task.source("train") == str(here / "data" / "a.jsonl")
    assert task.source("validation") == absolute
    assert task.source("test") == "o/n:v"
    assert len(read_split(task, "train")) == len(ROWS)
    # Not what happens to lie in the working folder; and a file goes before the hub.
    (task,) = load({**FIELDS, "train": "b.jsonl", "validation": "own/set"})
    message = refusal(read_split, task, "train", kind=FileNotFoundError)
    assert str(here / "b.jsonl") in message
    assert task.source("validation") == str(here / "own" / "set")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tran": ROWS}, "task 2 has an unknown field 'tran'; did you mean 'train'?"),
        ({"zzz": 1}, "task 2 has an unknown field 'zzz'; fields are name, train"),
        ({"postprocess": "lower"}, "unknown field 'postprocess'"),
        ({"preprocess": "lower"}, "unknown field 'preprocess'"),
        ({"name": 5}, "task 2 must have text as 'name', got 5."),
        ({"train": 5}, "must have text or a list of rows as 'train', got 5."),
        (
            {"validation": None},
            "must have text, a list of rows or a fraction as 'validation', got None.",
        ),
        ({"test": {"en": "a"}}, "must have text or a list of rows as 'test'"),
        ({"input": ["{en}"]}, "must have text as 'input'"),
        ({"metrics": "bleu"}, "must have a list of names as 'metrics', got 'bleu'."),
        ({"metrics": 5}, "must have a list of names as 'metrics', got 5."),
        ({"metrics": ["blue"]}, "task 2: unknown metric 'blue', metrics are "),
        ({"metrics": [5]}, "task 2: unknown metric '5'"),
        ({"metric_options": [1]}, "must have an object as 'metric_options'"),
        ({"metric_options": {"tokenise": "zh"}}, "field 'tokenise'; did you mean 'tokenize'?"),
        ({"metric_options": {"tokenize": "13A"}}, "task 2: tokenize must be one of 13a, intl, "),
        ({"metric_options": {"lowercase": "no"}}, "task 2: lowercase must be true or false, got"),
        (
            {"metric_options": {"use_stemmer": 1}},
            "task 2: use_stemmer must be true or false, got 1",
        ),
        ({"metric_options": {"positive": 1}}, "task 2: positive must be a string, got 1"),
        ({"weight": "2"}, "must have a number as 'weight', got '2'."),
        ({"weight": True}, "must have a number as 'weight', got True."),
        ({"weight": -1}, "task 2: weight of task 't' must be > 0"),
        ({"weight": 10**400}, "task 2: weight of task 't' must be > 0 and finite, got inf."),
        ({"weight": -(10**400)}, "task 2: weight of task 't' must be > 0 and finite, got -inf."),
        ({"several_targets": 1}, "must have true or false as 'several_targets', got 1."),
        ({"subset": 1}, "must have text as 'subset'"),
        ({"input": "{"}, "task 2: a template of task 't'"),
    ],
)
def test_load_refuses_fields_that_are_not_a_tasks(own_checks, load, change, message):
    found = refusal(load, [FIELDS, {**FIELDS, **change}])
    assert "tasks.json: task 2" in found
    assert message in found


@pytest.mark.parametrize("name", ["name", "train", "validation"])
def test_load_wants_the_fields_without_defaults(load, name):
    fields = {key: value for key, value in FIELDS.items() if key != name}
    assert f"task 1 must have the field {name!r}" in refusal(load, fields)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"name": "t",', "must be JSON"),
        ("", "must be JSON"),
        ("[]", "must hold at least one task"),
        ('"t"', "must hold objects, got 't' as task 1"),
        ("[3]", "must hold objects, got 3 as task 1"),
        ("null", "must hold objects, got None as task 1"),
    ],
)
def test_load_refuses_what_holds_no_tasks(load, content, message):
    assert message in refusal(load, content)


def test_load_refuses_a_file_that_is_not_there_or_not_in_utf8(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tasks\.json"):
        load_tasks(tmp_path / "tasks.json")
    (tmp_path / "latin.json").write_bytes('{"name": "é"}'.encode("latin-1"))
    assert "must be JSON" in refusal(load_tasks, tmp_path / "latin.json")


# The hub


@pytest.fixture
def hub(monkeypatch):
    """Data sets by (name, subset, split), in place of the hub's; asked for, they are noted."""
    held, asked = {}, []

    def rows(path, name, *, split):
        asked.append((path, name, split))
        return held[path, name, split]

    monkeypatch.setattr(corpus, "hub_rows", rows)
    return held, asked


def test_read_takes_splits_of_the_hub(hub):
    held, asked = hub
    features = datasets.Features(
        {
            "sentence": datasets.Value("string"),
            "unused": datasets.Value("int32"),
            "score": datasets.Value("float32"),
            "label": datasets.ClassLabel(names=["bad", "good"]),
            "answers": datasets.List(datasets.Value("string")),
        }
    )
    columns = {
        "sentence": ["a", "b", None],
        "unused": [1, 2, 3],
        "score": [2.6, 0.2, 5.0],
        "label": [1, 0, -1],
        "answers": [["x"], ["y", "z"], ["u"]],
    }
    data = datasets.Dataset.from_dict(columns, features=features)
    held["o/n", "sst2", "train"] = data
    held["o/n", "sst2", "dev[:2]"] = data.select(range(2))
    task = make("o/n", validation="o/n:dev[:2]", subset="sst2", input="{sentence}")
    labels = dataclasses.replace(task, target="{label}")
    assert read_split(labels, "train") == [
        Example("a", ["good"]),
        Example("b", ["bad"]),
        Example("", [""]),  # what is hidden has class -1, which is not the last one
    ]
    scores = dataclasses.replace(task, input="{label}: {sentence}", target="{score}")
    assert read_split(scores, "validation") == [
        Example("good: a", ["2.6"]),
        Example("bad: b", ["0.2"]),
    ]
    answers = dataclasses.replace(task, target="{answers}")
    assert [one.references for one in read_split(answers, "train")] == columns["answers"]
    message = refusal(read_split, dataclasses.replace(task, target="{lable}"), "train")
    assert "dataset 'o/n' must have the column 'lable'" in message
    assert message.endswith("did you mean 'label'?")
    train, dev = ("o/n", "sst2", "train"), ("o/n", "sst2", "dev[:2]")
    assert asked == [train, dev, train, train]

    def known(row):
        return {"in": f"{row['unused']} {row['sentence']}", "out": row["label"]}

    made = dataclasses.replace(task, preprocess=known, input="{in}", target="{out}")
    assert read_split(made, "validation") == [Example("1 a", ["good"]), Example("2 b", ["bad"])]


def test_read_takes_a_file_before_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "o").mkdir()
    write_jsonl(tmp_path / "o" / "n.jsonl", ROWS)
    assert len(read_split(make("o/n.jsonl"), "train")) == len(ROWS)
    assert hub[1] == []


# Shards, nested fields, shares


def test_read_takes_shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    write_jsonl(folder / "train-1.jsonl", ROWS[1:2])
    write_jsonl(folder / "train-0.jsonl", ROWS[:1])
    write_table(folder / "more.csv", ROWS[2:])
    (tmp_path / "tasks.json").write_text(
        json.dumps(
            {
                "name": "t",
                "train": "shards/train-*.jsonl",
                "validation": ["shards/train-1.jsonl", "shards/more.csv"],
                "input": "{en}",
                "target": "{de}",
            }
        )
    )
    [task] = load_tasks(tmp_path / "tasks.json")
    pairs = [Example(row["en"], [row["de"]]) for row in ROWS]
    assert read_split(task, "train") == pairs[:2]
    assert read_split(task, "validation") == pairs[1:]
    (folder / "more.csv").unlink()
    assert read_split(make(str(folder)), "train") == pairs[:2]
    (tmp_path / "empty").mkdir()
    for source in ("empty", "none-*.jsonl"):
        with pytest.raises(FileNotFoundError, match="matches none"):
            read_split(make(str(tmp_path / source)), "train")


def test_read_takes_folders_of_datasets(tmp_path):
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(tmp_path / "all")
    pairs = [Example(row["en"], [row["de"]]) for row in ROWS]
    assert read_split(make(str(tmp_path / "one")), "train") == pairs
    task = make(str(tmp_path / "all"), test=str(tmp_path / "all"))
    assert read_split(task, "test") == pairs[1:2]
    with pytest.raises(ValueError, match="split 'validation', got train, test"):
        read_split(make(validation=str(tmp_path / "all")), "validation")


def test_templates_name_nested_fields(tmp_path):
    rows = [{"translation": {"en": "a", "de": "b"}, "answers": {"text": ["x", "y"]}}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    for source in (rows, str(tmp_path / "rows.jsonl")):
        task = make(source, input="{translation.en}", target="{translation.de}")
        assert read_split(task, "train") == [Example("a", ["b"])]
        several = make(source, input="{translation.en}", target="{answers.text}")
        assert read_split(several, "train") == [Example("a", ["x", "y"])]
        assert "'translation.fr'" in refusal(
            read_split, make(source, input="{translation.fr}", target="{translation.de}"), "train"
        )


def test_numbers_and_dates_are_text(tmp_path):
    row = {"en": decimal.Decimal("1.50"), "de": datetime.date(2026, 1, 31)}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    task = make(str(tmp_path / "rows.parquet"))
    assert read_split(task, "train") == [Example("1.50", ["2026-01-31"])]


def test_tasks_may_begin_with_a_byte_order_mark(tmp_path):
    fields = {"name": "t", "train": "a.jsonl", "validation": "a.jsonl"}
    (tmp_path / "tasks.json").write_text(json.dumps(fields), encoding="utf-8-sig")
    assert load_tasks(tmp_path / "tasks.json")[0].name == "t"


def test_share_of_training_is_held_out():
    rows = [{"en": f"text {i % 400}", "de": str(i)} for i in range(500)]
    task = make(rows, validation=0.2)
    train, heldout = read_split(task, "train"), read_split(task, "validation")
    assert len(train) + len(heldout) == 500
    assert 60 < len(heldout) < 140
    assert not {one.input for one in train} & {one.input for one in heldout}
    again = read_split(make(rows[::-1], validation=0.2), "validation")
    assert {one.input for one in again} == {one.input for one in heldout}
    with pytest.raises(ValueError, match=r"fraction in \(0, 1\), got 1\.5"):
        make(rows, validation=1.5)
