"""Tokenizers of Hugging Face's tokenizers library, for checkpoints without a SentencePiece model.

CodeT5 and checkpoints saved by transformers 5 have a `tokenizer.json`; older CodeT5 repositories
have a byte-level BPE in `vocab.json` and `merges.txt`.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t5jax.fileio import JsonObject, StrPath, parse_json_object, read_json_object, write_atomically
from t5jax.tokenizers.base import checked_sentinel, content_ids

if TYPE_CHECKING:
    import tokenizers

MAX_BYTES = 64 << 20
MAX_VOCAB = 10_000_000
_TOKENIZER, _VOCAB, _MERGES = "tokenizer.json", "vocab.json", "merges.txt"
_CONFIG, _SPECIAL, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_FILES = (_TOKENIZER, _VOCAB, _MERGES, _CONFIG, _SPECIAL, _ADDED)

# RoBERTa's special tokens, in the order in which its tokenizer adds them.
_SPECIAL_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}

# GPT-2's spelling of bytes: printable bytes as themselves, others as characters from 256.
_PRINTABLE = {chr(byte): byte for byte in (*range(33, 127), *range(161, 173), *range(174, 256))}
_OTHERS = sorted(set(range(256)) - set(_PRINTABLE.values()))
_BYTE_OF = _PRINTABLE | {chr(256 + i): byte for i, byte in enumerate(_OTHERS)}
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def holds_tokenizer(folder: StrPath) -> bool:
    """Return True if `HuggingFaceTokenizer.from_folder` can read a folder."""
    has = {name: (Path(folder) / name).is_file() for name in _FILES}
    return has[_TOKENIZER] or (has[_VOCAB] and has[_MERGES])


def added_tokens(folder: StrPath, *, first: int) -> list[str]:
    """List the tokens added to a vocabulary.

    Args:
      folder: folder of the tokenizer's files.
      first: lowest id to include.
    Returns:
      The text of each added token.
    Raises:
      ValueError: a file is damaged.
    """
    added: JsonObject = {}
    for name in (_CONFIG, _ADDED):
        path = Path(folder) / name
        listed: Any = read_json_object(path) if path.is_file() else {}
        try:
            if name == _CONFIG:
                decoder = listed.get("added_tokens_decoder") or {}
                listed = {str(_spelling(token)): int(index) for index, token in decoder.items()}
            added |= {token: index for token, index in listed.items() if index >= first}
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} must list tokens and their ids; copy it again.") from error
    return list(added)


class HuggingFaceTokenizer:
    """Tokenizer of Hugging Face's tokenizers library; implements `Tokenizer`.

    Ids are the library's, including the start token of the file's template (CodeT5's `<s>`), but
    without EOS. Text that spells a special token, even "</s>", is encoded as that token.

    Args:
      contents: content of each file, by file name.
      folder: folder of the files, for error messages.
    Raises:
      ValueError: a file is damaged, or the vocabulary has no EOS; the message names the file.

    Examples:
      >>> import tokenizers
      >>> model = tokenizers.models.WordLevel({"</s>": 0, "hello": 1}, unk_token="</s>")
      >>> tokenizers.Tokenizer(model).save("tokenizer.json")
      >>> t5jax.tokenizers.HuggingFaceTokenizer.from_folder(".").encode("hello")
      [1]
    """

    def __init__(self, contents: Mapping[str, bytes], *, folder: StrPath = "."):
        self._contents = dict(contents)
        self._folder = Path(folder)
        config, special = self._json(_CONFIG), self._json(_SPECIAL)
        if _TOKENIZER in contents:
            self._file, relevant = self._folder / _TOKENIZER, (_TOKENIZER,)
            self._library = self._from_tokenizer_json()
        else:
            self._file, relevant = self._folder / _VOCAB, _FILES
            self._library = self._from_vocab_and_merges(config, special)
        ids = self._library.get_vocab(with_added_tokens=True)
        self._known = frozenset(ids.values())
        self.vocab_size = max(self._known, default=-1) + 1
        if not 0 < self.vocab_size <= MAX_VOCAB:
            raise ValueError(
                f"{self._file} must have 1 to {MAX_VOCAB} ids, got {self.vocab_size}; "
                "download it again."
            )

        name = self._special_name("eos_token", config, special)
        if name not in ids:
            raise ValueError(
                f"{self._file} must have an id for the end of a sequence, got none for "
                f"{name!r:.60}; name it as eos_token in {_CONFIG}."
            )
        self.eos_id = ids[name]
        # As in Google's pipeline, a vocabulary without a padding token pads with 0.
        self.pad_id = ids.get(self._special_name("pad_token", config, special), 0)
        self.unk_id = ids.get(self._special_name("unk_token", config, special), self.pad_id)
        self._sentinels = _sentinels(ids)
        self.num_sentinels = len(self._sentinels)
        digest = hashlib.sha256(b"%d %d %d" % (self.pad_id, self.eos_id, self.unk_id))
        for name in relevant:
            digest.update(hashlib.sha256(contents.get(name, b"")).digest())
        self.fingerprint = digest.hexdigest()

        bos = config.get("bos_token") or special.get("bos_token")
        template = self._encoding("").ids
        if not self._known.issuperset(template):
            raise ValueError(
                f"{self._file} must have a template of known ids, got {template[:8]}; "
                "download it again."
            )
        self._dropped = {self.pad_id, *template}
        if (start := _spelling(bos)) in ids:
            self._dropped.add(ids[start])

    @classmethod
    def from_folder(cls, folder: StrPath) -> "HuggingFaceTokenizer":
        """Read a tokenizer's files.

        Args:
          folder: folder of the files.
        Returns:
          The tokenizer.
        Raises:
          ValueError: a file is damaged or missing; the message names it.
        """
        if not holds_tokenizer(folder):
            raise ValueError(
                f"{os.fspath(folder)} must hold {_TOKENIZER}, or {_VOCAB} and {_MERGES}, got "
                "neither; download it again."
            )
        paths = (Path(folder) / name for name in _FILES)
        return cls({path.name: _content(path) for path in paths if path.is_file()}, folder=folder)

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
        """Convert text to ids, with the template's start token, without EOS and padding.

        Args:
          text: text, which may contain special tokens.
        Returns:
          The ids.
        Raises:
          ValueError: the tokenizer has no ids for the text.
        """
        # JSON allows a lone surrogate but UTF-8 does not; it becomes "?".
        encoding = self._encoding(text.encode("utf-8", "replace").decode())
        ids = encoding.ids
        # The mask distinguishes the template's EOS from one spelled in the text.
        if ids and ids[-1] == self.eos_id and encoding.special_tokens_mask[-1]:
            ids.pop()
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Convert one row of ids to text, up to the first EOS, without padding and start token.

        Args:
          ids: [T] integers; ids outside the vocabulary are decoded as `unk_id`.
        Returns:
          The text.
        Raises:
          ValueError: `ids` is not one row of integers, or the library cannot decode them.
        """
        values = [i if i in self._known else self.unk_id for i in content_ids(ids, self.eos_id)]
        return self._decode([i for i in values if i not in self._dropped])

    def pieces(self) -> list[bytes]:
        """Return the UTF-8 bytes that each id adds to decoded text, by id."""
        from tokenizers import decoders

        ids = sorted(self._known - self._dropped - {self.eos_id})
        names = [str(self._library.id_to_token(i)) for i in ids]
        if isinstance(self._library.decoder, decoders.ByteLevel):
            pieces = dict(zip(ids, map(_bytes_of, names), strict=True))
        else:
            pieces = dict(zip(ids, map(_piece, names, self._after_a_letter(ids)), strict=True))
        # As in decoding, ids without a token are unknown.
        unknown = pieces.get(self.unk_id, b"")
        foreign = set(range(self.vocab_size)) - self._known
        return [unknown if i in foreign else pieces.get(i, b"") for i in range(self.vocab_size)]

    def _after_a_letter(self, ids: Sequence[int]) -> list[str]:
        """Return the text that each id adds when it follows an id of letters."""
        alone = [self._decode([i]) for i in ids]
        letters = (i for i, text in zip(ids, alone, strict=True) if text.isalpha())
        anchor = next(letters, None)
        if anchor is None:
            return alone
        start = alone[ids.index(anchor)]
        both = [self._decode([anchor, i]) for i in ids]
        return [text[len(start) :] if text.startswith(start) else text for text in both]

    def _decode(self, ids: Sequence[int]) -> str:
        failure = f"{self._file} must decode its own ids, got an error from the library"
        with _in_our_words(f"{failure}; download it again."):
            return self._library.decode(ids, skip_special_tokens=False)

    def save(self, folder: StrPath) -> None:
        """Write the files that the tokenizer was read from, unchanged.

        Args:
          folder: output folder, created if missing.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, content in self._contents.items():
            write_atomically(Path(folder) / name, content)

    def _encoding(self, text: str) -> "tokenizers.Encoding":
        failure = f"{self._file} must have ids for every text, got none for {text[:40]!r}"
        with _in_our_words(f"{failure}; download it again."):
            return self._library.encode(text)

    def _json(self, name: str) -> JsonObject:
        """Parse the object in a JSON file; a missing file counts as empty."""
        return parse_json_object(self._contents.get(name, b"{}"), source=self._folder / name)

    def _special_name(self, role: str, config: dict, special: dict) -> str:
        token = config.get(role) or special.get(role) or _SPECIAL_TOKENS[role]
        name = _spelling(token)
        if name is None:
            raise ValueError(
                f"{self._folder / _CONFIG} and {_SPECIAL} must spell the {role}, got a "
                f"{type(token).__name__}; download them again."
            )
        return name

    def _from_tokenizer_json(self) -> "tokenizers.Tokenizer":
        import tokenizers

        content = self._contents[_TOKENIZER]
        failure = (
            f"{self._file} must be a tokenizer that tokenizers {tokenizers.__version__} reads, "
            f"got {_kind(content)}; "
        )
        pointer = content.startswith(b"version https://git-lfs")
        remedy = "fetch it with `git lfs pull`." if pointer else "download it again, or update it."
        with _in_our_words(failure + remedy):
            library = tokenizers.Tokenizer.from_str(content.decode())
        library.no_truncation()
        library.no_padding()
        # BPE dropout, a training setting, would make ids random.
        if getattr(library.model, "dropout", None) is not None:
            library.model.dropout = None
        return library

    def _from_vocab_and_merges(self, config: dict, special: dict) -> "tokenizers.Tokenizer":
        from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
        from tokenizers.models import BPE

        vocab = self._json(_VOCAB)
        with _in_our_words(
            f"{self._file} must map pieces to ids and {_MERGES} list pairs of them, "
            f"got {_kind(self._contents[_MERGES])} of merges that do not match; download both "
            "again."
        ):
            lines = self._contents[_MERGES].decode().removesuffix("\n").split("\n")
            lines = [line.removesuffix("\r") for line in lines if not line.startswith("#version")]
            merges = [(left, right) for left, right in (line.split(" ") for line in lines)]
            library = Tokenizer(BPE(vocab=vocab, merges=merges))
        prefix = config.get("add_prefix_space") is True
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        library.decoder = decoders.ByteLevel()

        added = self._json(_ADDED)
        with _in_our_words(
            f"{self._folder / _CONFIG}, {_SPECIAL} and {_ADDED} must list added tokens by their "
            f"spelling, with ids in {_ADDED}; download them again."
        ):
            flags, stated = _added_tokens(config, special, added)
            library.add_tokens([AddedToken(name, special=True, **flags[name]) for name in flags])
        for name, index in stated.items():
            if library.token_to_id(name) != index:
                raise ValueError(
                    f"{self._folder / _ADDED} must number its tokens after those of {_VOCAB}, so "
                    f"that {name[:40]!r} is {library.token_to_id(name)}, got {index!r:.20}; "
                    "download both again."
                )
        ids = library.get_vocab()
        ends = [self._special_name(role, config, special) for role in ("sep_token", "cls_token")]
        sep, cls = ((name, ids[name]) for name in ends)
        library.post_processor = processors.RobertaProcessing(sep, cls)
        return library


@contextlib.contextmanager
def _in_our_words(message: str) -> Iterator[None]:
    """Convert any failure of the library to a ValueError with this message."""
    try:
        yield
    except BaseException as error:
        # The library's panics are not of type Exception, and their class is not exported.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ValueError(message) from error
        raise


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} must have at most {MAX_BYTES >> 20} MiB, got more; replace it.")
    return content


def _kind(content: bytes) -> str:
    pointer = content.startswith(b"version https://git-lfs")
    return "a git-lfs pointer" if pointer else f"{len(content)} bytes"


def _spelling(token: object) -> str | None:
    """Return the text of a token, stored as a string or as an object with flags."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _bytes_of(name: str) -> bytes:
    """Return the bytes of a byte-level token, or the UTF-8 bytes of any other token."""
    try:
        return bytes(map(_BYTE_OF.__getitem__, name))
    except KeyError:
        return name.encode()


def _piece(name: str, text: str) -> bytes:
    """Return the bytes that a token adds to a text, possibly a single byte of a character."""
    byte = _BYTE_PIECE.fullmatch(name) if text == "\N{REPLACEMENT CHARACTER}" else None
    return bytes.fromhex(byte[1]) if byte else text.encode()


def _sentinels(ids: Mapping[str, int]) -> list[int]:
    """Return the ids of `<extra_id_0>`, `<extra_id_1>`, ... up to the first missing one."""
    sentinels = []
    while True:
        spelling = f"<extra_id_{len(sentinels)}>"
        index = ids.get(spelling, ids.get(f"▁{spelling}"))  # mT5's pieces include a space
        if index is None:
            return sentinels
        sentinels.append(index)


def _added_tokens(
    config: JsonObject, special: JsonObject, added: JsonObject
) -> tuple[dict[str, dict[str, bool]], dict[str, int]]:
    """Return the flags of the tokens to add to a vocabulary, in order, and their ids in files."""
    detailed = config.get("added_tokens_decoder") or {}
    ids = {name: int(index) for name, index in added.items()}
    ids |= {token["content"]: int(index) for index, token in detailed.items()}
    named = [
        config.get(role) or special.get(role) or name for role, name in _SPECIAL_TOKENS.items()
    ]
    more = [token for x in (special, config) for token in x.get("additional_special_tokens") or ()]
    names = [*sorted(ids, key=ids.__getitem__), *map(_spelling, [*named, *more])]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("an added token must have a spelling, got none; add it as a string.")
    flags: dict[Any, dict[str, bool]] = {name: {} for name in names}
    for token in (*config.values(), *special.values(), *more, *detailed.values()):
        if isinstance(token, dict) and token.get("content") in flags:
            for flag in ("lstrip", "rstrip", "single_word"):
                flags[token["content"]][flag] = token.get(flag) is True
    return flags, ids
