"""Row-by-row readers of text files in common formats, plain or compressed.

The loaders of `datasets` infer the types of all columns from the first 10 MB and fail on a later
row with another key or type, even in unused columns, and their errors name neither file nor line.
These readers read only the requested columns, equally fast.
"""

import bz2
import csv
import functools
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from t5jax.errors import suggest
from t5jax.fileio import JsonObject

Record = JsonObject | None  # None for a blank line
Reader = Callable[[str, Sequence[str] | None], Iterator[Record]]
_BLANK = object()  # a blank line among JSON values, which include None
VERSION = 2  # part of cache keys; bump it when a change here changes what is read


class CorpusError(ValueError):
    """Error for a text source that exists but cannot be used."""


def file_suffix(file: str) -> str:
    """Return the lower-case suffix of a file name, ignoring a compression suffix.

    Examples:
      >>> file_suffix("answers.TSV.gz")
      '.tsv'
    """
    name, suffix = os.path.splitext(file.lower())
    return os.path.splitext(name)[1] if suffix in _COMPRESSIONS else suffix


def file_ending(file: str) -> str:
    """Return the suffix that determines the format of a file.

    Returns:
      The suffix, ignoring a compression suffix, such as ".jsonl"; "" for an unknown format.
    """
    suffix = file_suffix(file)
    # Parquet files are compressed inside.
    unknown = suffix not in _FORMATS or (suffix == ".parquet" and not file.lower().endswith(suffix))
    return "" if unknown else suffix


def same_format(endings: Iterable[str]) -> bool:
    """Return True if one reader reads all these endings, as for .json and .jsonl."""
    return len({_FORMATS[ending] for ending in endings}) <= 1


def read_texts(file: str, column: str) -> Iterator[str]:
    """Iterate over the documents of a file: the non-blank rows of `read_rows`."""
    return (text for text in read_rows(file, column) if text.strip())


def read_lines(file: str) -> Iterator[str]:
    """Iterate over the lines of a file with any suffix, decompressed according to it.

    Yields:
      Each line without its line ending.
    Raises:
      CorpusError: the file is damaged or not UTF-8.
    """
    for _, record in _numbered(_read_lines, file, ["text"]):
        yield record["text"]


def read_rows(file: str, column: str) -> Iterator[str]:
    """Iterate over the text of each row of a file.

    Args:
      file: path with a known ending.
      column: column or key that holds the text; a .txt file has the column "text".
    Yields:
      The text of each line (.txt), object (.jsonl, .json) or row (.csv, .tsv, .parquet), or "" if
      it has none. Blank lines are skipped, except in .txt files.
    Raises:
      CorpusError: the file is damaged or in another format, or the column is missing or not text.
    """
    for row, record in numbered_records(file, [column]):
        value = nested_value(record, column) if has_column(record, column) else None
        if value is not None and not isinstance(value, str):
            raise CorpusError(
                f"column {column!r} must hold text, got {value!r:.80} in row {row} of {file}; "
                "choose another column or repair the file."
            )
        yield value or ""


def read_records(file: str, columns: Sequence[str] | None = None) -> Iterator[JsonObject]:
    """Iterate over the rows of a file, with values of any type.

    Args:
      file: path with a known ending.
      columns: columns to read, required in every row; None reads all.
    Yields:
      A dict from column to text or None; values from .jsonl, .json and .parquet may have any type
      of these formats.
    Raises:
      CorpusError: the file is damaged or in another format, or a row lacks a column.
    """
    for row, record in numbered_records(file, columns):
        for column in columns or ():
            if not has_column(record, column):
                raise CorpusError(
                    f"row {row} of {file} must have the column {column!r}, got "
                    f"{', '.join(record) or 'none'}; write null for a missing text."
                )
        if columns is None:
            yield record
        else:
            yield {column: nested_value(record, column) for column in columns}


def has_column(record: Mapping[str, object], column: str) -> bool:
    """Return whether `nested_value` finds a column."""
    try:
        nested_value(record, column)
    except LookupError:
        return False
    return True


