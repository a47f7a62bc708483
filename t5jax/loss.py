"""What training minimises."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Loss(NamedTuple):
    """Sums over the tokens of a batch, so that batches and devices add up; all float32 scalars."""

    total: Float[Array, ""]
    """Cross entropy plus z-loss, weighted: what is differentiated."""
    cross_entropy: Float[Array, ""]
    """In nats, weighted, without z-loss."""
    correct: Float[Array, ""]
    """Weighted count of targets that had the highest logit."""
    weight: Float[Array, ""]
    """Sum of the weights: the number of tokens that counted."""


def cross_entropy(
    logits: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    z_loss: float,
) -> Loss:
    r"""Token-weighted cross entropy with a penalty on the log-partition function.

    .. math:: \sum_i w_i \left( \log Z_i - x_{i, y_i} + \zeta \log^2 Z_i \right)

    The penalty keeps logits from drifting; T5 v1.1 and later were trained with 1e-4.
    (arXiv:2204.02311, section 5)

    Args:
      logits: float32.
      targets: ids.
      weights: 0 where a token does not count.
      z_loss: weight of the penalty, the zeta above.
    """
    log_z = jax.scipy.special.logsumexp(logits, axis=-1)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    # Chosen, not multiplied: what does not count must not be able to turn the sum into NaN.
    counts = weights != 0
    entropy = jnp.sum(jnp.where(counts, weights * (log_z - target_logits), 0.0))
    penalty = z_loss * jnp.sum(jnp.where(counts, weights * jnp.square(log_z), 0.0))
    correct = jnp.sum(jnp.where(jnp.argmax(logits, axis=-1) == targets, weights, 0.0))
    return Loss(entropy + penalty, entropy, correct, jnp.sum(weights))
