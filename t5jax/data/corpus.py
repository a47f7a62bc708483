"""Corpora: documents from files, folders, globs and the Hugging Face Hub, and chunks of their ids.

`datasets` caches what is read as Arrow files: memory-mapped, locked and written atomically, so a
second run or process starts at once.
"""

import atexit
import functools
import glob
import hashlib
import logging
import os
import re
import shutil
import tempfile
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


_log = logging.getLogger("t5jax")

_QUIET_BYTES = 100_000_000  # smaller files are read in seconds and need no progress bar
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Source of the training and evaluation text.

    Files hold one document per line (.txt), per object (.jsonl, .json) or per row (.csv, .tsv,
    .parquet). All except .parquet may be compressed (.gz, .bz2, .xz, .zst).

    Attributes:
      path: file, folder, glob such as 'c4/*.jsonl.gz', folder of `datasets.save_to_disk`, or
        Hugging Face Hub dataset 'owner/name'; defaults to the Python documentation on this
        machine, about 8 MB.
      name: configuration of the Hub dataset, such as 'en'.
      split: split of the Hub dataset; slices such as 'train[:1%]' work.
      column: column or JSON key that holds the text, or a path to a nested field, such as
        'translation.en'; plain text files have the column 'text'.
      holdout: fraction of the documents to hold out for evaluation, taken from the end.
      eval_path: separate source to evaluate on, in the same forms as `path`; if set, all of `path`
        is used for training.
      eval_split: split of `eval_path` if it is a Hub dataset; its configuration is `name`.

    Examples:
      >>> t5jax.data.DataConfig(path="allenai/c4", name="en", holdout=0.01).split
      'train'
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
                f"holdout must be in (0, 1), got {self.holdout}; use 0.05 to hold out one document "
                "in twenty, or set eval_path."
            )
        if self.eval_path is not None and self.holdout != type(self).holdout:
            raise ValueError(
                f"holdout must be left out with eval_path, got {self.holdout}; eval_path replaces "
                "the held-out documents."
            )
        for field in ("path", "name", "split", "column", "eval_path", "eval_split"):
            if getattr(self, field) == "":
                raise ValueError(f"{field} must not be empty; omit it to use its default.")
        same_split = self.eval_path == self.path and self.eval_split == self.split
        if self.eval_path is not None and same_split:
            raise ValueError(
                f"eval_path must differ from path, got {self.path!r} twice; omit eval_path to hold "
                "out the end of path."
            )


def read_corpus(config: DataConfig) -> "tuple[datasets.Dataset, datasets.Dataset]":
    r"""Read a corpus, or open its cached copy.

    Documents are ordered by file name, then by position in the file; blank ones are skipped.

    Args:
      config: source of the text.
    Returns:
      (train, heldout), each with the single column "text".
    Raises:
      FileNotFoundError: a source is neither on this machine nor on the Hub, or the Hub cannot be
        reached.
      ValueError: a source cannot be read, lacks the column or split, or has too few documents.

    Examples:
      >>> from pathlib import Path
      >>> _ = Path("corpus.txt").write_text("One.\nTwo.\nThree.\n")
      >>> train, heldout = t5jax.data.read_corpus(t5jax.data.DataConfig(path="corpus.txt"))
      >>> list(train["text"]), list(heldout["text"])
      (['One.', 'Two.'], ['Three.'])
    """
    files, eval_files = find_files(config.path), find_files(config.eval_path)
    _check_hub_options(config, files=files, eval_files=eval_files)
    shared = set(files) & set(eval_files)
    if shared:
        raise ValueError(
            f"eval_path must not share files with path, got {min(shared)!r} in both; move the "
            "evaluation documents to a separate folder."
        )
    train = _load(config.path, files, split=config.split, config=config)
    if config.eval_path is not None:
        return train, _load(config.eval_path, eval_files, split=config.eval_split, config=config)
    if len(train) < 2:
        raise CorpusError(
            f"{config.path} must have at least 2 documents, one to train on and one to hold out, "
            f"got {len(train)}; write one document per line in a .txt file, or set eval_path."
        )
    num_heldout = min(max(round(len(train) * config.holdout), 1), len(train) - 1)
    num_train = len(train) - num_heldout
    return train.select(range(num_train)), train.select(range(num_train, len(train)))


