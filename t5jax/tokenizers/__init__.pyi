"""SentencePiece, bytes and Hugging Face tokenizers; training one."""

from .base import (
    Tokenizer as Tokenizer,
)
from .base import (
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
)
from .sentencepiece import (
    SentencePieceTokenizer as SentencePieceTokenizer,
)
from .sentencepiece import (
    train_tokenizer as train_tokenizer,
)
