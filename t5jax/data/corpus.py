"""Corpora: files, folders, globs and hub data sets as documents on disk, and as chunks of ids.

`datasets` keeps what is read here: Arrow files in its cache, memory-mapped, locked and written
atomically, so that a second run, or a second process, starts at once.
"""

import functools
import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from jaxtyping import Int

from t5jax.data import pydocs, text_files
from t5jax.data.text_files import CorpusError
from t5jax.tokenizers import Tokenizer, encode_with_eos

if TYPE_CHECKING:
    import datasets


_QUIET_BYTES = 100_000_000  # files of this size are read in seconds, without a progress bar
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Source of the text.

    Files hold one document per line (.txt), per object (.jsonl, .json), or per row (.csv, .tsv,
    .parquet); all but .parquet may be compressed (.gz, .bz2, .xz, .zst).

    Attributes:
      path: A file, a folder, a glob such as 'c4/*.jsonl.gz', or a data set on the Hugging Face
        hub, 'owner/name'.  Without it: the Python documentation on this machine, about 8 MB.
      name: Configuration of the hub data set, such as 'en'.
      split: Split of the hub data set; slices such as 'train[:1%]' work.
      column: Column or JSON key that holds the text; plain text files have the column 'text'.
      holdout: Fraction of the documents, taken from the end, that is held out for evaluation.
      eval_path: A separate source to evaluate on, in the form of `path`, which is then used as a
        whole.
      eval_split: Split of `eval_path`, if that is a hub data set; it shares `name` with `path`.
    """

    path: str | None = None

    name: str | None = None

    split: str = "train"

    column: str = "text"

    holdout: float = 0.05

    eval_path: str | None = None

    eval_split: str = "validation"

    def __post_init__(self):
        if not 0 < self.holdout < 1:
            raise ValueError(
                f"holdout must be in (0, 1), got {self.holdout}; 0.05 keeps one document in "
                "twenty for evaluation, eval_path names other documents instead."
            )
        if self.eval_path is not None and self.holdout != type(self).holdout:
            raise ValueError(
                f"holdout must be left out with eval_path, got {self.holdout}; nothing is held "
                "out of path then."
            )
        for field in ("path", "name", "split", "column", "eval_path", "eval_split"):
            if getattr(self, field) == "":
                raise ValueError(f"{field} must not be empty; leave it out to use its default.")
        same_split = self.eval_path == self.path and self.eval_split == self.split
        if self.eval_path is not None and same_split:
            raise ValueError(
                f"eval_path must differ from path, got {self.path!r} twice; leave eval_path out "
                "to hold out the end of path."
            )


def read_corpus(config: DataConfig) -> "tuple[datasets.Dataset, datasets.Dataset]":
    """Read a corpus, or its copy in the cache.

    Documents are in the order of file names, then of their position in the file; those without text
    are left out.

    Args:
      config: source of the text.
    Returns:
      (train, heldout), each with the one column "text".
    Raises:
      FileNotFoundError: a source is neither on this machine nor on the hub, or the hub cannot be
        reached.
      ValueError: a source cannot be read, has no such column or split, or has too few documents.
    """
    files, eval_files = _find(config.path), _find(config.eval_path)
    _check_hub_options(config, files=files, eval_files=eval_files)
    shared = set(files) & set(eval_files)
    if shared:
        raise ValueError(
            f"eval_path must name other files than path, got {min(shared)!r} in both; move the "
            "documents to evaluate on to a folder of their own."
        )
    train = _load(config.path, files, split=config.split, config=config)
    if config.eval_path is not None:
        return train, _load(config.eval_path, eval_files, split=config.eval_split, config=config)
    if len(train) < 2:
        raise CorpusError(
            f"{config.path} must have 2 documents at least, one to train on and one to hold out, "
            f"got {len(train)}; a .txt file has one document per line, eval_path names a second "
            "source."
        )
    num_heldout = min(max(round(len(train) * config.holdout), 1), len(train) - 1)
    num_train = len(train) - num_heldout
    return train.select(range(num_train)), train.select(range(num_train, len(train)))


def corpus_documents(dataset: "datasets.Dataset") -> Iterator[str]:
    """Iterate over the texts of a data set from `read_corpus`, read from disk in batches."""
    for batch in dataset.iter(batch_size=1000):
        yield from cast("dict[str, list[str]]", batch)["text"]


def _find(path: str | None) -> list[str]:
    """List the files of a source in order; the default corpus and a hub name have none."""
    if path is None:
        return []
    local = os.path.abspath(os.path.expanduser(path))
    if os.path.isdir(local):
        below = glob.glob(os.path.join(glob.escape(local), "**", "*"), recursive=True)
        files = [file for file in below if text_files.file_ending(file) and os.path.isfile(file)]
    elif os.path.exists(local):
        files = [local]
    elif glob.has_magic(local):
        files = [file for file in glob.glob(local, recursive=True) if os.path.isfile(file)]
    elif is_hub_name(path):
        return []
    else:
        raise FileNotFoundError(
            f"path must be a file, a folder, a glob or a hub name 'owner/name', got {path!r}, "
            f"which does not exist in {os.getcwd()}; correct it."
        )
    if not files:
        raise FileNotFoundError(
            f"path must match a file of a known format, got {path!r}, which matches none; known "
            f"are {text_files.KNOWN_ENDINGS}."
        )
    for file in files:
        if not text_files.file_ending(file):
            raise ValueError(
                f"files must have a known ending, got {file!r}; known are "
                f"{text_files.KNOWN_ENDINGS}: rename it, or leave it out by a narrower glob."
            )
    counts = Counter(text_files.file_ending(file) for file in files)
    if not text_files.same_format(counts):
        raise ValueError(
            "files of one corpus must have one format, got "
            f"{', '.join(f'{count} {ending}' for ending, count in sorted(counts.items()))} in "
            f"{path!r}; choose one by a glob such as 'folder/**/*.jsonl'."
        )
    return sorted(files)


def _check_hub_options(config: DataConfig, *, files: list[str], eval_files: list[str]) -> None:
    hub = config.path is not None and not files
    eval_hub = config.eval_path is not None and not eval_files
    for option, applies, unused in (
        ("name", hub or eval_hub, None),
        ("split", hub, "train"),
        ("eval_split", eval_hub, "validation"),
    ):
        value = getattr(config, option)
        if not applies and value != unused:
            raise ValueError(
                f"{option} must go with a data set on the hub, got {value!r} without one; leave "
                f"{option} out, or give 'owner/name' instead of files."
            )


def _load(
    path: str | None, files: list[str], *, split: str, config: DataConfig
) -> "datasets.Dataset":
    if path is None:
        return _load_pydocs(config.column)
    if files:
        return _load_files(path, files, column=config.column)
    return _load_hub(path, config.name, split=split, column=config.column)


def _load_pydocs(column: str) -> "datasets.Dataset":
    if column != "text":
        raise text_files.missing_column_error("the documentation on this machine", column, ["text"])
    sources = pydocs.sources(pydocs.roots())
    return _store(functools.partial(pydocs.documents, sources), key=pydocs.fingerprint(sources))


def _load_files(path: str, files: list[str], *, column: str) -> "datasets.Dataset":
    key = hashlib.sha256(f"reader {text_files.VERSION}\n{column}".encode())
    size = 0
    for file in files:
        status = os.stat(file)
        size += status.st_size
        key.update(f"\n{file} {status.st_size} {status.st_mtime_ns}".encode())
    with _progress_bars(size > _QUIET_BYTES):
        return _store(functools.partial(_texts, path, files, column), key=key.hexdigest()[:16])


def _texts(path: str, files: list[str], column: str) -> Iterator[str]:
    empty = True
    for file in files:
        for text in text_files.read_texts(file, column):
            empty = False
            yield text
    if empty:
        raise _no_text(path)


def _store(texts: Callable[[], Iterator[str]], *, key: str) -> "datasets.Dataset":
    """Write texts to the cache, or open what was written there under the same key."""
    import datasets
    from datasets.exceptions import DatasetGenerationError

    def rows() -> Iterator[dict[str, str]]:
        for text in texts():
            yield {"text": text}

    try:
        dataset = datasets.Dataset.from_generator(
            rows,
            features=datasets.Features({"text": datasets.Value("string")}),
            fingerprint=f"t5jax-{key}",
        )
        return cast(datasets.Dataset, dataset)
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
    raise cause  # the error of the reader, without the one that `datasets` wraps it in


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    import datasets

    if shown or datasets.utils.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def is_hub_name(text: str) -> bool:
    """Return True if a text has the form 'owner/name'."""
    return _HUB_NAME.fullmatch(text) is not None and not text_files.file_ending(text)


def hub_rows(path: str, name: str | None, *, split: str) -> "datasets.Dataset":
    """Load a split of a data set on the Hugging Face hub, with all its columns.

    Args:
      path: name of the data set, 'owner/name'.
      name: name of its configuration, if it has several.
      split: name of the split, or a slice of it.
    Raises:
      FileNotFoundError: the data set does not exist, or the hub cannot be reached.
      ValueError: it has no such configuration or split, or cannot be read.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    try:
        return datasets.load_dataset(path, name, split=split)
    except ConnectionError as error:
        raise FileNotFoundError(
            f"{path!r} is no file or folder here, and the Hugging Face hub cannot be reached to "
            "look for a data set of that name; correct the path, or go online (is HF_HUB_OFFLINE "
            "set?)."
        ) from error
    except DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"{path!r} is no file or folder here, and no data set on the Hugging Face hub that "
            "you may read; correct the name, or log in with `hf auth login` if it is private."
        ) from error
    except Exception as error:  # whatever a loader of the hub may raise
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(
            f"data set {path!r} (name {name!r}, split {split!r}) cannot be read from the hub: "
            f"{reason}; choose a name and a split that it has."
        ) from error


