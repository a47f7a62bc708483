"""Predictions and their references, read from files."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

_VARIANT = re.compile(r"\(\d+\)$")


_PACKED = (".gz", ".bz2", ".xz", ".zst")


_OTHER_FORMATS = (".json", ".csv", ".parquet")


_Records = list[tuple[int, dict[str, Any]]]


class Predictions(NamedTuple):
    """What is compared."""

    predictions: list[str]
    references: list[list[str]]
    """One or more for each prediction."""


def read_predictions(
    predictions: Path, references: Sequence[Path], *, keyed: bool = False
) -> Predictions:
    """Reads what was predicted, and what is right.

    A .jsonl file has an object for each example: "prediction" (or "output"), and "references" (a
    list) or "target".  A .tsv file has lines `key<TAB>text`; further references of a key are
    further lines, whose keys may end in a number such as "(2)".  A .dict file is such a file as
    CMUdict writes it, with spaces and comments.  Any other file has a line for each example.  Blank
    lines count in the last kind alone.

    Args:
      predictions: file of predictions.
      references: files of references, each with one or more for every example; none if the
        predictions' file holds them too.
      keyed: read files of other endings as .tsv; done in any case beside a .tsv or .dict.
    Returns:
      the examples, in the order of the predictions.
    Raises:
      ValueError: a file is empty or damaged, or they do not match.
      OSError: a file cannot be read.
    """
    endings = {_ending(file) for file in (predictions, *references)}
    if keyed and endings == {".jsonl"}:
        raise ValueError(
            f"keyed must be for files with keys, got {predictions}, and .jsonl has none; leave out "
            "--keyed."
        )
    if keyed or endings & {".tsv", ".dict"}:
        if ".jsonl" in endings:
            raise ValueError(
                f"{predictions} and its references must all have keys or none, got a .jsonl file "
                "beside one with keys; write all as .jsonl, or all as .tsv."
            )
        return _by_key(predictions, references)
    records = _records(predictions) if _ending(predictions) == ".jsonl" else None
    found = _lines(predictions) if records is None else _texts(predictions, records)
    if not references:
        if records is None:
            raise ValueError(
                f"references must be given for {predictions}, got none; only a .jsonl file can "
                "hold its own."
            )
        return Predictions(found, _references(predictions, records))
    listed: list[list[str]] = [[] for _ in found]
    for file in references:
        is_json = _ending(file) == ".jsonl"
        texts = _references(file, _records(file)) if is_json else [[x] for x in _lines(file)]
        if len(texts) != len(found):
            raise ValueError(
                f"{predictions} and {file} must be as long, got {len(found)} and {len(texts)} "
                "examples."
            )
        for known, more in zip(listed, texts, strict=True):
            known += more
    return Predictions(found, listed)


def _ending(file: Path) -> str:
    """What says how to read a file, in lower case."""
    ending = file.suffix.lower()
    if ending in _PACKED:
        raise ValueError(f"{file} must be text, got a packed {ending} file; unpack it.")
    if ending in _OTHER_FORMATS:
        raise ValueError(
            f"{file} must be .jsonl, .tsv, .dict or lines of text, got {ending}; write an object "
            "for each example in a .jsonl file."
        )
    return ending


def _texts(file: Path, records: _Records) -> list[str]:
    found = []
    for number, record in records:
        text = record.get("prediction", record.get("output"))
        if not isinstance(text, str):
            raise ValueError(
                f"{file} must have a text under 'prediction' or 'output', got {record!s:.60} in "
                f"line {number}."
            )
        found.append(text)
    return found


def _references(file: Path, records: _Records) -> list[list[str]]:
    found = []
    for number, record in records:
        listed = record.get("references", record.get("target"))
        listed = [listed] if isinstance(listed, str) else listed
        if not isinstance(listed, list) or {type(text) for text in listed} != {str}:
            raise ValueError(
                f"{file} must have texts under 'references' or a text under 'target', got "
                f"{record!s:.60} in line {number}."
            )
        found.append(listed)
    return found


def _by_key(predictions: Path, references: Sequence[Path]) -> Predictions:
    if not references:
        raise ValueError(f"references must be given for {predictions}, got none.")
    found: dict[str, str] = {}
    for key, text in _keyed_lines(predictions):
        if key in found:
            raise ValueError(f"{predictions} must have one prediction for a key, got two of {key}.")
        found[key] = text
    right: dict[str, list[str]] = {}
    keys: dict[Path, set[str]] = {}
    for file in references:
        keys[file] = set()
        for written, text in _keyed_lines(file):
            key = written if written in found else _VARIANT.sub("", written)
            right.setdefault(key, []).append(text)
            keys[file].add(key)
    _check_keys(f"{predictions} must have a prediction", right.keys() - found.keys(), list(right))
    for file, known in keys.items():
        _check_keys(f"{file} must have a text", found.keys() - known, list(found))
    return Predictions(list(found.values()), [right[key] for key in found])


def _check_keys(rule: str, missing: set[str], order: list[str]) -> None:
    if missing:
        first = [key for key in order if key in missing][:3]
        raise ValueError(
            f"{rule} for every key, got none for {len(missing)} of {len(order)}: "
            f"{', '.join(first)}{', ...' * (len(missing) > 3)}."
        )


def _keyed_lines(file: Path) -> list[tuple[str, str]]:
    found = []
    is_dict = _ending(file) == ".dict"
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip() or (is_dict and line.startswith(";;;")):
            continue
        if is_dict:
            key, _, text = line.partition(" #")[0].partition(" ")
            text = text.strip()
        else:
            key, tab, text = line.partition("\t")
            if not tab:
                raise ValueError(
                    f"{file} must have lines of a key, a tab and a text, got {line!r:.60} in line "
                    f"{number}."
                )
        found.append((key, text))
    if not found:
        raise ValueError(f"{file} must hold at least one example, got none.")
    return found


def _records(file: Path) -> _Records:
    """Numbers of lines, and the objects in them."""
    found = []
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{file} must have a JSON object in each line, got an error in line {number}: "
                f"{error.msg} at column {error.colno}."
            ) from None
        if not isinstance(record, dict):
            raise ValueError(
                f"{file} must have a JSON object in each line, got {line:.60} in line {number}."
            )
        found.append((number, record))
    if not found:
        raise ValueError(f"{file} must hold at least one example, got blank lines.")
    return found


def _lines(file: Path) -> list[str]:
    """Lines without their ends; a blank one is an empty text."""
    try:
        # Not `read_text`, which also ends a line at a lone "\r".
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be text in UTF-8, got {error.reason}.") from None
    if not text:
        raise ValueError(f"{file} must hold at least one example, and it is empty.")
    # Not `splitlines`, which also ends a line at a few characters that text may hold.
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")
