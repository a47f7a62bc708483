"""ByT5's tokenizer: UTF-8 bytes."""

import re
from collections.abc import Sequence

import numpy as np

from t5jax.fileio import StrPath
from t5jax.tokenizers.base import Tokenizer, checked_sentinel, content_ids, save_config

_BYTE_SENTINEL = re.compile(rb"<extra_id_([0-9]|[1-9][0-9]|1[01][0-9]|12[0-4])>")

# Decoded bytes of each id: one byte, or a sentinel for bytes that UTF-8 never uses.
_BYTES = [b""] * 3 + [bytes([byte]) for byte in range(0xF5)]
_BYTES += [f"<extra_id_{0xFF - byte}>".encode() for byte in range(0xF5, 0x100)]


class ByteTokenizer(Tokenizer):
    """ByT5's vocabulary (arXiv:2105.13626): padding 0, EOS 1, unknown 2, and byte b as b + 3.

    Sentinel k is 258 - k, as in ByT5's pre-training; Hugging Face's ByT5Tokenizer uses 259 + k, ids
    that no published ByT5 was trained on. The first eleven sentinels share their ids with the bytes
    0xFF ... 0xF5, which UTF-8 never uses, and are decoded as `<extra_id_k>`; the others are decoded
    as bytes. Invalid UTF-8 is dropped from decoded text.

    Examples:
      >>> t5jax.tokenizers.ByteTokenizer().encode("T5")
      [87, 56]
    """

    vocab_size, num_sentinels = 259, 125
    pad_id, eos_id, unk_id = 0, 1, 2
    fingerprint = "bytes"

    def sentinel_id(self, k: int) -> int:
        """Return the id of `<extra_id_k>`.

        Args:
          k: number of the span, in [0, 125).
        Returns:
          258 - k.
        Raises:
          ValueError: `k` is out of range.
        """
        return self.vocab_size - 1 - checked_sentinel(k, self.num_sentinels)

    def encode(self, text: str) -> list[int]:
        """Convert text to ids, without EOS and padding.

        Args:
          text: text, which may contain sentinels such as `<extra_id_0>`.
        Returns:
          The ids, one per byte or sentinel.
        """
        content = text.encode("utf-8", "replace")
        content = _BYTE_SENTINEL.sub(lambda match: bytes([0xFF - int(match[1])]), content)
        return [byte + 3 for byte in content]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Convert one row of ids to text, up to the first EOS and without padding.

        Args:
          ids: [T] integers; ids outside the vocabulary are skipped.
        Returns:
          The text.
        Raises:
          ValueError: `ids` is not one row of integers.
        """
        spelled = [_BYTES[i] for i in content_ids(ids, self.eos_id) if 0 <= i < self.vocab_size]
        return b"".join(spelled).decode("utf-8", errors="ignore")

    def pieces(self) -> list[bytes]:
        """Return the bytes that each id adds to decoded text, by id."""
        return list(_BYTES)

    def save(self, folder: StrPath) -> None:
        """Write tokenizer_config.json.

        Args:
          folder: output folder, created if missing.
        """
        special = {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}
        save_config(folder, "ByT5Tokenizer", extra_ids=self.num_sentinels, **special)
