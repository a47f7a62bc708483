"""Tokenizer protocol, and helpers for its implementations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from t5jax.fileio import StrPath, write_atomically

CONFIG_FILE = "tokenizer_config.json"
MAX_SENTINELS = 100_000
# Pieces in one text that two tokenizers are compared on.
_PROBE_PIECES = 50


@runtime_checkable
class Tokenizer(Protocol):
    """Protocol of a tokenizer, which converts text to ids and back.

    Attributes:
      vocab_size: number of ids, sentinels included; a model's embedding table may be larger.
      pad_id: id of padding.
      eos_id: id of the end of a sequence (EOS).
      unk_id: id of unknown text.
      num_sentinels: number of sentinels, the maximum number of masked spans in an example.
      fingerprint: cache key, equal for tokenizers that return equal ids.

    Examples:
      >>> isinstance(t5.tokenizer, t5jax.tokenizers.Tokenizer)
      True
    """

    vocab_size: int
    pad_id: int
    eos_id: int
    unk_id: int
    num_sentinels: int
    fingerprint: str

    def sentinel_id(self, k: int) -> int:
        """Return the id of `<extra_id_k>`, which marks the k-th masked span.

        Args:
          k: number of the span, in [0, num_sentinels); 0 has the highest id.
        Returns:
          The id of the sentinel.
        Raises:
          ValueError: `k` is out of range.
        """
        ...

    def encode(self, text: str) -> list[int]:
        """Convert text to ids, without EOS and padding.

        Args:
          text: text, which may contain sentinels such as `<extra_id_0>`.
        Returns:
          The ids.
        """
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Convert one row of ids to text, up to the first EOS and without padding.

        Args:
          ids: [T] integers; ids outside the vocabulary are decoded as `unk_id`.
        Returns:
          The text.
        Raises:
          ValueError: `ids` is not one row of integers.
        """
        ...

    def pieces(self) -> list[bytes]:
        """Return the UTF-8 bytes that each id adds to decoded text.

        Returns:
          [vocab_size] bytes, possibly part of a character or empty. The first id of a text may
          lose its leading spaces.
        """
        ...

    def save(self, folder: StrPath) -> None:
        """Write the files that `load_tokenizer` and transformers read.

        Args:
          folder: output folder, created if missing.
        """


def check_same_tokenizer(tokenizer: Tokenizer, other: Tokenizer, *, where: str) -> None:
    """Check that a tokenizer gives the ids that a model was trained with.

    Args:
      tokenizer: tokenizer to use.
      other: tokenizer of the model.
      where: source of the model, for the message.
    Raises:
      ValueError: their fingerprints differ; the message shows both, and the first difference.
    """
    if tokenizer.fingerprint == other.fingerprint:
        return
    reason = _difference(tokenizer, other)
    if reason is not None:
        raise ValueError(
            f"the tokenizer must be that of {where}, {other.fingerprint:.12}, got "
            f"{tokenizer.fingerprint:.12}: {reason}; leave out the tokenizer, or set "
            "allow_other_tokenizer."
        )


def _difference(tokenizer: Tokenizer, other: Tokenizer) -> str | None:
    """Describe the first difference of two tokenizers; None if they give the same ids."""
    if tokenizer.vocab_size != other.vocab_size:
        return f"{tokenizer.vocab_size} ids instead of {other.vocab_size}"
    pieces = []
    for i in range(tokenizer.vocab_size):
        ours, theirs = tokenizer.decode([i]), other.decode([i])
        if ours != theirs:
            return f"id {i} is {ours!r} instead of {theirs!r}"
        pieces.append(ours)
    # Files of two formats may hold the same tokenizer.
    for i in range(0, len(pieces), _PROBE_PIECES):
        text = "".join(pieces[i : i + _PROBE_PIECES])
        if tokenizer.encode(text) != other.encode(text):
            return "texts are divided differently"
    return None


def encode_with_eos(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode text and append EOS, as T5 expects of every input and target.

    Args:
      tokenizer: tokenizer.
      text: text to encode.
    Returns:
      The ids, ending in EOS.

    Examples:
      >>> t5jax.tokenizers.encode_with_eos(t5jax.tokenizers.ByteTokenizer(), "a")
      [100, 1]
    """
    return [*tokenizer.encode(text), tokenizer.eos_id]


def checked_sentinel(k: int, count: int) -> int:
    """Check the number of a sentinel, and return it.

    Raises:
      ValueError: `k` is not in [0, count).
    """
    if not 0 <= k < count:
        raise ValueError(f"sentinel k must be in [0, {count}), got {k}; mask fewer, longer spans.")
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
    """Write a tokenizer_config.json for transformers.

    Args:
      folder: output folder, created if missing.
      kind: tokenizer class in transformers.
      extra_ids: number of sentinels that the class appends to the vocabulary.
      pad: padding piece.
      eos: EOS piece.
      unk: piece for unknown text.
    """
    config = {"tokenizer_class": kind, "extra_ids": extra_ids, "legacy": False}
    config |= {"pad_token": pad, "eos_token": eos, "unk_token": unk}
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_atomically(Path(folder) / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
