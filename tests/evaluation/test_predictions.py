import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow
import pytest

from t5jax.evaluation.predictions import read_predictions

COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pyarrow.Codec("zstd").compress(data, asbytes=True),
}
# A file of predictions and one of references in each format.
FORMATS = {
    "lines": (("p", "a", "", "b"), ("r.de", "x", "", "y")),
    "jsonl": (
        ("p.jsonl", {"prediction": "a"}, {"output": ""}, {"prediction": "b"}),
        ("r.jsonl", {"target": "x"}, {"references": [""]}, {"target": "y"}),
    ),
    "tsv": (("p.tsv", "1\ta", "2\t", "3\tb"), ("r.tsv", "3\ty", "1\tx", "2\t")),
    "dict": (("p.tsv", "1\ta", "2\t", "3\tb"), ("r.dict", "1 x", "2 # none", "3 y")),
}


@pytest.fixture
def write(tmp_path):
    def file(name: str, *lines: object, end: str = "\n") -> Path:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / name).write_bytes("".join(text + end for text in texts).encode())
        return tmp_path / name

    return file


def test_read_takes_lines_and_several_files_of_references(write):
    files = [write("r1.de", "x", "", "z"), write("r2.de", "u", "v", "w")]
    found = read_predictions(write("p.txt", "a", "b\u2028c", ""), files)
    assert found.predictions == ["a", "b\u2028c", ""]
    assert found.references == [["x", "u"], ["", "v"], ["z", "w"]]


def test_read_takes_other_line_ends_and_marks_of_order(write):
    one = read_predictions(write("p.txt", "\ufeffa", "b", end="\r\n"), [write("r", "a", "b")])
    assert one.predictions == ["a", "b"]
    (file := write("cut")).write_text("a\nb")
    assert read_predictions(file, [file]).predictions == ["a", "b"]


def test_read_keeps_a_carriage_return_within_a_line(tmp_path):
    (file := tmp_path / "p").write_bytes(b"a\rb\n")
    assert read_predictions(file, [file]) == (["a\rb"], [["a\rb"]])


def test_read_does_not_mind_the_case_of_endings(write):
    json_lines = write("p.JSONL", {"prediction": "a", "target": "x"})
    assert read_predictions(json_lines, []) == (["a"], [["x"]])
    found = read_predictions(write("p.TSV", "k\ta"), [write("r.Dict", "k x # y")])
    assert found == (["a"], [["x"]])


def test_read_takes_jsonl_with_its_own_references(write):
    file = write(
        "p.jsonl",
        {"input": "q", "prediction": "a", "target": "x"},
        "",
        {"output": "b", "references": ["y", "z"]},
    )
    assert read_predictions(file, []) == (["a", "b"], [["x"], ["y", "z"]])
    other = read_predictions(file, [write("r.txt", "1", "2"), file])
    assert other.references == [["1", "x"], ["2", "y", "z"]]


def test_read_joins_by_key_in_the_order_of_predictions(write):
    right = write("r.tsv", "read\tR IY D", "a(2)\tEY", "read(2)\tR EH D", "a\tAH")
    found = read_predictions(write("p.tsv", "a\tAH", "read\tR IY D"), [right])
    assert found == (["AH", "R IY D"], [["EY", "AH"], ["R IY D", "R EH D"]])
    plain = read_predictions(write("p", "a\tAH", "read\t"), [right], keyed=True)
    assert plain.predictions == ["AH", ""]


def test_read_keeps_a_number_that_is_part_of_a_key(write):
    found = read_predictions(write("p.tsv", "f(2)\t4", "f\t0"), [write("r", "f\t0", "f(2)\t4")])
    assert found.references == [["4"], ["0"]]


def test_read_takes_a_dictionary_as_cmudict_writes_it(write):
    right = write("cmu.dict", "aalborg AO1 L B # place, danish", "aalborg(2) AA1 L B", "'em AH0 M")
    found = read_predictions(write("p.tsv", "'em\tAH0 M", "aalborg\tx"), [right])
    assert found.references == [["AH0 M"], ["AO1 L B", "AA1 L B"]]


def test_read_skips_blank_lines_and_comments_between_keys(write):
    """Only a .dict has comments: elsewhere ";;;" may begin a key."""
    right = write("r.dict", ";;; CMUdict  1", "", ";a  SEMI", "b  B IY")
    found = read_predictions(write("p.tsv", ";a\tx", " ", "b\ty", ""), [right])
    assert found == (["x", "y"], [["SEMI"], ["B IY"]])
    with_marks = write("p.tsv", ";;;a\tx")
    assert read_predictions(with_marks, [with_marks]).predictions == ["x"]
    with pytest.raises(ValueError, match=r"empty.dict must hold at least one example, got none"):
        read_predictions(with_marks, [write("empty.dict", ";;; a", "")])


