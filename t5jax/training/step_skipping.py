"""Which training steps count: not those that are not finite, nor those that spike."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# The running mean of gradient norms: its decay, and the steps before it judges any.
_NORM_DECAY, _NORM_STEPS = 0.98, 50


class GradientNorms(NamedTuple):
    """Gradient norms of the steps that were not skipped."""

    mean: Float[Array, ""]
    """Running mean, float32."""
    num_steps: Int[Array, ""]
    """How many went into it."""


def init_norms() -> GradientNorms:
    """Before the first step."""
    return GradientNorms(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))


def should_apply(
    norms: GradientNorms | None, total: Array, norm: Array, spike_factor: float | None
) -> tuple[Bool[Array, ""], GradientNorms | None]:
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
    return sound, select_tree(sound, GradientNorms(mean, norms.num_steps + 1), norms)


def select_tree(sound: Bool[Array, ""], new: Any, old: Any) -> Any:
    """The new tree if the step counts, else the old one."""
    return jax.tree.map(lambda x, y: jnp.where(sound, x, y), new, old)


class SkipMonitor:
    """Counts skipped steps, and stops a run in which nothing else happens any more."""

    def __init__(
        self,
        *,
        most: int,
        locate: Callable[[int], Sequence[int]] | None,
        report: Callable[[int, dict[str, Any]], None],
    ):
        """Counts from zero.

        Args:
          most: skipped steps in a row that are borne.
          locate: the numbers of the chunks of text that a step learns from.
          report: is given the step and what is known of it.
        """
        self._most = most
        self._locate = locate
        self._report = report
        self._in_a_row = 0
        self.total = 0

    def check(self, step: int, metrics: dict[str, float]) -> None:
        """Looks at the metrics of a step; steps come in order.

        Raises:
          ValueError: the loss is not finite and the step was not skipped, or too many were.
        """
        if not metrics.get("skipped"):
            if not math.isfinite(metrics["loss"]):
                raise ValueError(
                    f"the loss must be finite, got {metrics['loss']} at step {step}; lower the "
                    "learning rate and start anew, or continue with other text: checkpoints "
                    "before are intact."
                )
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self.total += 1
        chunks = [] if self._locate is None else [int(i) for i in self._locate(step)]
        self._report(step, {"skipped_steps": self.total, "skipped_chunks": chunks})
        if self._in_a_row > self._most:
            raise ValueError(
                f"at most {self._most} steps in a row may be skipped, got {self._in_a_row} up to "
                f"step {step}, with loss {metrics['loss']}; lower the learning rate, or look at "
                "the chunks of text in metrics.jsonl: checkpoints before are intact."
            )
