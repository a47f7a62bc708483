"""Predictions and their references, read from files."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

_VARIANT = re.compile(r"\(\d+\)$")


class Examples(NamedTuple):
    """What is compared."""

    predictions: list[str]
    references: list[list[str]]
    """One or more for each prediction."""


def read(predictions: Path, references: Sequence[Path], *, keyed: bool = False) -> Examples:
    """Reads what was predicted, and what is right.

    A .jsonl file has an object for each example: "prediction" (or "output"), and "references" (a
    list) or "target".  A .tsv file has lines `key<TAB>text`; further references of a key are
    further lines, whose keys may end in a number such as "(2)".  A .dict file is such a file as
    CMUdict writes it, with spaces and comments.  Any other file has a line for each example.

    Args:
      predictions: file of predictions.
      references: files of references, each with one for every example; none if the predictions'
        file holds them too.
      keyed: read files of no known ending as .tsv.
    Returns:
      the examples, in the order of the predictions.
    Raises:
      ValueError: a file is empty or damaged, or they do not match.
      OSError: a file cannot be read.
    """
    kinds = {_kind(file, keyed) for file in (predictions, *references)}
    if "keyed" in kinds and len(kinds) > 1:
        raise ValueError(
            f"{predictions} and its references must all have keys or none, got {_kinds(kinds)}; "
            "write all as .tsv, or none."
        )
    if "keyed" in kinds:
        return _by_key(predictions, references)
    found = _texts(predictions, ("prediction", "output"))
    if not references:
        return Examples(found, _own_references(predictions, keyed))
    listed: list[list[str]] = [[] for _ in found]
    for file in references:
        texts = (
            _own_references(file, keyed)
            if _kind(file, keyed) == "jsonl"
            else [[text] for text in _lines(file)]
        )
        if len(texts) != len(found):
            raise ValueError(
                f"{predictions} and {file} must be as long, got {len(found)} and {len(texts)} "
                "examples."
            )
        for known, more in zip(listed, texts, strict=True):
            known += more
    return Examples(found, listed)


def _kind(file: Path, keyed: bool) -> str:
    if file.suffix == ".jsonl":
        return "jsonl"
    return "keyed" if keyed or file.suffix in (".tsv", ".dict") else "lines"


def _kinds(kinds: set[str]) -> str:
    names = {"keyed": "files with keys", "jsonl": ".jsonl", "lines": "lines of text"}
    return " and ".join(names[kind] for kind in sorted(kinds))


def _texts(file: Path, names: tuple[str, ...]) -> list[str]:
    if file.suffix != ".jsonl":
        return _lines(file)
    found = []
    for number, record in _records(file):
        text = next((record[name] for name in names if name in record), None)
        if not isinstance(text, str):
            raise ValueError(
                f"{file} must have a text under {' or '.join(map(repr, names))}, got "
                f"{record!s:.60} in line {number}."
            )
        found.append(text)
    return found


def _own_references(file: Path, keyed: bool) -> list[list[str]]:
    if _kind(file, keyed) != "jsonl":
        raise ValueError(
            f"references must be given for {file}, got none; only a .jsonl file can hold its own."
        )
    found = []
    for number, record in _records(file):
        listed = record["references"] if "references" in record else [record.get("target")]
        listed = [listed] if isinstance(listed, str) else listed
        if not isinstance(listed, list) or not listed or {type(x) for x in listed} != {str}:
            raise ValueError(
                f"{file} must have texts under 'references' or a text under 'target', got "
                f"{record!s:.60} in line {number}."
            )
        found.append(listed)
    return found


def _by_key(predictions: Path, references: Sequence[Path]) -> Examples:
    if not references:
        raise ValueError(f"references must be given for {predictions}, got none.")
    found: dict[str, str] = {}
    for key, text in _keyed_lines(predictions):
        if key in found:
            raise ValueError(f"{predictions} must have one prediction for a key, got two of {key}.")
        found[key] = text
    right: dict[str, list[str]] = {}
    for file in references:
        for key, text in _keyed_lines(file):
            right.setdefault(key if key in found else _VARIANT.sub("", key), []).append(text)
    _check_keys(f"{predictions} must have a prediction", right.keys() - found.keys(), list(right))
    _check_keys("references must have a text", found.keys() - right.keys(), list(found))
    return Examples(list(found.values()), [right[key] for key in found])


def _check_keys(rule: str, missing: set[str], order: list[str]) -> None:
    if missing:
        first = [key for key in order if key in missing][:3]
        raise ValueError(
            f"{rule} for every key, got none for {len(missing)} of {len(order)}: "
            f"{', '.join(first)}{', ...' * (len(missing) > 3)}."
        )


def _keyed_lines(file: Path) -> list[tuple[str, str]]:
    found = []
    is_dict = file.suffix == ".dict"
    for number, line in enumerate(_lines(file), start=1):
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
    return found


def _records(file: Path) -> list[tuple[int, dict[str, Any]]]:
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
    return found


def _lines(file: Path) -> list[str]:
    """Lines without their ends; a blank one is an empty text."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be text in UTF-8, got {error.reason}.") from None
    if not text.strip():
        raise ValueError(f"{file} must hold at least one example, and it is empty.")
    # Not `splitlines`, which also ends a line at a few characters that text may hold.
    return text.removesuffix("\n").replace("\r\n", "\n").split("\n")
