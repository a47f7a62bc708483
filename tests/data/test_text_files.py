import bz2
import csv
import gzip
import io
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t5jax.data.text_files import (
    CorpusError,
    file_ending,
    read_records,
    read_rows,
    read_texts,
    same_format,
)

DOCUMENTS = [
    "One, two; three.",
    "Grüße, 世界 \U0001f600",
    'a "quoted" word',
    "NA",
    "2020-01-01",
    "7",
]


def text_bytes(documents):
    return "\n".join(documents).encode()


def jsonl_bytes(documents):
    return "\n".join(json.dumps({"id": i, "text": t}) for i, t in enumerate(documents)).encode()


def json_bytes(documents):
    return json.dumps([{"text": t, "id": i} for i, t in enumerate(documents)], indent=1).encode()


def tab_bytes(documents):
    lines = ["id\ttext", *(f"{i}\t{t}" for i, t in enumerate(documents))]
    return "".join(f"{line}\n" for line in lines).encode()


def table_bytes(documents):
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([["id", "text"], *([i, t] for i, t in enumerate(documents))])
    return stream.getvalue().encode()


def parquet_bytes(documents, text_type=None):
    stream = io.BytesIO()
    columns = {"id": list(range(len(documents))), "text": pa.array(documents, text_type)}
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def zstd_bytes(data):
    return pa.Codec("zstd").compress(data, asbytes=True)


WRITE = {
    ".txt": text_bytes,
    ".jsonl": jsonl_bytes,
    ".json": json_bytes,
    ".csv": table_bytes,
    ".tsv": tab_bytes,
    ".parquet": parquet_bytes,
}
COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
COMPRESS[".zst"] = zstd_bytes


@pytest.fixture
def save(tmp_path):
    def save(name, data):
        path = tmp_path / name
        path.write_bytes(data)
        return str(path)

    return save


def read(file, column="text"):
    return list(read_texts(file, column))


def column(file, name="text"):
    return [record[name] for record in read_records(file, [name])]


def failure(file, column="text"):
    """The message of the one error that reading must raise: a single line that names the file."""
    with pytest.raises(CorpusError) as caught:
        read(file, column)
    message = str(caught.value)
    assert "\n" not in message
    assert file in message
    return message


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("ending", [ending for ending in WRITE if ending != ".parquet"])
def test_texts_reads_what_was_written(save, ending, compression):
    data = COMPRESS[compression](WRITE[ending](DOCUMENTS))
    assert read(save(f"corpus{ending}{compression}", data)) == DOCUMENTS


@pytest.mark.parametrize(
    "text_type",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
)
def test_texts_reads_parquet_whatever_the_string_type(save, text_type):
    assert read(save("corpus.parquet", parquet_bytes(DOCUMENTS, text_type))) == DOCUMENTS


def test_texts_knows_a_format_by_upper_case_endings(save):
    data = gzip.compress(jsonl_bytes(DOCUMENTS))
    assert read(save("CORPUS.JSONL.GZ", data)) == DOCUMENTS


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
def test_texts_keeps_lines_and_tabs_inside_a_document(save, ending):
    documents = ["first line\nsecond\tline\n\nafter a gap", "x" * 200_000]
    assert read(save(f"corpus{ending}", WRITE[ending](documents))) == documents


@pytest.mark.parametrize("ending", WRITE)
def test_texts_leaves_out_documents_without_text(save, ending):
    documents = ["", "one", "   ", "two", "\u00a0\u2003"]
    assert read(save(f"corpus{ending}", WRITE[ending](documents))) == ["one", "two"]


def test_texts_leaves_out_null_and_missing_values(save):
    lines = [{"text": "one"}, {"text": None}, {"id": 3}, {}, {"text": "two"}]
    data = "\n\n".join(map(json.dumps, lines)).encode()
    assert read(save("corpus.jsonl", data)) == ["one", "two"]
    assert read(save("corpus.parquet", parquet_bytes(["one", None, "two"]))) == ["one", "two"]


