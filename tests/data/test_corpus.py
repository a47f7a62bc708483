import dataclasses
import gzip
import json
import os
import subprocess
import sys

import datasets
import pytest

from t5jax.data import pydocs, text_files
from t5jax.data.corpus import DataConfig, corpus_documents, read_corpus
from t5jax.data.text_files import CorpusError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path):
    """Ten documents in two files whose alphabetical order is not that of writing."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    write(folder / "b.jsonl", [f"document {i}" for i in range(6, 10)])
    write(folder / "a.jsonl", [f"document {i}" for i in range(6)])
    return folder


def write(path, documents):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return str(path)


def numbered(start, stop):
    return [f"document {i}" for i in range(start, stop)]


def texts(dataset):
    assert dataset.features == datasets.Features({"text": datasets.Value("string")})
    return dataset["text"][:]


def failure(kind, **options):
    """The message of the one error that reading must raise: a single line."""
    with pytest.raises(kind) as caught:
        read_corpus(DataConfig(**options))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("holdout", [0.0, 1.0, -0.1, 5.0, float("nan")])
def test_config_refuses_a_holdout_that_is_no_fraction(holdout):
    with pytest.raises(ValueError, match=rf"holdout must be in \(0, 1\), got {holdout};"):
        DataConfig(holdout=holdout)


@pytest.mark.parametrize("field", ["path", "name", "split", "column", "eval_path", "eval_split"])
def test_config_refuses_empty_names(field):
    with pytest.raises(ValueError, match=f"^{field} must not be empty"):
        DataConfig(**{field: ""})


def test_config_refuses_to_evaluate_on_the_training_documents():
    with pytest.raises(ValueError, match="eval_path must differ from path, got 'owner/name' twice"):
        DataConfig(path="owner/name", eval_path="owner/name", eval_split="train")
    DataConfig(path="owner/name", eval_path="owner/name")


def test_config_can_be_written_as_json():
    config = DataConfig(path="a.txt", holdout=0.1)
    assert DataConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_read_keeps_the_order_of_the_files_and_holds_out_the_end(folder):
    train, heldout = read_corpus(DataConfig(path=str(folder), holdout=0.3))
    assert texts(train) == numbered(0, 7)
    assert texts(heldout) == numbered(7, 10)


@pytest.mark.parametrize(
    ("num_documents", "holdout", "num_heldout"),
    [(2, 0.05, 1), (2, 0.95, 1), (10, 0.01, 1), (10, 0.99, 9), (100, 0.05, 5), (7, 0.5, 4)],
)
def test_read_leaves_documents_on_both_sides(tmp_path, num_documents, holdout, num_heldout):
    path = write(tmp_path / "a.jsonl", numbered(0, num_documents))
    train, heldout = read_corpus(DataConfig(path=path, holdout=holdout))
    assert (len(train), len(heldout)) == (num_documents - num_heldout, num_heldout)


def test_read_finds_files_by_glob(folder):
    nested = folder / "more" / "deep"
    nested.mkdir(parents=True)
    write(nested / "c.jsonl", ["nested"] * 2)
    train, heldout = read_corpus(DataConfig(path=f"{folder}/[a]*.jsonl", holdout=0.5))
    assert texts(train) + texts(heldout) == numbered(0, 6)
    train, heldout = read_corpus(DataConfig(path=f"{folder}/**/*.jsonl", holdout=0.5))
    assert texts(train) + texts(heldout) == [*numbered(0, 10), "nested", "nested"]


def test_read_of_a_folder_takes_known_files_below_it(folder):
    (folder / "more").mkdir()
    (folder / "more" / "c.json.gz").write_bytes(gzip.compress(b'{"text": "nested"}'))
    (folder / "LICENSE.md").write_text("not a document")
    (folder / "folder.jsonl").mkdir()
    (folder / ".hidden").mkdir()
    write(folder / ".hidden" / "d.jsonl", ["hidden"])
    train, heldout = read_corpus(DataConfig(path=str(folder), holdout=0.5))
    assert texts(train) + texts(heldout) == [*numbered(0, 10), "nested"]


def test_read_takes_special_characters_in_existing_names_literally(tmp_path):
    folder = tmp_path / "a [b] *"
    folder.mkdir()
    path = write(folder / "c?.jsonl", numbered(0, 2))
    for given in (str(folder), path):
        train, heldout = read_corpus(DataConfig(path=given))
        assert texts(train) + texts(heldout) == numbered(0, 2)


def test_read_understands_relative_and_home_paths(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    assert len(read_corpus(DataConfig(path="a.jsonl"))[0]) == 5
    assert len(read_corpus(DataConfig(path="~/b.jsonl"))[0]) == 3


def test_read_of_plain_text_has_one_document_per_line(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n  \ntwo\nthree")
    train, heldout = read_corpus(DataConfig(path=str(tmp_path / "a.txt")))
    assert texts(train) == ["one", "two"]
    assert texts(heldout) == ["three"]


def test_read_names_every_column_text(tmp_path):
    (tmp_path / "a.csv").write_text("id,body\n1,one\n2,two\n")
    train, heldout = read_corpus(DataConfig(path=str(tmp_path / "a.csv"), column="body"))
    assert texts(train) + texts(heldout) == ["one", "two"]


def test_read_holds_nothing_out_of_path_when_eval_path_is_given(folder):
    train, heldout = read_corpus(
        DataConfig(path=f"{folder}/a.jsonl", eval_path=f"{folder}/b.jsonl")
    )
    assert texts(train) == numbered(0, 6)
    assert texts(heldout) == numbered(6, 10)


def test_config_refuses_a_holdout_that_would_do_nothing():
    with pytest.raises(ValueError, match=r"holdout must be left out with eval_path, got 0\.9"):
        DataConfig(path="a.jsonl", eval_path="b.jsonl", holdout=0.9)


def test_read_refuses_an_evaluation_file_that_is_also_trained_on(folder):
    message = failure(ValueError, path=str(folder), eval_path=f"{folder}/b.jsonl")
    assert "eval_path must not share files with path" in message
    assert "b.jsonl' in both" in message


def test_read_finds_what_it_read_before(folder, monkeypatch):
    first = read_corpus(DataConfig(path=str(folder)))
    monkeypatch.setattr(text_files, "read_texts", lambda file, column: pytest.fail("read again"))
    second = read_corpus(DataConfig(path=str(folder)))
    for before, after in zip(first, second, strict=True):
        assert texts(before) == texts(after)
        assert before._fingerprint == after._fingerprint


def test_read_leaves_the_text_on_disk(folder, cache):
    for dataset in read_corpus(DataConfig(path=str(folder))):
        assert dataset.cache_files
        assert all(file["filename"].startswith(str(cache)) for file in dataset.cache_files)


def test_read_notices_a_changed_file(folder):
    config = DataConfig(path=str(folder), holdout=0.1)
    read_corpus(config)
    path = folder / "a.jsonl"
    before = path.stat()
    path.write_text(path.read_text().replace("document 0", "DOCUMENT 0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert texts(read_corpus(config)[0])[0] == "DOCUMENT 0"
    path.write_text(path.read_text().replace("DOCUMENT 0", "first document"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert texts(read_corpus(config)[0])[0] == "first document"


def test_read_notices_a_new_file_and_another_column(folder):
    read_corpus(DataConfig(path=str(folder)))
    (folder / "0.jsonl").write_text('{"text": "new", "body": "other"}\n')
    assert texts(read_corpus(DataConfig(path=str(folder)))[0])[0] == "new"
    path = folder / "c.jsonl"
    path.write_text('{"text": "one", "body": "two"}\n' * 2)
    assert texts(read_corpus(DataConfig(path=str(path)))[0]) == ["one"]
    assert texts(read_corpus(DataConfig(path=str(path), column="body"))[0]) == ["two"]


def test_read_starts_over_after_an_interruption(folder, monkeypatch):
    def interrupted(file, column):
        yield "half a document"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(text_files, "read_texts", interrupted)
        with pytest.raises(KeyboardInterrupt):
            read_corpus(DataConfig(path=str(folder)))
    train, heldout = read_corpus(DataConfig(path=str(folder)))
    assert texts(train) + texts(heldout) == numbered(0, 10)


@pytest.mark.parametrize("bars", [True, False])
def test_read_leaves_progress_bars_as_they_were(folder, bars, capfd):
    (folder / "bad.jsonl").write_text("{")
    (datasets.enable_progress_bars if bars else datasets.disable_progress_bars)()
    try:
        read_corpus(DataConfig(path=f"{folder}/a.jsonl"))
        with pytest.raises(CorpusError):
            read_corpus(DataConfig(path=f"{folder}/bad.jsonl"))
        assert datasets.utils.are_progress_bars_disabled() is not bars
    finally:
        datasets.enable_progress_bars()
    assert capfd.readouterr() == ("", "")


def test_documents_yields_the_texts_in_order(tmp_path):
    path = write(tmp_path / "a.jsonl", numbered(0, 2502))
    train, _ = read_corpus(DataConfig(path=path, holdout=0.0001))
    assert list(corpus_documents(train)) == numbered(0, 2501)


def test_read_without_a_path_reads_the_documentation(tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    for letter in "abc":
        (package / f"{letter}.py").write_text(f'"""This module is only here for its {letter}."""')
    monkeypatch.setattr(pydocs, "roots", lambda: {"package": package})
    train, heldout = read_corpus(DataConfig(holdout=0.4))
    assert len(train) == 2
    found = sorted(texts(train) + texts(heldout))
    assert found == [f"This module is only here for its {letter}." for letter in "abc"]
    monkeypatch.setattr(pydocs, "documents", lambda sources: pytest.fail("read again"))
    assert texts(read_corpus(DataConfig(holdout=0.4))[0]) == texts(train)
    assert "must have a column 'body', got text" in failure(ValueError, column="body")


@pytest.mark.parametrize(
    "path", ["gone.txt", "corpus/gone.txt", "no/such/folder", "/gone", "./gone", "plainname"]
)
def test_read_names_a_path_that_does_not_exist(path):
    message = failure(FileNotFoundError, path=path)
    assert f"got {path!r}, which does not exist" in message
    assert "Hub name 'owner/name'" in message


def test_read_names_a_glob_that_matches_nothing(tmp_path):
    message = failure(FileNotFoundError, path=f"{tmp_path}/*.txt")
    assert f"got '{tmp_path}/*.txt', which matches none" in message
    (tmp_path / "a.md").write_text("not a document")
    assert "which matches none; known formats are .txt, .jsonl," in failure(
        FileNotFoundError, path=str(tmp_path)
    )


def test_read_lists_the_endings_it_knows(tmp_path):
    (tmp_path / "a.md").write_text("one\ntwo\n")
    for path in (tmp_path / "a.md", tmp_path / "*"):
        message = failure(ValueError, path=str(path))
        assert f"files must have a known ending, got '{tmp_path}/a.md';" in message


def test_read_refuses_to_mix_formats(folder):
    (folder / "c.txt").write_text("one\ntwo\n")
    message = failure(ValueError, path=str(folder))
    assert "files of one corpus must have one format, got 2 .jsonl, 1 .txt in" in message


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": " "}\n', "{}\n"])
def test_read_refuses_an_empty_corpus(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    message = failure(ValueError, path=str(tmp_path))
    assert f"{tmp_path} must hold text" in message


def test_read_refuses_a_single_document(tmp_path):
    message = failure(ValueError, path=write(tmp_path / "a.jsonl", ["one"]))
    assert "must have at least 2 documents" in message
    assert "got 1;" in message


def test_read_says_which_file_is_damaged(folder):
    (folder / "c.jsonl").write_text('{"text": "one"}\n{"text": "tw')
    message = failure(ValueError, path=str(folder))
    assert f"{folder}/c.jsonl must be a complete .jsonl file" in message
    assert "in row 2: Unterminated string" in message
    assert len(read_corpus(DataConfig(path=f"{folder}/[ab].jsonl"))[0]) == 9


def test_read_suggests_the_nearest_column(folder):
    message = failure(ValueError, path=str(folder), column="txt")
    assert "a.jsonl must have a column 'txt', got text; did you mean 'text'?" in message


@pytest.mark.parametrize(
    ("option", "value"), [("name", "en"), ("split", "test"), ("eval_split", "test")]
)
def test_read_refuses_hub_options_for_files(folder, option, value):
    message = failure(ValueError, path=str(folder), **{option: value})
    assert f"{option} must be used with a Hub dataset, got {value!r}" in message
    assert f"{option} must be used with a Hub dataset" in failure(ValueError, **{option: value})


def test_read_of_a_hub_name_offline_says_so(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = failure(FileNotFoundError, path="owner/name")
    assert "'owner/name' is not a local file or folder" in message
    assert "Hub cannot be reached" in message


@pytest.fixture
def hub(monkeypatch):
    """A hub with one data set; records what is asked of it."""
    calls = []
    rows = {
        "body": ["one", "", "two", None, " \n", "three"],
        "clean": numbered(0, 6),
        "label": list(range(6)),
        "empty": [" "] * 6,
    }
    types = {"body": "large_string", "clean": "string", "label": "int64", "empty": "string"}
    features = datasets.Features({name: datasets.Value(types[name]) for name in rows})
    dataset = datasets.Dataset.from_dict(rows, features=features)

    def load_dataset(path, name=None, *, split):
        calls.append((path, name, split))
        return dataset

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_read_of_a_hub_name_gives_the_same_column_as_files_do(hub):
    train, heldout = read_corpus(DataConfig(path="owner/name", column="body"))
    assert texts(train) == ["one", "two"]
    assert texts(heldout) == ["three"]
    train, heldout = read_corpus(DataConfig(path="owner/name", column="clean"))
    assert texts(train) + texts(heldout) == numbered(0, 6)


def test_read_of_a_hub_name_passes_on_name_and_splits(hub):
    read_corpus(
        DataConfig(path="owner/a", name="en", split="train[:5]", eval_path="owner/b", column="body")
    )
    assert hub == [("owner/a", "en", "train[:5]"), ("owner/b", "en", "validation")]


def test_read_prefers_a_folder_to_a_hub_name(hub, tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    write(tmp_path / "owner" / "name" / "a.jsonl", numbered(0, 2))
    monkeypatch.chdir(tmp_path)
    assert texts(read_corpus(DataConfig(path="owner/name"))[0]) == ["document 0"]
    assert hub == []


def test_read_of_a_hub_name_refuses_columns_without_text(hub):
    message = failure(ValueError, path="owner/name", column="bodies")
    assert "dataset 'owner/name' must have a column 'bodies', got body, clean, label" in message
    assert message.endswith("did you mean 'body'?")
    assert "must hold text, got Value('int64')" in failure(
        ValueError, path="owner/name", column="label"
    )
    assert "must hold text, got only" in failure(ValueError, path="owner/name", column="empty")


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' doesn't exist"),
            FileNotFoundError,
            "Hugging Face Hub dataset that you can access",
        ),
        (
            ValueError("Config name is missing.\nPlease pick one among: ['en', 'de']\nExample:\n"),
            ValueError,
            "Config name is missing. Please pick one among: ['en', 'de']",
        ),
        (
            ValueError("Unknown split \"test\". Should be one of ['train']."),
            ValueError,
            "Should be one of ['train']",
        ),
        (
            RuntimeError("Dataset scripts are no longer supported, but found name.py"),
            ValueError,
            "Dataset scripts are no longer supported",
        ),
    ],
)
def test_read_explains_what_the_hub_refuses(monkeypatch, raised, kind, said):
    def load_dataset(*_, **__):
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = failure(kind, path="owner/name")
    assert "'owner/name'" in message
    assert said in message


def test_corpus_is_imported_without_datasets():
    code = "import sys, t5jax.data.corpus; assert not {'datasets', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