def nested_value(record: Mapping[str, object], column: str) -> object:
    """Return the value of a column, or of a field inside it.

    Args:
      record: one row.
      column: name of a column, or the path to a field in it, such as "translation.en" or
        "answers.text.0"; a column whose name contains the dots has priority.
    Raises:
      LookupError: there is no such column or field.

    Examples:
      >>> nested_value({"translation": {"en": "a", "de": "b"}}, "translation.de")
      'b'
    """
    if column in record:
        return record[column]
    value: object = record
    for name in column.split("."):
        if isinstance(value, Mapping):
            value = value[name]
        elif isinstance(value, Sequence) and not isinstance(value, str) and name.isdecimal():
            value = value[int(name)]
        else:
            raise LookupError(column)
    return value


def top_columns(columns: Iterable[str], known: Collection[str]) -> list[str]:
    """Return the columns that hold columns and nested fields, without duplicates."""
    return list(dict.fromkeys(x if x in known else x.partition(".")[0] for x in columns))


def numbered_records(
    file: str, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, JsonObject]]:
    """Iterate over the rows of a file with their numbers, for error messages.

    Args:
      file: path with a known ending.
      columns: columns to read, required in the first row; None reads all.
    Yields:
      (row number from 1, record); blank lines are numbered but skipped.
    Raises:
      CorpusError: the file is damaged or in another format, or the first row lacks a column.
    """
    return _numbered(_FORMATS[file_ending(file)], file, columns)


def _numbered(
    read: Reader, file: str, columns: Sequence[str] | None
) -> Iterator[tuple[int, JsonObject]]:
    row = 0
    try:
        for row, record in enumerate(read(file, columns), start=1):
            if record is None:
                continue
            for column in record if columns is None else top_columns(columns, record):
                _check_text(record.get(column))
            yield row, record
    except CorpusError:
        raise
    except Exception as error:  # decoders and parsers raise different types
        if isinstance(error, OSError) and error.errno:
            raise  # permissions or I/O: the system's message names the file
        line, reason = row + 1, str(error).rstrip(".")
        if isinstance(error, json.JSONDecodeError):  # an array spans many lines
            line, reason = row + error.lineno, f"{error.msg} at column {error.colno}"
        elif isinstance(error, UnicodeEncodeError):  # raised after the row was read
            line = row
        raise CorpusError(
            f"{file} must be a complete {file_ending(file) or 'text'} file in UTF-8, got an error "
            f"in row {line}: {reason}; repair or remove the file."
        ) from error


