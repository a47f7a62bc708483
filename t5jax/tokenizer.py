"""Text <-> ids: T5's SentencePiece vocabularies, ByT5's bytes, and training a new vocabulary.

`load` also finds the vocabularies of `fast_tokenizer`.
"""

import hashlib
import io
import json
import os
import re
import struct
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import sentencepiece

from t5jax import fast_tokenizer
from t5jax.fileio import write_atomically

MODEL_FILES = ("spiece.model", "sentencepiece.model", "tokenizer.model")
CONFIG_FILE = "tokenizer_config.json"
MAX_SENTINELS = 100_000
StrPath = str | os.PathLike[str]

_UNSPACED_SENTINEL = re.compile(r"(?<=\S)<extra_id_(0|[1-9][0-9]{0,4})>")
_BYTE_SENTINEL = re.compile(rb"<extra_id_([0-9]|[1-9][0-9]|1[01][0-9]|12[0-4])>")
# What ByteTokenizer.decode writes for each id: a byte, or a sentinel where UTF-8 has no such one.
_BYTES = [b""] * 3 + [bytes([byte]) for byte in range(0xF5)]
_BYTES += [f"<extra_id_{0xFF - byte}>".encode() for byte in range(0xF5, 0x100)]


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
        """Write the files that `load` and Hugging Face transformers read; makes the folder."""


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model with T5's sentinels.

    As in Google's pipeline, `<extra_id_k>` is a piece spelled with the space before it, so "Hello
    <extra_id_0> world" has three ids.  A sentinel that lacks the space is read as if it had one.

    Args:
      model: content of a SentencePiece model file.
      num_sentinels: how many to append, `<extra_id_0>` last; if the model already holds sentinels
        (mT5), none is appended and these are used where they are.
    Raises:
      ValueError: not a complete SentencePiece model, or one without an end piece.
    """

    def __init__(self, model: bytes, *, num_sentinels: int = 100):
        if num_sentinels < 0:
            raise ValueError(f"num_sentinels must be at least 0, got {num_sentinels}; T5 uses 100.")
        self.model = model
        self._processor = _processor(model)
        self.num_appended = 0 if _held_sentinels(self._processor) else num_sentinels
        if self.num_appended:
            self._processor = _processor(model + _sentinel_pieces(num_sentinels))
        self._sentinels = _held_sentinels(self._processor)
        self.num_sentinels = len(self._sentinels)
        self.vocab_size = self._processor.get_piece_size()
        self.unk_id = self._processor.unk_id()
        self.eos_id = self._processor.eos_id()
        # A model may declare no padding (MADLAD); Google's pipeline then pads with 0 all the same.
        self.pad_id = max(self._processor.pad_id(), 0)
        self.fingerprint = hashlib.sha256(model + b"%d" % self.num_appended).hexdigest()
        if self.eos_id < 0:
            raise ValueError("a model must have an end piece, got none; train it with eos_id=1.")

    @classmethod
    def from_file(cls, path: StrPath, *, num_sentinels: int = 100) -> "SentencePieceTokenizer":
        """Read a model file; the arguments are the class's, its errors get the file's name."""
        try:
            return cls(Path(path).read_bytes(), num_sentinels=num_sentinels)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error

    def sentinel_id(self, k: int) -> int:
        return self._sentinels[_checked_sentinel(k, self.num_sentinels)]

    def encode(self, text: str) -> list[int]:
        text = _UNSPACED_SENTINEL.sub(lambda m: " " * (int(m[1]) < self.num_sentinels) + m[0], text)
        # JSON can spell half of a surrogate pair, UTF-8 cannot: it is read as "?".
        return self._processor.encode(text.encode("utf-8", "replace"))

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        kept = [i for i in _content(ids, self.eos_id) if i != self.pad_id]
        known = range(self.vocab_size)
        return self._processor.decode([i if i in known else self.unk_id for i in kept])

    def pieces(self) -> list[bytes]:
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
        special = map(self._processor.id_to_piece, (self.pad_id, self.eos_id, self.unk_id))
        _save_config(folder, "T5Tokenizer", self.num_appended, *special)
        write_atomically(Path(folder) / MODEL_FILES[0], self.model)


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
        return self.vocab_size - 1 - _checked_sentinel(k, self.num_sentinels)

    def encode(self, text: str) -> list[int]:
        content = text.encode("utf-8", "replace")
        content = _BYTE_SENTINEL.sub(lambda match: bytes([0xFF - int(match[1])]), content)
        return [byte + 3 for byte in content]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        spelled = [_BYTES[i] for i in _content(ids, self.eos_id) if 0 <= i < self.vocab_size]
        return b"".join(spelled).decode("utf-8", errors="ignore")

    def pieces(self) -> list[bytes]:
        return list(_BYTES)

    def save(self, folder: StrPath) -> None:
        _save_config(folder, "ByT5Tokenizer", self.num_sentinels, "<pad>", "</s>", "<unk>")


def load(folder: StrPath) -> Tokenizer | None:
    """The tokenizer in a checkpoint folder, ours or Hugging Face's; None if it has no such file.

    Only the tokenizer's own files count: the `config.json` of mT5 and ByT5 names the wrong class.
    A SentencePiece model comes first, for its ids are Google's own where other files' nearly are,
    unless tokens were added to it.

    Raises:
      ValueError: a damaged file, which the message names.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        kind, num_sentinels = config.get("tokenizer_class"), int(config.get("extra_ids", 100))
        if not 0 <= num_sentinels <= MAX_SENTINELS:
            raise ValueError(f"{num_sentinels} extra_ids, more than {MAX_SENTINELS} or negative")
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} must be a JSON object, got {error}; copy it again.") from error
    if kind == "ByT5Tokenizer":
        return ByteTokenizer()
    for path in (Path(folder) / name for name in MODEL_FILES):
        if path.is_file():
            found = SentencePieceTokenizer.from_file(path, num_sentinels=num_sentinels)
            added = fast_tokenizer.added_tokens(folder, first=found.vocab_size)
            if added and fast_tokenizer.holds_tokenizer(folder):
                break
            if added:
                warnings.warn(
                    f"{folder}: {len(added)} tokens that were added to {path.name} are not known, "
                    f"such as {added[0]!r:.40}; they need tokenizer.json, which transformers' "
                    "save_pretrained writes.",
                    stacklevel=2,
                )
            return found
    if fast_tokenizer.holds_tokenizer(folder):
        return fast_tokenizer.FastTokenizer.from_folder(folder)
    return None


