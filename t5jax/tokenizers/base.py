"""Tokenizer protocol and shared helpers."""

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
    """Protocol of a tokenizer, which converts text to ids and back.

    Attributes:
      vocab_size: number of ids, including sentinels; a model's embedding table may be larger.
      pad_id: id of the padding token.
      eos_id: id of the end-of-sequence (EOS) token.
      unk_id: id of unknown text.
      num_sentinels: number of sentinels, which limits the masked spans per example.
      fingerprint: cache key; equal for tokenizers that produce equal ids.

    Example:
      >>> from t5jax.tokenizers import ByteTokenizer, Tokenizer
      >>> isinstance(ByteTokenizer(), Tokenizer)
      True
    """

    vocab_size: int
    pad_id: int
    eos_id: int
    unk_id: int
    num_sentinels: int
    fingerprint: str

    def sentinel_id(self, k: int) -> int:
        """Return the id of a sentinel.

        Args:
          k: index of the masked span, in [0, num_sentinels).
        Returns:
          The id of `<extra_id_k>`.
        """
        ...

    def encode(self, text: str) -> list[int]:
        """Encode a text.

        Args:
          text: any text; `<extra_id_k>` in it becomes a sentinel.
        Returns:
          The ids, without EOS and padding.
        """
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Decode one sequence, up to its first `eos_id`.

        Args:
          ids: [S] integers; ids outside the vocabulary count as `unk_id`, padding is skipped.
        Returns:
          The text.
        """
        ...

    def pieces(self) -> list[bytes]:
        """Return the UTF-8 bytes that each id adds to a decoded text.

        Returns:
          A list indexed by id.  An entry may be empty or part of a character; `decode` may strip
          the leading spaces of the first id.
        """
        ...

    def save(self, folder: StrPath) -> None:
        """Save the files that `load_tokenizer` and transformers read.

        Args:
          folder: destination, created if missing.
        """


def encode_with_eos(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode a text and append EOS, which ends every input and target of a T5 model.

    Args:
      tokenizer: tokenizer to encode with.
      text: text to encode.
    Returns:
      The ids, ending with `tokenizer.eos_id`.

    Example:
      >>> from t5jax.tokenizers import ByteTokenizer
      >>> encode_with_eos(ByteTokenizer(), "a")
      [100, 1]
    """
    return [*tokenizer.encode(text), tokenizer.eos_id]


def checked_sentinel(k: int, count: int) -> int:
    """Return `k` if it is the index of a sentinel.

    Raises:
      ValueError: `k` is not in [0, count).
    """
    if not 0 <= k < count:
        raise ValueError(f"sentinel k must be in [0, {count}), got {k}; mask fewer, longer spans.")
    return k


def content_ids(ids: Sequence[int] | np.ndarray, eos_id: int) -> list[int]:
    """Return the ids before the first `eos_id` as a list.

    Raises:
      ValueError: `ids` is not a 1D sequence of integers.
    """
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(
            f"ids must be a 1D sequence of integers, got {array.dtype}{[*array.shape]}."
        )
    values = array.tolist()
    return values[: values.index(eos_id)] if eos_id in values else values


def save_config(
    folder: StrPath, kind: str, *, extra_ids: int, pad: str, eos: str, unk: str
) -> None:
    """Write a tokenizer_config.json that transformers reads.

    Args:
      folder: destination, created if missing.
      kind: tokenizer class in transformers.
      extra_ids: number of sentinels that the class appends to the vocabulary.
      pad: padding token.
      eos: EOS token.
      unk: unknown token.
    """
    config = {"tokenizer_class": kind, "extra_ids": extra_ids, "legacy": False}
    config |= {"pad_token": pad, "eos_token": eos, "unk_token": unk}
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_atomically(Path(folder) / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