def test_texts_does_not_mind_what_other_columns_hold(save):
    values = [1, "three", {"a": [1]}, None, [2.5]]
    lines = [json.dumps({"meta": value, "text": f"document {i}"}) for i, value in enumerate(values)]
    lines.append(json.dumps({"text": "document 5", "new": True}))
    expected = [f"document {i}" for i in range(6)]
    assert read(save("corpus.jsonl", "\n".join(lines).encode())) == expected


def test_texts_reads_the_column_it_is_asked_for(save):
    data = b'{"text": "no", "body": "yes"}\n'
    assert read(save("corpus.jsonl", data), "body") == ["yes"]
    assert read(save("corpus.csv", b"text,body\nno,yes\n"), "body") == ["yes"]


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".json", ".csv", ".tsv"])
def test_texts_leaves_out_a_byte_order_mark(save, ending):
    data = b"\xef\xbb\xbf" + WRITE[ending](DOCUMENTS)
    assert read(save(f"corpus{ending}", data)) == DOCUMENTS


def test_texts_splits_plain_text_at_line_feeds_only(save):
    data = "one\r\ntwo\x0bstill two\x0cand\x85\u2028two\n\n\tthree ".encode()
    expected = ["one", "two\x0bstill two\x0cand\x85\u2028two", "\tthree "]
    assert read(save("corpus.txt", data)) == expected


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
def test_texts_reads_all_parts_of_a_concatenated_file(save, compression):
    parts = [COMPRESS[compression](f"part {i}\n".encode()) for i in range(3)]
    assert read(save(f"corpus.txt{compression}", b"".join(parts))) == ["part 0", "part 1", "part 2"]


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
def test_texts_notices_a_compressed_file_that_was_cut_off(save, compression):
    data = COMPRESS[compression](text_bytes(str(i**3) for i in range(10_000)))
    assert "must be a complete .txt file" in failure(save(f"cut.txt{compression}", data[:-9]))


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
def test_texts_notices_a_file_that_is_not_compressed(save, compression):
    message = failure(save(f"plain.jsonl{compression}", jsonl_bytes(DOCUMENTS)))
    assert "must be a complete .jsonl file" in message


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv"])
def test_texts_notices_another_encoding(save, ending):
    data = WRITE[ending](DOCUMENTS[:1]) + b"\n" + '{"text": "Grüße"}'.encode("latin-1")
    assert "codec can't decode byte 0xfc" in failure(save(f"latin{ending}", data))


def test_texts_names_the_line_that_cannot_be_decoded(save):
    assert "in row 3" in failure(save("latin.txt", b"one\ntwo\ncaf\xe9\nfour\n"))


def test_texts_names_the_line_and_place_of_invalid_json(save):
    data = b'{"text": "one"}\n\n{"text": }\n{"text": "four"}\n'
    message = failure(save("bad.jsonl", data))
    assert "in row 3: Expecting value at column 10;" in message


def test_texts_names_the_line_of_an_invalid_json_array(save):
    message = failure(save("bad.json", b'[\n{"text": "one"},\n{"text" "two"}\n]'))
    assert "in row 3: Expecting ':' delimiter at column 9;" in message


def test_texts_notices_a_lone_surrogate(save):
    message = failure(save("bad.jsonl", b'{"text": "one"}\n{"text": "\\ud800"}'))
    assert "in row 2: " in message
    assert "surrogates not allowed" in message


@pytest.mark.parametrize("data", [b'"one"\n"two"\n', b'["one", "two"]', b"1\n2\n", b"[[1], [2]]"])
def test_texts_notices_json_that_is_not_objects(save, data):
    assert 'must hold objects such as {"text": "..."}' in failure(save("list.jsonl", data))


def test_texts_notices_rows_with_more_or_fewer_fields_than_the_header(save):
    message = failure(save("bad.csv", b'text,id\n"one\nline",1\nwell, two,2\n'))
    assert "must have 2 fields in a row" in message
    assert "got 3 in line 4" in message
    assert "got 1 in line 2" in failure(save("bad.tsv", b"text\tid\none\n"))