def train(
    texts: Iterable[str],
    *,
    vocab_size: int,
    num_sentinels: int = 100,
    character_coverage: float = 0.99995,
    max_lines: int = 1_000_000,
) -> SentencePieceTokenizer:
    """Train a vocabulary as T5's was: unigram pieces of NFKC-normalised text, no start of sequence.

    The result depends on the texts alone, not on the machine or its number of cores.

    Args:
      texts: documents; each of their lines counts as a sentence.
      vocab_size: pieces, without the sentinels; T5 has 32000.
      num_sentinels: sentinels appended to them.
      character_coverage: share of the text's characters that get an id; T5 took 0.9995, which
        left its vocabulary without "{", "}", "<" and "~".
      max_lines: lines to learn from; of more, evenly spaced ones are taken.
    Raises:
      ValueError: no text, or a `vocab_size` too large or too small for it.
    """
    if vocab_size <= 3:
        raise ValueError(f"vocab_size must exceed 3, the special ids, got {vocab_size}; try 32000.")
    lines = _sample(texts, max_lines)
    if not lines:
        raise ValueError("texts must hold some text to learn from, got none; check where they lie.")
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
            num_threads=16,  # sums floats per thread, so another number gives other pieces
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2] or error
        raise ValueError(f"vocab_size must suit the texts, got {vocab_size}; {reason}") from error
    return SentencePieceTokenizer(model.getvalue(), num_sentinels=num_sentinels)


def _processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece processor of a whole model, or a ValueError."""
    # A file cut between two pieces loads, as a smaller vocabulary.  The normalizer, protobuf field
    # 3, follows the pieces in every model; a field is a tag, a varint length and its content.
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
    found, remedy = f"{len(model)} bytes that are not", "download or copy the file again"
    if model.startswith(b"version https://git-lfs"):
        found, remedy = "a git-lfs pointer to one", "fetch it with `git lfs pull`"
    raise ValueError(f"must be a complete SentencePiece model, got {found}; {remedy}.")


def _sentinel_pieces(count: int) -> bytes:
    """Protobuf bytes that, put after a model's, append USER_DEFINED pieces to it."""
    # By hand, for the protobuf classes of SentencePiece and transformers exclude each other.
    pieces = bytearray()
    for name in (f"▁<extra_id_{k}>".encode() for k in reversed(range(count))):
        piece = b"\x0a" + bytes([len(name)]) + name + b"\x15" + struct.pack("<f", 0) + b"\x18\x04"
        pieces += b"\x0a" + bytes([len(piece)]) + piece
    return bytes(pieces)


def _held_sentinels(processor: sentencepiece.SentencePieceProcessor) -> list[int]:
    """Ids of `<extra_id_0>`, `<extra_id_1>`, ... as far as the model has them."""
    ids, unk = [], processor.unk_id()
    while True:
        spellings = f"▁<extra_id_{len(ids)}>", f"<extra_id_{len(ids)}>"
        found = [i for i in map(processor.piece_to_id, spellings) if i != unk]
        if not found:
            return ids
        ids.append(found[0])


def _checked_sentinel(k: int, count: int) -> int:
    if not 0 <= k < count:
        raise ValueError(f"sentinel k must be in [0, {count}), got {k}; hide fewer, longer spans.")
    return k


def _content(ids: Sequence[int] | np.ndarray, eos_id: int) -> list[int]:
    """`ids` before the first `eos_id`."""
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"ids must be one row of integers, got {array.dtype}{[*array.shape]}.")
    values = array.tolist()
    return values[: values.index(eos_id)] if eos_id in values else values


def _sample(texts: Iterable[str], limit: int) -> list[bytes]:
    """At most `limit` lines, evenly spaced, cut up to fit the 4192 bytes that the trainer takes."""
    lines = (line for text in texts for line in text.splitlines() if line.strip())
    pieces = (line[i : i + 1000] for line in lines for i in range(0, len(line), 1000))
    kept, stride = [], 1
    for index, piece in enumerate(pieces):
        if index % stride == 0:
            kept.append(piece.encode("utf-8", "replace"))
        if len(kept) > limit:
            kept, stride = kept[::2], stride * 2
    return kept


def _save_config(folder: StrPath, kind: str, extra_ids: int, *special: str) -> None:
    config = {"tokenizer_class": kind, "extra_ids": extra_ids, "legacy": False}
    config |= zip(("pad_token", "eos_token", "unk_token"), special, strict=True)
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_atomically(Path(folder) / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
