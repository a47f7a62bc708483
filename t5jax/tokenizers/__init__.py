"""SentencePiece, bytes and Hugging Face tokenizers; training one."""

from t5jax._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