def test_texts_notices_a_quotation_mark_that_is_not_closed(save):
    message = failure(save("open.csv", b'text,id\none,1\n"two,2\nthree,3\n'))
    assert "unexpected end of data" in message


@pytest.mark.parametrize("data", [b"", b"not a parquet file", parquet_bytes(DOCUMENTS)[:-20]])
def test_texts_notices_a_damaged_parquet_file(save, data):
    assert "must be a complete .parquet file" in failure(save("bad.parquet", data))


@pytest.mark.parametrize("ending", WRITE)
def test_texts_lists_the_columns_when_one_is_missing(save, ending):
    message = failure(save(f"corpus{ending}", WRITE[ending](DOCUMENTS)), "txet")
    assert "must have a column 'txet', got" in message
    assert message.endswith("did you mean 'text'?")
    if ending != ".txt":
        assert "id" in message.partition("got ")[2]


@pytest.mark.parametrize("value", [5, 0.5, True, ["a"], {"a": "b"}])
def test_texts_notices_values_that_are_not_text(save, value):
    data = json.dumps({"text": "one"}) + "\n" + json.dumps({"text": value})
    message = failure(save("numbers.jsonl", data.encode()))
    assert f"column 'text' must hold text, got {value!r} in row 2" in message


def test_texts_notices_a_parquet_column_of_another_type(save):
    message = failure(save("numbers.parquet", parquet_bytes(DOCUMENTS)), "id")
    assert "column 'id' must hold text, got 0 in row 1" in message


def test_records_hold_whatever_a_column_holds(save):
    held = ["one", None, "", 5, 2.5, True, ["a", "b"], [], {"a": 1}]
    lines = "\n\n".join(json.dumps({"id": i, "text": value}) for i, value in enumerate(held))
    assert column(save("all.jsonl", lines.encode())) == held
    for values in (["one", None], [5, None], [2.5, None], [["a", "b"], [], None]):
        assert column(save("column.parquet", parquet_bytes(values))) == values
    numbers = b"id,text\n1,2.50\n2,\n"
    assert column(save("text.csv", numbers)) == ["2.50", ""]


@pytest.mark.parametrize("ending", [ending for ending in WRITE if ending != ".txt"])
def test_records_have_the_columns_asked_for_or_all(save, ending):
    file = save(f"corpus{ending}", WRITE[ending](DOCUMENTS))
    number = str if ending in (".csv", ".tsv") else int
    expected = [{"text": text, "id": number(i)} for i, text in enumerate(DOCUMENTS)]
    found = list(read_records(file, ["text", "id"]))
    assert found == list(read_records(file)) == expected
    assert list(found[0]) == ["text", "id"]
    assert list(read_records(file, ["id"])) == [{"id": row["id"]} for row in expected]


def test_records_of_all_columns_may_lack_some_but_not_those_asked_for(save):
    rows = [{"text": "one"}, {"text": None}, {"id": 3}]
    file = save("corpus.jsonl", "\n\n".join(map(json.dumps, rows)).encode())
    assert list(read_records(file)) == rows
    assert list(read_rows(file, "text")) == ["one", "", ""]
    with pytest.raises(CorpusError, match=r"row 5 of .* must have the column 'text'"):
        column(file)


def test_records_take_parquet_columns_whose_names_begin_alike(save):
    stream = io.BytesIO()
    pq.write_table(pa.table({"a.b": ["wrong"], "a": ["right"]}), stream)
    assert list(read_records(save("a.parquet", stream.getvalue()), ["a"])) == [{"a": "right"}]