def test_read_takes_cmudict_s_test_words(shared_data, tmp_path):
    right = shared_data / "cmudict_g2p" / "g014b2b.test"
    if not right.is_file():
        pytest.skip("needs CMUdict beside the checkout")
    lines = right.read_text().splitlines()
    first = dict(line.split("\t") for line in reversed(lines))
    (tmp_path / "p.tsv").write_text("".join(f"{word}\t{text}\n" for word, text in first.items()))
    found = read_predictions(tmp_path / "p.tsv", [right])
    assert len(found.predictions) == 12000
    assert sum(map(len, found.references)) == len(lines)
    assert all(p == r[0] for p, r in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        (("p", "a"), ("r", "a", "b"), r"p and .*r must have the same number .* got 1 and 2"),
        (("p",), ("r", "a"), "p must hold at least one example, got none"),
        (("p.jsonl", ""), ("r", "a"), "p.jsonl must hold at least one example, got none"),
        (("p.tsv", "a\tb", "a\tc"), ("r", "a\tb"), "one prediction per key, got two for a"),
        (("p.tsv", "a"), ("r", "a\tb"), "a key, a tab and a text .*, got 'a' in row 1"),
        (
            ("p.tsv", "a\tb"),
            ("r", "a\tb", "b\tb", "c\tb", "d\tb", "e\tb"),
            "p.tsv must have a prediction for every key, got none for 4 of 5: b, c, d, ...",
        ),
        (
            ("p.tsv", "a\tb", "z\tb"),
            ("r", "a\tb"),
            "r must have a text for every key, got none for 1 of 2: z.",
        ),
        (("p.jsonl", {"text": "a"}), ("r", "a"), "under 'prediction' or 'output', got .* row 1"),
        (("p.jsonl", {"prediction": 3}), ("r", "a"), "under 'prediction' or 'output'"),
        (("p.jsonl", "{"), ("r", "a"), "p.jsonl .* in row 1: .* at column 2"),
        (
            ("p.jsonl", {"prediction": "a"}, "3"),
            ("r", "a"),
            r"p.jsonl .* objects .* got 3 in row 2",
        ),
        (("p.jsonl", "[1]"), ("r", "a"), r"p.jsonl .* objects .* got 1 in row 1"),
        (("p.jsonl", {"prediction": "a"}), ("r.jsonl", {"target": None}), "'target', got"),
        (("p.jsonl", {"prediction": "a"}), ("r.jsonl", {"references": []}), "'target', got"),
        (("p.jsonl", {"prediction": "a"}), ("r.tsv", "a\tb"), "all have keys or none"),
    ],
)
def test_read_refuses_in_a_sentence(write, prediction, reference, message):
    with pytest.raises(ValueError, match=message):
        read_predictions(write(*prediction), [write(*reference)])


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize(
    ("ending", "message"),
    [
        (x, f"must be .jsonl, .tsv, .dict or lines of text, got {x.lower().removesuffix('.gz')};")
        for x in (".json", ".csv", ".parquet", ".JSON", ".csv.gz")
    ],
)
def test_read_refuses_other_formats(write, ending, message, keyed):
    lines, other = write("p", "a\tb"), write(f"p{ending}", "a\tb")
    for files in [(lines, [lines, other]), (other, [lines])]:
        with pytest.raises(ValueError, match=f"p{ending} {message}"):
            read_predictions(*files, keyed=keyed)


def test_read_refuses_keyed_for_json_lines(write):
    file = write("p.jsonl", {"prediction": "a", "target": "a"})
    with pytest.raises(ValueError, match=r"and .jsonl has none; drop --keyed"):
        read_predictions(file, [], keyed=True)


def test_read_wants_every_key_in_every_file_of_references(write):
    files = [write("r1.tsv", "a\tx", "b(2)\ty"), write("r2.tsv", "b\tz")]
    with pytest.raises(
        ValueError, match=r"r2.tsv must have a text for every key, got none for 1 of"
    ):
        read_predictions(write("p.tsv", "a\tx", "b\ty"), files)
    files[1].write_text("b\tz\na\tw\n")
    found = read_predictions(write("p.tsv", "a\tx", "b\ty"), files)
    assert found.references == [["x", "w"], ["y", "z"]]


@pytest.mark.parametrize("name", ["p.txt", "p.tsv"])
def test_read_refuses_predictions_without_references(write, name):
    with pytest.raises(ValueError, match=f"references must be set for .*{name}, got none"):
        read_predictions(write(name, "a\tb"), [])


def test_read_refuses_other_encodings(tmp_path):
    (tmp_path / "p").write_bytes("ä\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"p must be .* UTF-8, got an error in row 1"):
        read_predictions(tmp_path / "p", [tmp_path / "p"])


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("name", FORMATS)
def test_read_takes_compressed_files(write, name, compression):
    plain = [write(*file) for file in FORMATS[name]]
    packed = [file.with_name(file.name + compression) for file in plain]
    for file, other in zip(plain, packed, strict=True):
        other.write_bytes(COMPRESS[compression](file.read_bytes()))
    expected = (["a", "", "b"], [["x"], [""], ["y"]])
    assert read_predictions(plain[0], plain[1:]) == expected
    assert read_predictions(packed[0], packed[1:]) == expected
    assert read_predictions(plain[0], packed[1:]) == expected


def test_read_names_a_compressed_file_that_is_cut(write):
    file = write("p.jsonl", *({"prediction": f"{i} {i * i}", "target": "x"} for i in range(500)))
    cut = file.with_name("p.jsonl.gz")
    cut.write_bytes(gzip.compress(file.read_bytes())[:-100])
    with pytest.raises(ValueError, match=r"p\.jsonl\.gz must be .* row \d+"):
        read_predictions(cut, [])
