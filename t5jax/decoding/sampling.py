"""Sampling with top-k, top-p, min-p and typical truncation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


def sampler(
    row_keys: Key[Array, " B"],
    *,
    temperature: Float[Array, ""],
    truncation: Callable[[Float[Array, "B V"]], Float[Array, "B V"]] = lambda logits: logits,
) -> Callable[[Float[Array, "B V"], Int[Array, ""]], Int[Array, " B"]]:
    r"""Return a function that samples from :math:`\mathrm{softmax}(\mathrm{logits} / T)`.

    Args:
      row_keys: [B] one key per row, so that a row's samples do not depend on the rest of the batch.
      temperature: T > 0; below 1 sharpens the distribution, above 1 flattens it.
      truncation: maps [B, V] logits, already divided by T, to logits with -inf for excluded
        tokens, such as `top_k` or `top_p`; defaults to no truncation.
    Returns:
      A `SampleFn` that folds the position into every row's key and returns [B] int32.

    Examples:
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> sample = t5jax.decoding.sampler(keys, temperature=jnp.float32(0.7))
      >>> sample(jnp.log(jnp.array([[0.0, 1.0], [1.0, 0.0]])), jnp.int32(0)).tolist()
      [1, 0]
    """

    def sample(logits: Float[Array, "B V"], position: Int[Array, ""]) -> Int[Array, " B"]:
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(row_keys, position)
        return jax.vmap(jax.random.categorical)(keys, truncation(logits / temperature))

    return sample


def top_k(logits: Float[Array, "B V"], k: Int[Array, ""], *, max_k: int) -> Float[Array, "B V"]:
    """Keep the `k` most likely tokens.  (arXiv:1805.04833)

    Args:
      logits: [B, V] float32, -inf for tokens already ruled out.
      k: number of tokens, >= 1; traced.
      max_k: static upper bound of `k`.
    Returns:
      [B, V] logits, -inf for all other tokens.  Ties with the last kept token are kept.

    Examples:
      >>> logits = jnp.array([[3.0, 1.0, 2.0]])
      >>> t5jax.decoding.top_k(logits, jnp.int32(2), max_k=3).tolist()
      [[3.0, -inf, 2.0]]
    """
    best = jax.lax.top_k(logits, min(max_k, logits.shape[-1]))[0]
    threshold = jnp.take(best, jnp.minimum(k, best.shape[-1]) - 1, axis=-1)
    return _keep(logits, logits >= threshold[:, None])


def top_p(logits: Float[Array, "B V"], p: Float[Array, ""]) -> Float[Array, "B V"]:
    """Keep the smallest set of most likely tokens with total probability >= `p`.

    This is nucleus sampling.  (arXiv:1904.09751)

    Args:
      logits: [B, V] float32, -inf for tokens already ruled out.
      p: total probability, in (0, 1].
    Returns:
      [B, V] logits, -inf for all other tokens.  Ties with the last kept token are kept.

    Examples:
      >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
      >>> (t5jax.decoding.top_p(logits, jnp.float32(0.7)) > -jnp.inf).tolist()
      [[True, True, False]]
    """
    descending = -jnp.sort(-logits, axis=-1)
    preceding = jnp.cumsum(jax.nn.softmax(descending), axis=-1) - jax.nn.softmax(descending)
    # The last kept token is the last one preceded by less than p; the first always is.
    last = jnp.sum(preceding < p, axis=-1, dtype=jnp.int32) - 1
    threshold = jnp.take_along_axis(descending, jnp.maximum(last, 0)[:, None], axis=-1)
    return _keep(logits, logits >= threshold)


def min_p(logits: Float[Array, "B V"], p: Float[Array, ""]) -> Float[Array, "B V"]:
    """Keep tokens at least `p` times as likely as the most likely one.  (arXiv:2407.01082)

    Args:
      logits: [B, V] float32, -inf for tokens already ruled out.
      p: fraction of the highest probability, in [0, 1].
    Returns:
      [B, V] logits, -inf for all other tokens.

    Examples:
      >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
      >>> (t5jax.decoding.min_p(logits, jnp.float32(0.5)) > -jnp.inf).tolist()
      [[True, True, False]]
    """
    return _keep(logits, logits >= jnp.max(logits, axis=-1, keepdims=True) + jnp.log(p))


def typical(logits: Float[Array, "B V"], p: Float[Array, ""]) -> Float[Array, "B V"]:
    """Keep the smallest set of most typical tokens with total probability >= `p`.

    A token is typical if its surprisal is close to the entropy, the expected surprisal.
    (arXiv:2202.00666)

    Args:
      logits: [B, V] float32, -inf for tokens already ruled out.
      p: total probability, in (0, 1].
    Returns:
      [B, V] logits, -inf for all other tokens.  Ties with the last kept token are kept.

    Examples:
      >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))  # 0.69, 1.20, 1.61 nats; entropy 1.03
      >>> (t5jax.decoding.typical(logits, jnp.float32(0.2)) > -jnp.inf).tolist()
      [[False, True, False]]
    """
    log_probs = jax.nn.log_softmax(logits)
    probs = jnp.exp(log_probs)
    surprisal = jnp.where(probs > 0, -log_probs, 0.0)
    entropy = jnp.sum(probs * surprisal, axis=-1, keepdims=True)
    distance = jnp.where(probs > 0, jnp.abs(surprisal - entropy), jnp.inf)
    order = jnp.argsort(distance, axis=-1)
    cumulative = jnp.cumsum(jnp.take_along_axis(probs, order, axis=-1), axis=-1)
    last = jnp.minimum(jnp.sum(cumulative < p, axis=-1, dtype=jnp.int32), logits.shape[-1] - 1)
    sorted_distance = jnp.take_along_axis(distance, order, axis=-1)
    threshold = jnp.take_along_axis(sorted_distance, last[:, None], axis=-1)
    return _keep(logits, distance <= threshold)


def _keep(logits: Float[Array, "B V"], kept: Bool[Array, "B V"]) -> Float[Array, "B V"]:
    return jnp.where(kept, logits, -jnp.inf)
