"""ByT5's tokenizer: the bytes of UTF-8."""

import re
from collections.abc import Sequence

import numpy as np

from t5jax.fileio import StrPath
from t5jax.tokenizers.base import Tokenizer, checked_sentinel, content_ids, save_config

_BYTE_SENTINEL = re.compile(rb"<extra_id_([0-9]|[1-9][0-9]|1[01][0-9]|12[0-4])>")

# The decoded bytes of each id: one byte, or a sentinel where UTF-8 has no such byte.
_BYTES = [b""] * 3 + [bytes([byte]) for byte in range(0xF5)]
_BYTES += [f"<extra_id_{0xFF - byte}>".encode() for byte in range(0xF5, 0x100)]


class ByteTokenizer(Tokenizer):
    """ByT5's vocabulary: pad 0, end 1, unknown 2, byte b as b + 3.

    Sentinel k is 258 - k, as in ByT5's pre-training; Hugging Face's ByT5Tokenizer has 259 + k, ids
    that no published ByT5 was trained on.  The first eleven share their ids with the bytes 0xFF ...
    0xF5, which UTF-8 never uses, and are decoded as `<extra_id_k>`; the others, as bytes.  Bytes
    that are not UTF-8 are left out of decoded text.

    Example:
      >>> ByteTokenizer().encode("T5")
      [87, 56]
    """

    vocab_size, num_sentinels = 259, 125
    pad_id, eos_id, unk_id = 0, 1, 2
    fingerprint = "bytes"

    def sentinel_id(self, k: int) -> int:
        """Return the id of `<extra_id_k>`, 258 - k."""
        return self.vocab_size - 1 - checked_sentinel(k, self.num_sentinels)

    def encode(self, text: str) -> list[int]:
        """Convert a text to ids, without end of sequence and padding; it may spell sentinels."""
        content = text.encode("utf-8", "replace")
        content = _BYTE_SENTINEL.sub(lambda match: bytes([0xFF - int(match[1])]), content)
        return [byte + 3 for byte in content]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Convert one row of ids to text, up to its first `eos_id` and without padding."""
        spelled = [_BYTES[i] for i in content_ids(ids, self.eos_id) if 0 <= i < self.vocab_size]
        return b"".join(spelled).decode("utf-8", errors="ignore")

    def pieces(self) -> list[bytes]:
        """Return the bytes that each id adds to a decoded text, by id."""
        return list(_BYTES)

    def save(self, folder: StrPath) -> None:
        """Write tokenizer_config.json; creates the folder."""
        special = {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}
        save_config(folder, "ByT5Tokenizer", extra_ids=self.num_sentinels, **special)
