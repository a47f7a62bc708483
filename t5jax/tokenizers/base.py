"""The protocol of tokenizers, and what several of them share."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from t5jax.fileio import StrPath, write_atomically

CONFIG_FILE = "tokenizer_config.json"
MAX_SENTINELS = 100_000


@runtime_checkable
class Tokenizer(Protocol):
    """A tokenizer: text to ids and back.

    Attributes:
      vocab_size: number of ids, sentinels included; a model's embedding table may be larger.
      pad_id: id of padding.
      eos_id: id of the end of a sequence.
      unk_id: id of text without any other id.
      num_sentinels: number of sentinels, and so of masked spans in one example.
      fingerprint: equal for tokenizers that give equal ids; a key for caches of ids.
    """

    vocab_size: int
    pad_id: int
    eos_id: int
    unk_id: int
    num_sentinels: int
    fingerprint: str

    def sentinel_id(self, k: int) -> int:
        """Return the id of `<extra_id_k>`, which marks the k-th masked span; k = 0 is highest."""
        ...

    def encode(self, text: str) -> list[int]:
        """Convert a text to ids, without end of sequence and padding; it may spell sentinels."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Convert one row of ids to text, up to its first `eos_id` and without padding.

        Args:
          ids: integers; one outside of the vocabulary counts as `unk_id`.
        """
        ...

    def pieces(self) -> list[bytes]:
        """Return the UTF-8 bytes that each id adds to a decoded text, by id.

        An id may add part of a character, or nothing.  The first id of a text may lose its leading
        spaces.
        """
        ...

    def save(self, folder: StrPath) -> None:
        """Write the files that `load_tokenizer` and transformers read; creates the folder."""


def encode_with_eos(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode a text, with EOS at the end, as every input and target of a T5 model has it.

    Example:
      >>> from t5jax.tokenizers import ByteTokenizer
      >>> encode_with_eos(ByteTokenizer(), "a")
      [100, 1]
    """
    return [*tokenizer.encode(text), tokenizer.eos_id]


def checked_sentinel(k: int, count: int) -> int:
    """Return the number of a sentinel.

    Raises:
      ValueError: `k` is not in [0, count).
    """
    if not 0 <= k < count:
        raise ValueError(f"sentinel k must be in [0, {count}), got {k}; hide fewer, longer spans.")
    return k


def content_ids(ids: Sequence[int] | np.ndarray, eos_id: int) -> list[int]:
    """Return the ids before the first `eos_id`, as a list.

    Raises:
      ValueError: `ids` is not one row of integers.
    """
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"ids must be one row of integers, got {array.dtype}{[*array.shape]}.")
    values = array.tolist()
    return values[: values.index(eos_id)] if eos_id in values else values


def save_config(
    folder: StrPath, kind: str, *, extra_ids: int, pad: str, eos: str, unk: str
) -> None:
    """Write a tokenizer_config.json that transformers reads; creates the folder.

    Args:
      folder: to write to.
      kind: class of the tokenizer in transformers.
      extra_ids: number of sentinels that it appends to the vocabulary.
      pad: piece that pads.
      eos: piece that ends a sequence.
      unk: piece of unknown text.
    """
    config = {"tokenizer_class": kind, "extra_ids": extra_ids, "legacy": False}
    config |= {"pad_token": pad, "eos_token": eos, "unk_token": unk}
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_atomically(Path(folder) / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
