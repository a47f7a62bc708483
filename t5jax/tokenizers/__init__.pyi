"""SentencePiece, bytes and Hugging Face tokenizers; training one."""

from .base import (
    Tokenizer as Tokenizer,
    check_same_tokenizer as check_same_tokenizer,
    encode_with_eos as encode_with_eos,
)
from .byte import (
    ByteTokenizer as ByteTokenizer,
)
from .huggingface import (
    HuggingFaceTokenizer as HuggingFaceTokenizer,
)
from .load import (
    load_tokenizer as load_tokenizer,
)
from .sentencepiece import (
    MODEL_FILES as MODEL_FILES,
    SentencePieceTokenizer as SentencePieceTokenizer,
    train_tokenizer as train_tokenizer,
)
from .unknown import (
    UnknownCounts as UnknownCounts,
    count_unknown as count_unknown,
)

__all__ = [
    "ByteTokenizer",
    "HuggingFaceTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "UnknownCounts",
    "count_unknown",
    "encode_with_eos",
    "load_tokenizer",
    "train_tokenizer",
]
