"""T5's tokenizer, SentencePiece with sentinels, and vocabulary training."""

import hashlib
import io
import os
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from t5jax.fileio import StrPath, read_bounded, write_atomically
from t5jax.tokenizers.base import Tokenizer, checked_sentinel, content_ids, save_config

MODEL_FILES = ("spiece.model", "sentencepiece.model", "tokenizer.model")
_UNSPACED_SENTINEL = re.compile(r"(?<=\S)<extra_id_(0|[1-9][0-9]{0,4})>")


class SentencePieceTokenizer(Tokenizer):
    """SentencePiece model with T5's sentinels.

    As in Google's pipeline, the piece `<extra_id_k>` includes the space before it, so
    "Hello <extra_id_0> world" has three ids. A sentinel without the space is read as if it had one.

    Args:
      model: content of a SentencePiece model file.
      num_sentinels: number of sentinels to append, `<extra_id_0>` last; ignored if the model
        already has sentinels (mT5).
    Raises:
      ValueError: the model is not a complete SentencePiece model, or has no EOS piece.

    Examples:
      >>> tokenizer = t5jax.tokenizers.SentencePieceTokenizer(t5.tokenizer.model, num_sentinels=100)
      >>> tokenizer.vocab_size - tokenizer.sentinel_id(0)
      1
    """

    def __init__(self, model: bytes, *, num_sentinels: int = 100):
        if num_sentinels < 0:
            raise ValueError(f"num_sentinels must be at least 0, got {num_sentinels}; T5 uses 100.")
        self.model = model
        self._processor = load_processor(model)
        self.num_appended = 0 if _sentinel_ids(self._processor) else num_sentinels
        if self.num_appended:
            self._processor = load_processor(model + _sentinel_pieces(num_sentinels))
        self._sentinels = _sentinel_ids(self._processor)
        self.num_sentinels = len(self._sentinels)
        self.vocab_size = self._processor.get_piece_size()
        self.unk_id = self._processor.unk_id()
        self.eos_id = self._processor.eos_id()
        # Google's pipeline pads with 0 even if the model declares no padding (MADLAD).
        self.pad_id = max(self._processor.pad_id(), 0)
        self.fingerprint = hashlib.sha256(model + b"%d" % self.num_appended).hexdigest()
        if self.eos_id < 0:
            raise ValueError("a model must have an end piece, got none; train it with eos_id=1.")

    @classmethod
    def from_file(cls, path: StrPath, *, num_sentinels: int = 100) -> "SentencePieceTokenizer":
        """Read a model file.

        Args:
          path: SentencePiece model file.
          num_sentinels: number of sentinels to append, as for the class.
        Returns:
          The tokenizer.
        Raises:
          ValueError: the file is not a complete SentencePiece model, or has no EOS piece.
        """
        try:
            return cls(read_bounded(path), num_sentinels=num_sentinels)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error

    def sentinel_id(self, k: int) -> int:
        """Return the id of `<extra_id_k>`.

        Args:
          k: number of the span, in [0, num_sentinels).
        Returns:
          The id of the sentinel.
        Raises:
          ValueError: `k` is out of range.
        """
        return self._sentinels[checked_sentinel(k, self.num_sentinels)]

    def encode(self, text: str) -> list[int]:
        """Convert text to ids, without EOS and padding.

        Args:
          text: text, which may contain sentinels such as `<extra_id_0>`.
        Returns:
          The ids.
        """
        text = _UNSPACED_SENTINEL.sub(lambda m: " " * (int(m[1]) < self.num_sentinels) + m[0], text)
        # JSON allows a lone surrogate but UTF-8 does not; it becomes "?".
        return self._processor.encode(text.encode("utf-8", "replace"))

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Convert one row of ids to text, up to the first EOS and without padding.

        Args:
          ids: [T] integers; ids outside the vocabulary are decoded as `unk_id`.
        Returns:
          The text.
        Raises:
          ValueError: `ids` is not one row of integers.
        """
        ids = [i for i in content_ids(ids, self.eos_id) if i != self.pad_id]
        known = range(self.vocab_size)
        return self._processor.decode([i if i in known else self.unk_id for i in ids])

    def pieces(self) -> list[bytes]:
        """Return the UTF-8 bytes that each id adds to decoded text, by id."""
        return [self._piece(i) for i in range(self.vocab_size)]

    def _piece(self, index: int) -> bytes:
        if index in (self.pad_id, self.eos_id) or self._processor.is_control(index):
            return b""
        if index == self.unk_id:
            return self._processor.decode([index]).encode()
        spelling = self._processor.id_to_piece(index)
        if self._processor.is_byte(index):
            return bytes.fromhex(spelling[3:5])  # <0x0A>
        return spelling.replace("▁", " ").encode()

    def save(self, folder: StrPath) -> None:
        """Write spiece.model, unchanged, and tokenizer_config.json.

        Args:
          folder: output folder, created if missing.
        """
        pad, eos, unk = map(self._processor.id_to_piece, (self.pad_id, self.eos_id, self.unk_id))
        save_config(folder, "T5Tokenizer", extra_ids=self.num_appended, pad=pad, eos=eos, unk=unk)
        write_atomically(Path(folder) / MODEL_FILES[0], self.model)


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    num_sentinels: int = 100,
    character_coverage: float = 0.99995,
    max_lines: int = 1_000_000,
) -> SentencePieceTokenizer:
    """Train a vocabulary like T5's: unigram pieces of NFKC-normalised text, no start token.

    The result does not depend on the machine or its number of cores.

    Args:
      texts: documents; each line counts as a sentence.
      vocab_size: number of pieces, without sentinels; T5 has 32000.
      num_sentinels: number of sentinels to append.
      character_coverage: fraction of the text's characters to cover, in (0, 1]; T5 used 0.9995,
        which excluded "{", "}", "<" and "~".
      max_lines: maximum number of lines to train on, sampled at even spacing.
    Returns:
      The tokenizer, with `vocab_size` pieces and the sentinels.
    Raises:
      ValueError: there is no text, or `vocab_size` is too large or too small for it.

    Examples:
      >>> tokenizer = t5jax.tokenizers.train_tokenizer(
      ...     ["the cat sat on the mat"], vocab_size=14, num_sentinels=4
      ... )
      >>> tokenizer.vocab_size, tokenizer.decode(tokenizer.encode("the mat"))
      (18, 'the mat')
    """
    if vocab_size <= 3:
        raise ValueError(
            f"vocab_size must exceed 3, the number of special ids, got {vocab_size}; try 32000."
        )
    lines = _sample(texts, max_lines)
    if not lines:
        raise ValueError("texts must hold some text to train on, got none; check their source.")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="unigram",
            normalization_rule_name="nmt_nfkc",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=16,  # the pieces depend on it, through the order of float sums
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2] or error
        raise ValueError(f"vocab_size must suit the texts, got {vocab_size}; {reason}") from error
    return SentencePieceTokenizer(model.getvalue(), num_sentinels=num_sentinels)


def load_processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    """Load a SentencePiece model.

    Raises:
      ValueError: the model is damaged or incomplete.
    """
    # A file truncated between two pieces loads as a smaller vocabulary. The normalizer, protobuf
    # field 3, follows the pieces in every model; a field is a tag, a varint length and its content.
    tags, position = set(), 0
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        while position < len(model):
            tags.add(model[position])
            position, length, shift = position + 1, 0, 0
            while model[position] >= 0x80:
                length |= (model[position] & 0x7F) << shift
                position, shift = position + 1, shift + 7
            position += 1 + (length | model[position] << shift)
        if 0x1A in tags:
            return processor
    except (RuntimeError, IndexError):
        pass
    content, remedy = f"{len(model)} other bytes", "download or copy the file again"
    if model.startswith(b"version https://git-lfs"):
        content, remedy = "a git-lfs pointer to one", "fetch it with `git lfs pull`"
    raise ValueError(f"must be a complete SentencePiece model, got {content}; {remedy}.")


def _sentinel_pieces(count: int) -> bytes:
    """Encode USER_DEFINED pieces as protobuf bytes that extend a model when appended to it."""
    # By hand, because the protobuf classes of SentencePiece and transformers conflict.
    pieces = bytearray()
    for name in (f"▁<extra_id_{k}>".encode() for k in reversed(range(count))):
        piece = b"\x0a" + bytes([len(name)]) + name + b"\x15" + struct.pack("<f", 0) + b"\x18\x04"
        pieces += b"\x0a" + bytes([len(piece)]) + piece
    return bytes(pieces)


def _sentinel_ids(processor: sentencepiece.SentencePieceProcessor) -> list[int]:
    """Return the ids of `<extra_id_0>`, `<extra_id_1>`, ... up to the first missing one."""
    ids, unk = [], processor.unk_id()
    while True:
        spellings = f"▁<extra_id_{len(ids)}>", f"<extra_id_{len(ids)}>"
        known = [i for i in map(processor.piece_to_id, spellings) if i != unk]
        if not known:
            return ids
        ids.append(known[0])


def _sample(texts: Iterable[str], max_lines: int) -> list[bytes]:
    """Sample at most `max_lines` evenly spaced lines, split to fit the trainer's 4192 bytes."""
    lines = (line for text in texts for line in text.splitlines() if line.strip())
    pieces = (line[i : i + 1000] for line in lines for i in range(0, len(line), 1000))
    sample, stride = [], 1
    for index, piece in enumerate(pieces):
        if index % stride == 0:
            sample.append(piece.encode("utf-8", "replace"))
        if len(sample) > max_lines:
            sample, stride = sample[::2], stride * 2
    return sample
