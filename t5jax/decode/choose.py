"""Ways to choose the next token."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def greedy(logits: Float[Array, "B V"], position: Int[Array, ""]) -> Int[Array, " B"]:
    """The most likely token; the lowest id on a tie."""
    del position
    # Two reductions that a CPU vectorises, where it computes `argmax` token by token.
    best = jnp.max(logits, axis=-1, keepdims=True)
    vocab_size = logits.shape[-1]
    ids = jnp.where(logits == best, jnp.arange(vocab_size)[None], vocab_size - 1)
    return jnp.min(ids, axis=-1)


def sampler(
    row_keys: Key[Array, " B"],
    *,
    temperature: Float[Array, ""],
    truncation: Callable[[Float[Array, "B V"]], Float[Array, "B V"]] = lambda logits: logits,
) -> Callable[[Float[Array, "B V"], Int[Array, ""]], Int[Array, " B"]]:
    r"""Draws each token from :math:`\mathrm{softmax}(\mathrm{logits} / \mathrm{temperature})`.

    Args:
      row_keys: one key a row, so that what a row gets does not depend on its neighbours.
      temperature: above 0; below 1 sharpens, above 1 flattens.
      truncation: sets the logits, divided by the temperature, of tokens that are out to -inf; see
        `truncate`.
    """

    def sample(logits, position):
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(row_keys, position)
        return jax.vmap(jax.random.categorical)(keys, truncation(logits / temperature))

    return sample
