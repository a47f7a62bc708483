"""Files of predictions and references."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from t5jax.data import file_suffix, numbered_records, read_lines
from t5jax.fileio import JsonObject

# The suffix that numbers additional references of a key, such as "read(2)".
_VARIANT = re.compile(r"\(\d+\)$")
_OTHER_FORMATS = (".json", ".csv", ".parquet")
# Row number and content.
_Records = list[tuple[int, JsonObject]]


class Predictions(NamedTuple):
    """Predictions with their references.

    Attributes:
      predictions: one text per example.
      references: one or more texts per prediction.

    Examples:
      >>> predictions, references = t5jax.evaluation.Predictions(["a cat"], [["a cat", "cat"]])
      >>> len(references[0])
      2
    """

    predictions: list[str]
    references: list[list[str]]


def read_predictions(
    predictions: Path, references: Sequence[Path], *, keyed: bool = False
) -> Predictions:
    """Read predictions and their references.

    A .jsonl file has one object per example, with "prediction" (or "output"), and "references" (a
    list) or "target".  A .tsv file has lines `key<TAB>text`; additional references of a key take
    additional lines, whose keys may end in a number such as "(2)".  A .dict file has CMUdict's
    format, with spaces and comments.  Any other file has one example per line, blank lines
    included; the other formats skip blank lines.  Files may be compressed: .gz, .bz2, .xz or .zst.

    Args:
      predictions: predictions file.
      references: reference files, each with one or more references per example; empty if the
        predictions file includes them.
      keyed: whether to read files with other suffixes as .tsv; implied if any file is a .tsv or
        .dict.
    Returns:
      The examples, in the order of the predictions.
    Raises:
      ValueError: a file is empty or damaged, or the files do not match.
      OSError: a file cannot be read.

    Examples:
      >>> from pathlib import Path
      >>> _ = Path("run.tsv").write_text("read\\tR IY D")
      >>> _ = Path("words.dict").write_text("read R EH D")
      >>> t5jax.evaluation.read_predictions(Path("run.tsv"), [Path("words.dict")])
      Predictions(predictions=['R IY D'], references=[['R EH D']])
    """
    suffixes = {_suffix(file) for file in (predictions, *references)}
    if keyed and suffixes == {".jsonl"}:
        raise ValueError(
            f"keyed requires files with keys, got {predictions}, and .jsonl has none; drop --keyed."
        )
    if keyed or suffixes & {".tsv", ".dict"}:
        if ".jsonl" in suffixes:
            raise ValueError(
                f"{predictions} and its references must all have keys or none, got .jsonl together "
                "with a keyed file; write all as .jsonl, or all as .tsv."
            )
        return _read_keyed(predictions, references)
    records = _read_records(predictions) if _suffix(predictions) == ".jsonl" else None
    texts = _read_lines(predictions) if records is None else _predictions(predictions, records)
    if not references:
        if records is None:
            raise ValueError(
                f"references must be set for {predictions}, got none; only a .jsonl file can "
                "include them."
            )
        return Predictions(texts, _references(predictions, records))
    collected: list[list[str]] = [[] for _ in texts]
    for file in references:
        if _suffix(file) == ".jsonl":
            listed = _references(file, _read_records(file))
        else:
            listed = [[line] for line in _read_lines(file)]
        if len(listed) != len(texts):
            raise ValueError(
                f"{predictions} and {file} must have the same number of examples, got {len(texts)} "
                f"and {len(listed)}."
            )
        for known, more in zip(collected, listed, strict=True):
            known += more
    return Predictions(texts, collected)


def _suffix(file: Path) -> str:
    suffix = file_suffix(str(file))
    if suffix in _OTHER_FORMATS:
        raise ValueError(
            f"{file} must be .jsonl, .tsv, .dict or lines of text, got {suffix}; convert it to "
            ".jsonl, one object per example."
        )
    return suffix


def _predictions(file: Path, records: _Records) -> list[str]:
    texts = []
    for row, record in records:
        text = record.get("prediction", record.get("output"))
        if not isinstance(text, str):
            raise ValueError(
                f"{file} must have a string under 'prediction' or 'output', got {record!s:.60} in "
                f"row {row}."
            )
        texts.append(text)
    return texts


def _references(file: Path, records: _Records) -> list[list[str]]:
    references = []
    for row, record in records:
        texts = record.get("references", record.get("target"))
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or {type(text) for text in texts} != {str}:
            raise ValueError(
                f"{file} must have a list of strings under 'references' or a string under "
                f"'target', got {record!s:.60} in row {row}."
            )
        references.append(texts)
    return references


def _read_keyed(predictions: Path, references: Sequence[Path]) -> Predictions:
    if not references:
        raise ValueError(f"references must be set for {predictions}, got none.")
    predicted: dict[str, str] = {}
    for key, text in _read_items(predictions):
        if key in predicted:
            raise ValueError(f"{predictions} must have one prediction per key, got two for {key}.")
        predicted[key] = text
    collected: dict[str, list[str]] = {}
    keys: dict[Path, set[str]] = {}
    for file in references:
        keys[file] = set()
        for written, text in _read_items(file):
            key = written if written in predicted else _VARIANT.sub("", written)
            collected.setdefault(key, []).append(text)
            keys[file].add(key)
    unpredicted = collected.keys() - predicted.keys()
    _check_keys(f"{predictions} must have a prediction", unpredicted, list(collected))
    for file, known in keys.items():
        _check_keys(f"{file} must have a text", predicted.keys() - known, list(predicted))
    return Predictions(list(predicted.values()), [collected[key] for key in predicted])


def _check_keys(rule: str, missing: set[str], order: list[str]) -> None:
    if missing:
        first = [key for key in order if key in missing][:3]
        raise ValueError(
            f"{rule} for every key, got none for {len(missing)} of {len(order)}: "
            f"{', '.join(first)}{', ...' * (len(missing) > 3)}."
        )


def _read_items(file: Path) -> list[tuple[str, str]]:
    """Read the keys and texts of a .tsv or .dict file.

    There is no header, and quotes are part of the text.
    """
    items = []
    is_dict = _suffix(file) == ".dict"
    for row, line in enumerate(_read_lines(file), start=1):
        if not line.strip() or (is_dict and line.startswith(";;;")):
            continue
        if is_dict:
            key, _, text = line.partition(" #")[0].partition(" ")
            text = text.strip()
        else:
            key, tab, text = line.partition("\t")
            if not tab:
                raise ValueError(
                    f"{file} must have a key, a tab and a text on each line, got {line!r:.60} in "
                    f"row {row}."
                )
        items.append((key, text))
    return _not_empty(file, items)


def _read_records(file: Path) -> _Records:
    return _not_empty(file, list(numbered_records(str(file))))


def _read_lines(file: Path) -> list[str]:
    return _not_empty(file, list(read_lines(str(file))))


T = TypeVar("T")


def _not_empty(file: Path, examples: list[T]) -> list[T]:
    if not examples:
        raise ValueError(f"{file} must hold at least one example, got none.")
    return examples