def _load_hub(path: str, name: str | None, *, split: str, column: str) -> "datasets.Dataset":
    import datasets

    dataset = hub_rows(path, name, split=split)
    if column not in dataset.column_names:
        raise text_files.missing_column_error(f"data set {path!r}", column, dataset.column_names)
    feature = dataset.features[column]
    if getattr(feature, "dtype", None) not in ("string", "large_string", "string_view"):
        raise CorpusError(
            f"column {column!r} of data set {path!r} must hold text, got {feature}; choose one of "
            f"{', '.join(dataset.column_names)}."
        )
    dataset = dataset.select_columns([column])
    if column != "text":
        dataset = dataset.rename_column(column, "text")
    if feature.dtype != "string":
        dataset = dataset.cast_column("text", datasets.Value("string"))
    filtered = dataset.filter(
        _have_text, input_columns="text", batched=True, desc="leaving out empty documents"
    )
    if not len(filtered):
        raise _no_text(f"data set {path!r}")
    # A filtered data set looks every row up in a table of indices: only if it is needed.
    return dataset if len(filtered) == len(dataset) else filtered


def _have_text(texts: list[str | None]) -> list[bool]:
    return [text is not None and bool(text.strip()) for text in texts]


def _no_text(where: str) -> CorpusError:
    return CorpusError(f"{where} must hold text, got nothing but empty documents; use other data.")


