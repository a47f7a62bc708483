"""Text <-> ids: T5's SentencePiece vocabularies, ByT5's bytes, and training a new vocabulary.

`load_tokenizer` also finds the vocabularies of `fast_tokenizer`.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from t5jax.fileio import write_atomically

CONFIG_FILE = "tokenizer_config.json"
MAX_SENTINELS = 100_000
StrPath = str | os.PathLike[str]


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the library asks of a tokenizer.

    Attributes:
      vocab_size: number of ids, sentinels included; a model's embedding table may be larger.
      pad_id: id that fills up short sequences.
      eos_id: id that ends a sequence.
      unk_id: id of whatever has no other id.
      num_sentinels: how many hidden spans one example can mark.
      fingerprint: equal for tokenizers that give equal ids; a key for caches of ids.
    """

    vocab_size: int
    pad_id: int
    eos_id: int
    unk_id: int
    num_sentinels: int
    fingerprint: str

    def sentinel_id(self, k: int) -> int:
        """Id of `<extra_id_k>`, which marks the k-th hidden span; k = 0 has the highest id."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, sentinels included; no end of sequence, no padding."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of one row up to its first `eos_id`, without padding, foreign ids as `unk_id`."""
        ...

    def pieces(self) -> list[bytes]:
        """What each id adds to a decoded text that has begun, as UTF-8; b"" for none.

        One id may hold part of a character.  A text's first piece may lose the spaces it begins
        with.
        """
        ...

    def save(self, folder: StrPath) -> None:
        """Write the files that `load_tokenizer` and transformers read; makes the folder."""


def encode_with_eos(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode a text, with EOS at the end, as every input and target of a T5 model has it.

    Example:
      >>> from t5jax.tokenizers import ByteTokenizer
      >>> encode_with_eos(ByteTokenizer(), "a")
      [100, 1]
    """
    return [*tokenizer.encode(text), tokenizer.eos_id]


def checked_sentinel(k: int, count: int) -> int:
    if not 0 <= k < count:
        raise ValueError(f"sentinel k must be in [0, {count}), got {k}; hide fewer, longer spans.")
    return k


def content_ids(ids: Sequence[int] | np.ndarray, eos_id: int) -> list[int]:
    """`ids` before the first `eos_id`."""
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"ids must be one row of integers, got {array.dtype}{[*array.shape]}.")
    values = array.tolist()
    return values[: values.index(eos_id)] if eos_id in values else values


def save_config(folder: StrPath, kind: str, extra_ids: int, *special: str) -> None:
    config = {"tokenizer_class": kind, "extra_ids": extra_ids, "legacy": False}
    config |= zip(("pad_token", "eos_token", "unk_token"), special, strict=True)
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_atomically(Path(folder) / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
