"""The training step, the trainer around it, and the parts of a run."""

from t5jax._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
