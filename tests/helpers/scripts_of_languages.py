# ruff: noqa: RUF001
"""Texts of many scripts, and tokenizers of every kind, small enough for a test."""

import io
import json

import numpy as np
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from t5jax.tokenizers.byte import ByteTokenizer
from t5jax.tokenizers.huggingface import HuggingFaceTokenizer
from t5jax.tokenizers.sentencepiece import SentencePieceTokenizer, train_tokenizer

_LINES = (
    "the quick brown fox, naïve café Straße ﬁn ½ Ærøskøbing żółć Привет мир Ελληνικά עִבְרִית",
    "العربيّة فارسی हिन्दी বাংলা தமிழ் ไทย ລາວ 日本語 テスト 中文 한국어 ქართული አማርኛ",
    "🙂 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 e\u0301 a\u0308\u0323 n\u0303 x\u200dy z\u200cw \u200f \ufeff 𝔘𝔫𝔦 𐍈 𓀀",
    "don't 3.14 100% <b> {x} [y] \\n \t --- … “quoted” ‘so’ «ça» ¿qué? €5 £6 ﷽ ￥ ａｂｃ",
)
WORDS = [word for line in _LINES for word in line.split(" ")]


def texts(count, *, seed=0):
    """Words and single characters in any order, with spaces in any number between them."""
    rng = np.random.default_rng(seed)
    letters = sorted(set("".join(WORDS)))
    found = []
    for _ in range(count):
        parts = []
        for _ in range(rng.integers(0, 9)):
            pool = WORDS if rng.random() < 0.7 else letters
            parts.append(pool[rng.integers(len(pool))])
            parts.append(" " * int(rng.choice([0, 1, 1, 1, 2, 3])))
        found.append(("  " if rng.random() < 0.1 else "") + "".join(parts))
    return found


def trained():
    """A SentencePiece vocabulary as `train_tokenizer` makes it."""
    return train_tokenizer(texts(400, seed=1), vocab_size=320, num_sentinels=5)


def with_bytes():
    """One that spells what it does not know in bytes, and keeps all spaces, as MADLAD's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox", "a cafe of the brown fox"] * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return SentencePieceTokenizer(model.getvalue(), num_sentinels=3)


def byte_level(folder):
    """A byte-level BPE, as CodeT5's."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    library.train_from_iterator(texts(400, seed=1), trainer)
    return _fast(library, folder)


def metaspace(folder):
    """Pieces with spaces and bytes, as what transformers makes of a SentencePiece model."""
    library = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    library.normalizer = normalizers.NFKC()
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
    )
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        show_progress=False,
        # Characters of one byte are pieces, as in vocabularies of any size.
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(128, 256))],
        initial_alphabet=[chr(code) for code in range(33, 127)],
        limit_alphabet=140,
    )
    library.train_from_iterator(texts(400, seed=1), trainer)
    content = json.loads(library.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in special]
    return _fast(tokenizers.Tokenizer.from_str(json.dumps(content)), folder)


def _fast(library, folder):
    library.save(str(folder / "tokenizer.json"))
    return HuggingFaceTokenizer.from_folder(folder)


def every_kind(folder):
    """Of each kind one, by name."""
    for name in ("byte_level", "metaspace"):
        (folder / name).mkdir()
    return {
        "bytes": ByteTokenizer(),
        "trained": trained(),
        "with_bytes": with_bytes(),
        "byte_level": byte_level(folder / "byte_level"),
        "metaspace": metaspace(folder / "metaspace"),
    }
