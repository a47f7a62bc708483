"""T5 in JAX: text in, text out.

    import t5jax
    t5 = t5jax.load("google/flan-t5-small")
    t5.generate(["translate English to German: That is good."])

Packages and names are imported when first used, so that `import t5jax` is quick.
"""

from t5jax._lazy import attach

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = attach(__name__, __file__)