def corpus_documents(dataset: "datasets.Dataset") -> Iterator[str]:
    """Iterate over the documents of a dataset from `read_corpus`.

    Args:
      dataset: dataset with the column "text".
    Yields:
      The text of each document, read from disk in batches of 1000.

    Examples:
      >>> import datasets
      >>> dataset = datasets.Dataset.from_dict({"text": ["One.", "Two."]})
      >>> list(t5jax.data.corpus_documents(dataset))
      ['One.', 'Two.']
    """
    for batch in dataset.iter(batch_size=1000):
        yield from cast("dict[str, list[str]]", batch)["text"]


def find_files(path: str | None) -> list[str]:
    """List the files of a source in order; empty for the default corpus or a Hub name."""
    if path is None:
        return []
    local = os.path.abspath(os.path.expanduser(path))
    if is_saved_dataset(local):
        return []
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
            f"path must be a file, a folder, a glob or a Hub name 'owner/name', got {path!r}, "
            f"which does not exist in {os.getcwd()}; check the spelling."
        )
    if not files:
        raise FileNotFoundError(
            f"path must match a file of a known format, got {path!r}, which matches none; known "
            f"formats are {text_files.KNOWN_ENDINGS}."
        )
    for file in files:
        if not text_files.file_ending(file):
            raise ValueError(
                f"files must have a known ending, got {file!r}; rename it, or exclude it with a "
                f"narrower glob (known endings are {text_files.KNOWN_ENDINGS})."
            )
    counts = Counter(text_files.file_ending(file) for file in files)
    if not text_files.same_format(counts):
        raise ValueError(
            "files of one corpus must have one format, got "
            f"{', '.join(f'{count} {ending}' for ending, count in sorted(counts.items()))} in "
            f"{path!r}; select one with a glob such as 'folder/**/*.jsonl'."
        )
    return sorted(files)


def _check_hub_options(config: DataConfig, *, files: list[str], eval_files: list[str]) -> None:
    hub = config.path is not None and not files
    eval_hub = config.eval_path is not None and not eval_files
    saved = [path for path in (config.path, config.eval_path) if path and is_saved_dataset(path)]
    for option, applies, unused in (
        ("name", (hub or eval_hub) and not saved, None),
        ("split", hub, "train"),
        ("eval_split", eval_hub, "validation"),
    ):
        value = getattr(config, option)
        if not applies and value != unused:
            raise ValueError(
                f"{option} must be used with a Hub dataset, got {value!r} without one; omit "
                f"{option}, or use a dataset 'owner/name' instead of files."
            )


def _load(
    path: str | None, files: list[str], *, split: str, config: DataConfig
) -> "datasets.Dataset":
    if path is None:
        return _load_pydocs(config.column)
    if files:
        return _load_files(path, files, column=config.column)
    saved = is_saved_dataset(path)
    rows = saved_rows(path, split=split) if saved else hub_rows(path, config.name, split=split)
    return _text_column(rows, path, column=config.column)


def _load_pydocs(column: str) -> "datasets.Dataset":
    if column != "text":
        raise text_files.missing_column_error("the default corpus", column, ["text"])
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
    """Write texts to the cache, or open the cached copy with the same key."""
    import datasets
    from datasets import config
    from datasets.exceptions import DatasetGenerationError

    def rows() -> Iterator[dict[str, str]]:
        for text in texts():
            yield {"text": text}

    try:
        dataset = datasets.Dataset.from_generator(
            rows,
            cache_dir=_cache_folder(str(config.HF_DATASETS_CACHE)),
            features=datasets.Features({"text": datasets.Value("string")}),
            fingerprint=f"t5jax-{key}",
        )
        return cast(datasets.Dataset, dataset)
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
    raise cause  # the reader's error, without the wrapper of `datasets`