def test_records_notice_what_is_damaged(save):
    for data, reason in ((b'{"text": ["\\ud800"]}', "surrogates"), (b'{"text": ', "Expecting")):
        with pytest.raises(CorpusError, match=f"in row 1: .*{reason}"):
            column(save("bad.jsonl", data))
        with pytest.raises(CorpusError, match=f"in row 1: .*{reason}"):
            list(read_records(save("bad.jsonl", data)))
    with pytest.raises(CorpusError, match="did you mean 'text'"):
        list(read_records(save("good.jsonl", jsonl_bytes(DOCUMENTS)), ["tex"]))


def test_texts_passes_on_errors_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.txt"):
        read(str(tmp_path / "gone.txt"))


@pytest.mark.parametrize("ending", WRITE)
def test_texts_of_an_empty_corpus_are_none(save, ending):
    assert read(save(f"empty{ending}", WRITE[ending]([]))) == []


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("a.txt", ".txt"),
        ("b.en.JSON.gz", ".json"),
        ("c4-train.00000-of-01024.json.gz", ".json"),
        ("folder.csv/d", ""),
        ("e.gz", ""),
        ("f.parquet.gz", ""),
        ("g.txt.zip", ""),
        ("h.md", ""),
    ],
)
def test_ending_leaves_out_the_compression(file, expected):
    assert file_ending(file) == expected


def test_same_format_tells_json_from_csv():
    assert same_format([".json", ".jsonl", ".json"])
    assert not same_format([".jsonl", ".txt"])
    assert not same_format([".csv", ".tsv"])


def test_quotes_in_tab_separated_files_are_text(save):
    # As in GLUE and SNLI (IANA, text/tab-separated-values).
    data = b'label\tsentence\nA\t"Hello\nB\tworld"\nA\tplain\nB\t"all quoted"\n'
    expected = [("A", '"Hello'), ("B", 'world"'), ("A", "plain"), ("B", '"all quoted"')]
    records = read_records(save("glue.tsv", data))
    assert [tuple(record.values()) for record in records] == expected
    data = data.replace(b"\n", b"\r\n") + b"B\t5'2\" tall"
    assert column(save("glue2.tsv", data), "sentence") == [*(x for _, x in expected), "5'2\" tall"]


@pytest.mark.parametrize(("ending", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_headers_of_concatenated_files_are_no_rows(save, ending, delimiter):
    part = f"text{delimiter}id\none{delimiter}1\n"
    assert read(save(f"parts{ending}", (part * 3).encode())) == ["one"] * 3


def test_columns_that_are_there_twice_are_refused_where_needed(save):
    file = save("twice.csv", b"text,id,text\na,1,b\n")
    assert "one column 'text', got 2" in failure(file)
    assert column(file, "id") == ["1"]


@pytest.mark.parametrize("indent", [None, 2])
def test_rows_inside_one_object_are_read(save, indent):
    rows = [{"text": "one"}, {"text": "two"}]
    squad = json.dumps({"version": "1", "data": rows}, indent=indent).encode()
    assert read(save("squad.json", squad)) == ["one", "two"]
    alone = json.dumps({"text": "one", "tags": rows}, indent=indent).encode()
    assert read(save("alone.json", alone)) == ["one"]
    two = json.dumps({"data": rows, "more": rows}, indent=indent).encode()
    assert "must have a column 'text', got data, more" in failure(save("two.json", two))


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_fields_inside_a_column_are_named_with_dots(save, ending):
    rows = [{"translation": {"en": "a", "de": "b"}, "answers": {"text": ["x", "y"]}}]
    if ending == ".parquet":
        stream = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), stream)
        file = save("rows.parquet", stream.getvalue())
    else:
        file = save("rows.jsonl", json.dumps(rows[0]).encode())
    assert read(file, "translation.de") == ["b"]
    assert read(file, "answers.text.1") == ["y"]
    with pytest.raises(CorpusError, match=r"'translation\.fr'"):
        list(read_records(file, ["translation.fr"]))


def test_column_whose_name_has_dots_has_priority(save):
    assert read(save("rows.jsonl", b'{"a.b": "whole", "a": {"b": "field"}}'), "a.b") == ["whole"]
