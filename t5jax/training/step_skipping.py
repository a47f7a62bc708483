"""Skip updates with a non-finite loss or gradient, or with a spiking gradient.

`optax.apply_if_finite` does not replace this: it judges updates and not the loss, knows no spikes,
and applies what is not finite after too many skipped steps, where this raises an error. Its
counters would become part of the optimizer state in checkpoints.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5jax.training.tracker import Tracker

# Decay of the running mean of gradient norms, and steps before it is compared with.
_NORM_DECAY, _NORM_STEPS = 0.98, 50


class GradientNorms(NamedTuple):
    """Gradient norms of the steps that were not skipped."""

    mean: Float[Array, ""]
    """Running mean, float32."""
    num_steps: Int[Array, ""]
    """Number of steps in it."""


def init_norms() -> GradientNorms:
    """Return the norms before the first step."""
    return GradientNorms(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))


def should_apply(
    norms: GradientNorms | None, total: Array, norm: Array, spike_factor: float | None
) -> tuple[Bool[Array, ""], GradientNorms | None]:
    """Decide if the update of a step is applied.

    Args:
      norms: gradient norms of the steps before; None applies spikes.
      total: loss of the step.
      norm: norm of its gradient.
      spike_factor: a norm above this many times the mean is a spike.
    Returns:
      True to apply the update, and the norms that later steps are compared with.
    """
    applied = jnp.isfinite(total) & jnp.isfinite(norm)
    if norms is None or spike_factor is None:
        return applied, norms
    applied &= (norms.num_steps < _NORM_STEPS) | (norm <= spike_factor * norms.mean)
    # A plain mean at first, a fading one later.
    share = jnp.maximum(1.0 / (norms.num_steps + 1).astype(jnp.float32), 1.0 - _NORM_DECAY)
    mean = norms.mean + share * (norm - norms.mean)
    return applied, select_tree(applied, GradientNorms(mean, norms.num_steps + 1), norms)


def select_tree(applied: Bool[Array, ""], new: Any, old: Any) -> Any:
    """Return the new tree if the update is applied, else the old one."""
    return jax.tree.map(lambda x, y: jnp.where(applied, x, y), new, old)


class SkipMonitor:
    """Counts skipped steps, and ends a run in which no step succeeds any more."""

    def __init__(
        self,
        max_skipped: int,
        *,
        tracker: Tracker,
        chunk_ids: Callable[[int], Sequence[int]] | None,
    ):
        """Count from zero.

        Args:
          max_skipped: number of steps in a row that may be skipped.
          tracker: receives the number of skipped steps and their chunks.
          chunk_ids: returns the chunks of text that a step trains on.
        """
        self._max_skipped = max_skipped
        self._tracker = tracker
        self._chunk_ids = chunk_ids
        self._in_a_row = 0
        self.total = 0

    def check(self, step: int, metrics: dict[str, float]) -> None:
        """Check the metrics of a step; steps come in order.

        Raises:
          ValueError: the loss is not finite and the step was not skipped, or too many were.
        """
        if not metrics.get("skipped"):
            if not math.isfinite(metrics["loss"]):
                raise ValueError(
                    f"the loss must be finite, got {metrics['loss']} at step {step}; lower the "
                    "learning rate and start again, or continue with other text: checkpoints "
                    "before are intact."
                )
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self.total += 1
        chunks = [] if self._chunk_ids is None else [int(i) for i in self._chunk_ids(step)]
        self._tracker.log(step, {"skipped/steps": self.total, "skipped/chunks": chunks})
        if self._in_a_row > self._max_skipped:
            raise ValueError(
                f"at most {self._max_skipped} steps in a row may be skipped, got {self._in_a_row} "
                f"up to step {step}, with loss {metrics['loss']}; lower the learning rate, or look "
                "at the chunks of text in metrics.jsonl: checkpoints before are intact."
            )