def _check_text(value: object) -> None:
    """Raise UnicodeEncodeError for a lone surrogate, which JSON allows but Arrow does not."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, Mapping):
        _check_text(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            _check_text(item)


def missing_column_error(where: str, column: str, columns: Iterable[str]) -> CorpusError:
    """Create the error for a missing column, which lists the existing ones.

    Args:
      where: file or dataset, as the subject of the message.
      column: name of the missing column.
      columns: names of the existing columns.
    Returns:
      The error to raise.
    """
    columns = list(columns)
    hint = suggest(column, columns, "choose one of these.")
    return CorpusError(f"{where} must have a column {column!r}, got {', '.join(columns)}; {hint}")


def _check_columns(file: str, columns: Sequence[str] | None, known: Iterable[str]) -> None:
    known = list(known)
    for column, top in ((column, *top_columns([column], known)) for column in columns or ()):
        if top not in known:
            raise missing_column_error(file, column, known)
        if known.count(top) > 1:
            raise CorpusError(f"{file} must have one column {top!r}, got {known.count(top)}.")


def _read_lines(file: str, columns: Sequence[str] | None) -> Iterator[Record]:
    _check_columns(file, columns, ["text"])
    with _open(file) as stream:
        for line in stream:
            yield {"text": line.decode("utf-8-sig").rstrip("\r\n")}


def _read_json(file: str, columns: Sequence[str] | None) -> Iterator[Record]:
    """Read one object per line, one array of objects, or one object with such an array.

    The first non-empty object must have the columns; later ones may lack them.
    """
    with _open(file) as stream:
        if stream.peek(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            records = json.load(stream)
        else:
            records = _json_lines(stream, columns)
        first = True
        for row, record in enumerate(records, start=1):
            if record is _BLANK:
                yield None
                continue
            if not isinstance(record, dict):
                raise CorpusError(
                    f'{file} must hold objects such as {{"{(columns or ["text"])[0]}": "..."}}, '
                    f"one per line, got {record!r:.80} in row {row}; plain text belongs in a .txt "
                    "file."
                )
            if first and record:
                _check_columns(file, columns, record)
                first = False
            yield record


def _json_lines(stream: io.BufferedReader, columns: Sequence[str] | None) -> Iterator[object]:
    """Read one value per line, or one that spans all lines."""
    whole: object = _BLANK
    for line in map(bytes.strip, stream):
        if not line:
            yield _BLANK
            continue
        if whole is _BLANK:
            try:
                whole = json.loads(line)
            except json.JSONDecodeError as error:
                try:
                    whole = json.loads(line + b"\n" + stream.read())
                except json.JSONDecodeError:
                    raise error from None
            yield from _rows_inside(whole, columns)
        else:
            yield json.loads(line)


def _rows_inside(value: object, columns: Sequence[str] | None) -> list[object]:
    """Return the rows in the only list of objects of an object without the columns, or the value.

    SQuAD, for example, has its rows in "data", next to "version".
    """
    if not isinstance(value, dict) or any(has_column(value, column) for column in columns or ()):
        return [value]
    tables = [
        inner
        for inner in value.values()
        if isinstance(inner, list) and inner and all(isinstance(row, dict) for row in inner)
    ]
    return tables[0] if len(tables) == 1 else [value]


def _read_csv(file: str, columns: Sequence[str] | None, *, delimiter: str) -> Iterator[Record]:
    """Read rows under a header, which may be repeated where files were concatenated.

    Quotes are part of the text in .tsv files (IANA, text/tab-separated-values).
    """
    csv.field_size_limit(2**31 - 1)  # the default of 128 kB is too small for a long document
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    advice = "use .jsonl for text" if delimiter == "\t" else "quote text"
    with _open(file) as stream:
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        rows = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
        header = next(rows, list(columns or ()))
        _check_columns(file, columns, header)
        names = dict.fromkeys(header) if columns is None else top_columns(columns, header)
        places = [(column, header.index(column)) for column in names]
        for row in rows:
            if row and len(row) != len(header):
                raise CorpusError(
                    f"{file} must have {len(header)} fields in a row, like its header, got "
                    f"{len(row)} in line {rows.line_num}; {advice} that contains {delimiter!r}."
                )
            skipped = not row or row == header
            yield None if skipped else {column: row[place] for column, place in places}


def _read_parquet(file: str, columns: Sequence[str] | None) -> Iterator[Record]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as table:
        names = table.schema_arrow.names
        _check_columns(file, columns, names)
        columns = list(dict.fromkeys(names)) if columns is None else top_columns(columns, names)
        for batch in table.iter_batches(batch_size=1000, columns=columns):
            order = batch.schema.names  # the order of the file, not of the request
            arrays = [batch.column(order.index(column)).to_pylist() for column in columns]
            for values in zip(*arrays, strict=True):
                yield dict(zip(columns, values, strict=True))


def _open(file: str) -> io.BufferedReader:
    opener = _COMPRESSIONS.get(os.path.splitext(file.lower())[1])
    return io.BufferedReader(opener(file)) if opener else open(file, "rb")


def _open_zstd(file: str) -> io.BufferedIOBase:
    import pyarrow  # unlike the package zstandard, it reads all frames and detects truncation

    return pyarrow.input_stream(file, compression="zstd")


_FORMATS: dict[str, Reader] = {
    ".txt": _read_lines,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": functools.partial(_read_csv, delimiter=","),
    ".tsv": functools.partial(_read_csv, delimiter="\t"),
    ".parquet": _read_parquet,
}
_COMPRESSIONS: dict[str, Callable[[str], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
}
KNOWN_ENDINGS = f"{', '.join(_FORMATS)}, and {', '.join(_COMPRESSIONS)} after all except .parquet"
