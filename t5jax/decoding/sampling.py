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


def top_k(logits: Float[Array, "B V"], k: Int[Array, ""], *, most: int) -> Float[Array, "B V"]:
    """The `k` most likely tokens.  (arXiv:1805.04833)

    Args:
      logits: -inf for tokens that are out already.
      k: from 1 on; a traced value.
      most: at least `k`, known when compiling.
    """
    best = jax.lax.top_k(logits, min(most, logits.shape[-1]))[0]
    least = jnp.take(best, jnp.minimum(k, best.shape[-1]) - 1, axis=-1)
    return _keep(logits, logits >= least[:, None])


def top_p(logits: Float[Array, "B V"], p: Float[Array, ""]) -> Float[Array, "B V"]:
    """The fewest most likely tokens whose probabilities add up to `p`.  (arXiv:1904.09751)

    Args:
      logits: -inf for tokens that are out already.
      p: in (0, 1].
    """
    falling = -jnp.sort(-logits, axis=-1)
    before = jnp.cumsum(jax.nn.softmax(falling), axis=-1) - jax.nn.softmax(falling)
    # The last token before which less than p has been gathered; the first always is one.
    last = jnp.sum(before < p, axis=-1, dtype=jnp.int32) - 1
    least = jnp.take_along_axis(falling, jnp.maximum(last, 0)[:, None], axis=-1)
    return _keep(logits, logits >= least)


def min_p(logits: Float[Array, "B V"], p: Float[Array, ""]) -> Float[Array, "B V"]:
    """Tokens at least `p` times as likely as the most likely one.  (arXiv:2407.01082)

    Args:
      logits: -inf for tokens that are out already.
      p: in [0, 1].
    """
    return _keep(logits, logits >= jnp.max(logits, axis=-1, keepdims=True) + jnp.log(p))


def typical(logits: Float[Array, "B V"], p: Float[Array, ""]) -> Float[Array, "B V"]:
    """The most typical tokens, whose probabilities add up to `p`.  (arXiv:2202.00666)

    Typical is a token whose surprise is near to the expected one, the entropy.

    Args:
      logits: -inf for tokens that are out already.
      p: in (0, 1].
    """
    log_probs = jax.nn.log_softmax(logits)
    probs = jnp.exp(log_probs)
    surprise = jnp.where(probs > 0, -log_probs, 0.0)
    entropy = jnp.sum(probs * surprise, axis=-1, keepdims=True)
    distance = jnp.where(probs > 0, jnp.abs(surprise - entropy), jnp.inf)
    order = jnp.argsort(distance, axis=-1)
    gathered = jnp.cumsum(jnp.take_along_axis(probs, order, axis=-1), axis=-1)
    last = jnp.minimum(jnp.sum(gathered < p, axis=-1, dtype=jnp.int32), logits.shape[-1] - 1)
    sorted_distance = jnp.take_along_axis(distance, order, axis=-1)
    most = jnp.take_along_axis(sorted_distance, last[:, None], axis=-1)
    return _keep(logits, distance <= most)


def _keep(logits: Float[Array, "B V"], kept: Array) -> Float[Array, "B V"]:
    return jnp.where(kept, logits, -jnp.inf)
