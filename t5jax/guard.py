"""Which training steps count: not those that are not finite, nor those that spike."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# The running mean of gradient norms: its decay, and the steps before it judges any.
_NORM_DECAY, _NORM_STEPS = 0.98, 50


class Norms(NamedTuple):
    """Gradient norms of the steps that were not skipped."""

    mean: Float[Array, ""]
    """Running mean, float32."""
    num_steps: Int[Array, ""]
    """How many went into it."""


def no_norms() -> Norms:
    """Before the first step."""
    return Norms(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))


def judge(
    norms: Norms | None, total: Array, norm: Array, spike_factor: float | None
) -> tuple[Bool[Array, ""], Norms | None]:
    """Whether a step is to count, and what later ones are compared with.

    Args:
      norms: of the steps before; None looks for no spikes.
      total: the step's loss.
      norm: of its gradient.
      spike_factor: times the mean norm from which on a gradient is a spike.
    """
    sound = jnp.isfinite(total) & jnp.isfinite(norm)
    if norms is None or spike_factor is None:
        return sound, norms
    sound &= (norms.num_steps < _NORM_STEPS) | (norm <= spike_factor * norms.mean)
    # A plain mean at first, a fading one later.
    share = jnp.maximum(1.0 / (norms.num_steps + 1).astype(jnp.float32), 1.0 - _NORM_DECAY)
    mean = norms.mean + share * (norm - norms.mean)
    return sound, choose(sound, Norms(mean, norms.num_steps + 1), norms)


def choose(sound: Bool[Array, ""], new: Any, old: Any) -> Any:
    """The new tree if the step counts, else the old one."""
    return jax.tree.map(lambda x, y: jnp.where(sound, x, y), new, old)