@functools.cache
def _cache_folder(cache: str) -> str:
    """Return the cache of `datasets`, or a temporary folder if that is not writable."""
    try:
        os.makedirs(cache, exist_ok=True)
        if os.access(cache, os.W_OK):
            return cache
    except OSError:
        pass
    folder = tempfile.mkdtemp(prefix="t5jax-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _log.warning(
        f"the cache of datasets must be writable, got {cache}; set HF_HOME to cache tokenized text"
    )
    return folder


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


def is_saved_dataset(path: str) -> bool:
    """Return True for a folder that `datasets.save_to_disk` wrote."""
    folder = os.path.expanduser(path)
    return any(
        os.path.isfile(os.path.join(folder, name)) for name in ("state.json", "dataset_dict.json")
    )


def saved_rows(path: str, *, split: str) -> "datasets.Dataset":
    """Load a folder of `datasets.save_to_disk`.

    Args:
      path: the folder.
      split: name of the split, if the folder has several.
    Returns:
      The rows, with all their columns.
    Raises:
      ValueError: the folder is damaged, or lacks the split.
    """
    import datasets

    try:
        data = datasets.load_from_disk(os.path.expanduser(path))
    except Exception as error:  # readers of Arrow files raise all kinds of errors
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} must be a saved dataset, got an error: {reason}.") from error
    if isinstance(data, datasets.Dataset):
        return data
    if split not in data:
        raise ValueError(f"{path} must have a split {split!r}, got {', '.join(map(str, data))}.")
    return data[split]


def is_hub_name(text: str) -> bool:
    """Return True if a text has the form 'owner/name'."""
    return _HUB_NAME.fullmatch(text) is not None and not text_files.file_ending(text)