def tokenize_dataset(documents: "datasets.Dataset", tokenizer: Tokenizer) -> "datasets.Dataset":
    """Tokenize the column `text` to the column `ids`, with EOS at the end of each document.

    The result is memory-mapped from the cache of `datasets`, where the next call reads it again.
    """
    import datasets

    def encode(texts: list[str]) -> dict[str, list[list[int]]]:
        return {"ids": [encode_with_eos(tokenizer, text) for text in texts]}

    identity = hashlib.sha256(f"{documents._fingerprint} {tokenizer.fingerprint}".encode())
    return documents.map(
        encode,
        input_columns="text",
        batched=True,
        remove_columns=documents.column_names,
        features=datasets.Features({"ids": datasets.List(datasets.Value("int32"))}),
        new_fingerprint=identity.hexdigest()[:32],
        desc="tokenizing",
    )


class TokenStream:
    """The ids of all documents of a data set as one sequence, with EOS after each document.

    They are read from disk as they are needed.
    """

    def __init__(self, documents: "datasets.Dataset"):
        """Create a stream of a data set with the column `ids`, as `tokenize_dataset` makes it."""
        column = documents.with_format("arrow").data.column("ids")
        # Arrow holds the ids of many documents in one buffer: these are views, not copies.
        self._buffers = [chunk.flatten().to_numpy() for chunk in column.chunks]
        self._ends = np.cumsum([len(buffer) for buffer in self._buffers], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def slice(self, start: int, stop: int) -> Int[np.ndarray, " S"]:
        """Return the ids at positions from `start` up to `stop`, int32."""
        parts = []
        for i in range(int(np.searchsorted(self._ends, start, side="right")), len(self._buffers)):
            begin = int(self._ends[i]) - len(self._buffers[i])
            if begin >= stop:
                break
            parts.append(self._buffers[i][max(start - begin, 0) : stop - begin])
        return np.concatenate(parts).astype(np.int32)


class Chunks:
    """Chunks of equal length of a token stream; an incomplete last chunk is left out."""

    def __init__(self, stream: TokenStream, length: int, *, name: str = "text"):
        if len(stream) < length:
            raise ValueError(
                f"the {name} must have at least one chunk of {length} tokens, got {len(stream)} "
                "tokens in all; use more text or a shorter input length."
            )
        self._stream = stream
        self._length = length

    def __len__(self) -> int:
        return len(self._stream) // self._length

    def __getitem__(self, index: int) -> Int[np.ndarray, " S"]:
        return self._stream.slice(index * self._length, (index + 1) * self._length)
