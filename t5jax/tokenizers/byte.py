"""ByT5 tokenizer: UTF-8 bytes."""

import re
from collections.abc import Sequence

import numpy as np

from t5jax.fileio import StrPath
from t5jax.tokenizers.base import Tokenizer, checked_sentinel, content_ids, save_config

_BYTE_SENTINEL = re.compile(rb"<extra_id_([0-9]|[1-9][0-9]|1[01][0-9]|12[0-4])>")

# Decoded bytes by id. UTF-8 never uses 0xF5 ... 0xFF: their ids are sentinels.
_BYTES = [b""] * 3 + [bytes([byte]) for byte in range(0xF5)]
_BYTES += [f"<extra_id_{0xFF - byte}>".encode() for byte in range(0xF5, 0x100)]


class ByteTokenizer(Tokenizer):
    """ByT5 tokenizer (arXiv:2105.13626): pad is 0, EOS 1, unknown 2, byte b is b + 3.

    Sentinel k is 258 - k, as in ByT5's pre-training; Hugging Face's ByT5Tokenizer uses 259 + k, ids
    on which no published ByT5 was trained.  The first eleven sentinels share the ids of bytes 0xFF
    ... 0xF5, which UTF-8 never uses, and decode to `<extra_id_k>`; the others decode to bytes.
    Invalid UTF-8 is omitted from decoded text.

    Example:
      >>> ByteTokenizer().encode("T5")
      [87, 56]
    """

    vocab_size, num_sentinels = 259, 125
    pad_id, eos_id, unk_id = 0, 1, 2
    fingerprint = "bytes"

    def sentinel_id(self, k: int) -> int:
        """Return the id of `<extra_id_k>`, 258 - k.

        Args:
          k: index of the sentinel, in [0, num_sentinels).
        Returns:
          The id.
        Raises:
          ValueError: `k` is out of range.
        """
        return self.vocab_size - 1 - checked_sentinel(k, self.num_sentinels)

    def encode(self, text: str) -> list[int]:
        """Encode a text.

        Args:
          text: any text; `<extra_id_k>` in it becomes a sentinel.
        Returns:
          The ids, without EOS and padding.
        """
        content = text.encode("utf-8", "replace")
        content = _BYTE_SENTINEL.sub(lambda match: bytes([0xFF - int(match[1])]), content)
        return [byte + 3 for byte in content]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Decode one sequence, up to its first `eos_id`.

        Args:
          ids: [S] integers; padding, ids outside the vocabulary and invalid UTF-8 are skipped.
        Returns:
          The text.
        Raises:
          ValueError: `ids` is not a 1D sequence of integers.
        """
        spelled = [_BYTES[i] for i in content_ids(ids, self.eos_id) if 0 <= i < self.vocab_size]
        return b"".join(spelled).decode("utf-8", errors="ignore")

    def pieces(self) -> list[bytes]:
        """Return the bytes that each id adds to a decoded text, indexed by id."""
        return list(_BYTES)

    def save(self, folder: StrPath) -> None:
        """Save tokenizer_config.json.

        Args:
          folder: destination, created if missing.
        """
        special = {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}
        save_config(folder, "ByT5Tokenizer", extra_ids=self.num_sentinels, **special)