def hub_rows(path: str, name: str | None, *, split: str) -> "datasets.Dataset":
    """Load a split of a Hugging Face Hub dataset, with all its columns.

    Args:
      path: name of the dataset, 'owner/name'.
      name: configuration of the dataset; None for its default.
      split: name of the split, or a slice such as 'train[:1%]'.
    Returns:
      The split, in the cache of `datasets`.
    Raises:
      FileNotFoundError: the dataset does not exist, or the Hub cannot be reached.
      ValueError: the dataset lacks the configuration or split, or cannot be read.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    try:
        return datasets.load_dataset(path, name, split=split)
    except ConnectionError as error:
        raise FileNotFoundError(
            f"{path!r} is not a local file or folder, and the Hugging Face Hub cannot be reached; "
            "check the path and the network (is HF_HUB_OFFLINE set?)."
        ) from error
    except DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"{path!r} is neither a local file or folder nor a Hugging Face Hub dataset that you "
            "can access; check the name, or run `hf auth login` if the dataset is private."
        ) from error
    except Exception as error:  # dataset loaders raise all kinds of errors
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(
            f"dataset {path!r} (name {name!r}, split {split!r}) cannot be read from the Hub: "
            f"{reason}; check its name and split."
        ) from error


def _text_column(dataset: "datasets.Dataset", path: str, *, column: str) -> "datasets.Dataset":
    """Return the non-empty texts of a column, or of a field such as "translation.en"."""
    import datasets

    top = column.partition(".")[0]
    if column not in dataset.column_names and top in dataset.column_names:
        dataset = dataset.select_columns([top]).flatten()
    if column not in dataset.column_names:
        raise text_files.missing_column_error(f"dataset {path!r}", column, dataset.column_names)
    feature = dataset.features[column]
    if getattr(feature, "dtype", None) not in ("string", "large_string", "string_view"):
        raise CorpusError(
            f"column {column!r} of dataset {path!r} must hold text, got {feature}; choose one of "
            f"{', '.join(dataset.column_names)}."
        )
    dataset = dataset.select_columns([column])
    if column != "text":
        dataset = dataset.rename_column(column, "text")
    if feature.dtype != "string":
        dataset = dataset.cast_column("text", datasets.Value("string"))
    filtered = dataset.filter(
        _have_text, input_columns="text", batched=True, desc="skipping empty documents"
    )
    if not len(filtered):
        raise _no_text(f"dataset {path!r}")
    # A filtered dataset adds an index lookup to every row; use it only if needed.
    return dataset if len(filtered) == len(dataset) else filtered


def _have_text(texts: list[str | None]) -> list[bool]:
    return [text is not None and bool(text.strip()) for text in texts]


def _no_text(where: str) -> CorpusError:
    return CorpusError(f"{where} must hold text, got only empty documents; use other data.")


def tokenize_dataset(documents: "datasets.Dataset", tokenizer: Tokenizer) -> "datasets.Dataset":
    """Tokenize the column "text" into the column "ids", with EOS after each document.

    The result is memory-mapped from the cache of `datasets`, which later calls reuse.

    Args:
      documents: dataset with the column "text".
      tokenizer: tokenizer; its fingerprint is part of the cache key.
    Returns:
      A dataset with the single column "ids", int32.

    Examples:
      >>> import datasets
      >>> documents = datasets.Dataset.from_dict({"text": ["a"]})
      >>> t5jax.data.tokenize_dataset(documents, t5jax.tokenizers.ByteTokenizer())["ids"][0]
      [100, 1]
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
    """Ids of all documents of a dataset as one sequence, read from disk on demand.

    Args:
      documents: dataset with the column "ids", from `tokenize_dataset`.

    Examples:
      >>> import datasets
      >>> documents = datasets.Dataset.from_dict({"ids": [[5, 6, 1], [7, 1]]})
      >>> stream = t5jax.data.TokenStream(documents)
      >>> len(stream), stream.slice(1, 4).tolist()
      (5, [6, 1, 7])
    """

    def __init__(self, documents: "datasets.Dataset"):
        column = documents.with_format("arrow").data.column("ids")
        # Arrow holds the ids of many documents in one buffer: these are views, not copies.
        self._buffers = [chunk.flatten().to_numpy() for chunk in column.chunks]
        self._ends = np.cumsum([len(buffer) for buffer in self._buffers], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def slice(self, start: int, stop: int) -> Int[np.ndarray, " S"]:
        """Return the ids in [start, stop).

        Args:
          start: first position.
          stop: position after the last.
        Returns:
          [stop - start] int32 ids, fewer at the end of the stream.
        """
        parts = []
        for i in range(int(np.searchsorted(self._ends, start, side="right")), len(self._buffers)):
            begin = int(self._ends[i]) - len(self._buffers[i])
            if begin >= stop:
                break
            parts.append(self._buffers[i][max(start - begin, 0) : stop - begin])
        return np.concatenate(parts).astype(np.int32)


class Chunks:
    """Equal-length chunks of a token stream; an incomplete last chunk is dropped.

    Args:
      stream: token stream.
      length: number of tokens in a chunk.
      name: description of the text, for the error message.
    Raises:
      ValueError: the stream is shorter than one chunk.

    Examples:
      >>> import datasets
      >>> documents = datasets.Dataset.from_dict({"ids": [[5, 6, 1], [7, 1]]})
      >>> chunks = t5jax.data.Chunks(t5jax.data.TokenStream(documents), 2)
      >>> len(chunks), chunks[1].tolist()
      (2, [1, 7])
    """

    def __init__(self, stream: TokenStream, length: int, *, name: str = "text"):
        if len(stream) < length:
            raise ValueError(
                f"the {name} must have at least one chunk of {length} tokens, got {len(stream)} "
                "tokens in total; use more text or a shorter input length."
            )
        self._stream = stream
        self._length = length

    def __len__(self) -> int:
        return len(self._stream) // self._length

    def __getitem__(self, index: int) -> Int[np.ndarray, " S"]:
        return self._stream.slice(index * self._length, (index + 1) * self._length)
