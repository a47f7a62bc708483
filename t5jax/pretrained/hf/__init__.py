"""Hugging Face checkpoints: transformers and the hub."""

from t5jax._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
