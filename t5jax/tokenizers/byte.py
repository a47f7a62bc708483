"""Text <-> ids: T5's SentencePiece vocabularies, ByT5's bytes, and training a new vocabulary.

`load_tokenizer` also finds the vocabularies of `fast_tokenizer`.
"""

import re
from collections.abc import Sequence

import numpy as np

from t5jax.tokenizers.base import StrPath, Tokenizer, checked_sentinel, content_ids, save_config

_BYTE_SENTINEL = re.compile(rb"<extra_id_([0-9]|[1-9][0-9]|1[01][0-9]|12[0-4])>")

# What ByteTokenizer.decode writes for each id: a byte, or a sentinel where UTF-8 has no such one.
_BYTES = [b""] * 3 + [bytes([byte]) for byte in range(0xF5)]
_BYTES += [f"<extra_id_{0xFF - byte}>".encode() for byte in range(0xF5, 0x100)]


class ByteTokenizer(Tokenizer):
    """ByT5's vocabulary: pad 0, end 1, unknown 2, byte b as b + 3.

    Sentinel k is 258 - k, as in ByT5's pre-training; Hugging Face's ByT5Tokenizer says 259 + k, ids
    that no published ByT5 was trained on.  The first eleven share their ids with the bytes 0xFF ...
    0xF5, which UTF-8 never uses, and are decoded as `<extra_id_k>`; the rest, as bytes.  Whatever
    is not UTF-8 is left out of decoded text.
    """

    vocab_size, num_sentinels = 259, 125
    pad_id, eos_id, unk_id = 0, 1, 2
    fingerprint = "bytes"

    def sentinel_id(self, k: int) -> int:
        return self.vocab_size - 1 - checked_sentinel(k, self.num_sentinels)

    def encode(self, text: str) -> list[int]:
        content = text.encode("utf-8", "replace")
        content = _BYTE_SENTINEL.sub(lambda match: bytes([0xFF - int(match[1])]), content)
        return [byte + 3 for byte in content]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        spelled = [_BYTES[i] for i in content_ids(ids, self.eos_id) if 0 <= i < self.vocab_size]
        return b"".join(spelled).decode("utf-8", errors="ignore")

    def pieces(self) -> list[bytes]:
        return list(_BYTES)

    def save(self, folder: StrPath) -> None:
        save_config(folder, "ByT5Tokenizer", self.num_sentinels, "<pad>", "</s>", "<unk>")
