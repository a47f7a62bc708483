"""Learning rate schedules, functions of the step."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax

ScheduleName = Literal["rsqrt", "constant", "linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Shape, height and warm-up of the learning rate.

    The rate is relative: all optimizers multiply it by the RMS of the parameter they update.
    T5 pre-trains with rsqrt, 1.0, 10000 and fine-tunes with constant, 0.001, 0; nanoT5 pre-trains
    AdamW with cosine, 0.02, 10000.

    Attributes:
      name: Shape: rsqrt is T5's 1/sqrt(step) after a flat start; the others ramp up linearly, then
        stay (constant) or fall to final_fraction of the peak at the last step (linear, cosine).
      learning_rate: Peak rate; for rsqrt the base, which gives a peak of learning_rate /
        sqrt(warmup_steps).
      warmup_steps: Number of steps of the ramp; for rsqrt, of the flat start.
      final_fraction: Rate at the last step, as a fraction of the peak; linear and cosine only.
    """

    name: ScheduleName
    learning_rate: float
    warmup_steps: int
    final_fraction: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in get_args(ScheduleName):
            raise ValueError(
                f"name must be one of {', '.join(get_args(ScheduleName))}, got {self.name!r}; "
                "T5 pre-trains with rsqrt and fine-tunes with constant."
            )
        min_warmup_steps = 1 if self.name == "rsqrt" else 0
        if self.warmup_steps < min_warmup_steps:
            raise ValueError(
                f"warmup_steps must be >= {min_warmup_steps} for {self.name}, "
                f"got {self.warmup_steps}; T5 pre-trains with 10000."
            )
        if not 0 < self.peak < 1:
            raise ValueError(
                f"the highest rate must be in (0, 1), got {self.peak:g} from "
                f"learning_rate={self.learning_rate} for {self.name}; the rate is relative to the "
                "size of a parameter: T5 peaks at 0.01 (1.0 is the base of rsqrt alone)."
            )
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(
                f"final_fraction must be in [0, 1], got {self.final_fraction}; "
                "0 ends a run at a rate of zero."
            )
        if self.final_fraction and not self.spans_run:
            raise ValueError(
                f"final_fraction must be left out for {self.name}, got {self.final_fraction}; "
                "linear and cosine are the schedules that end."
            )

    @property
    def peak(self) -> float:
        """The highest rate the schedule reaches."""
        flat_start = self.name == "rsqrt"
        return self.learning_rate / (math.sqrt(self.warmup_steps) if flat_start else 1.0)

    @property
    def spans_run(self) -> bool:
        """True if the rate at a step depends on the length of the run."""
        return self.name in ("linear", "cosine")


def learning_rate_schedule(config: ScheduleConfig, *, total_steps: int) -> optax.Schedule:
    """Build the schedule of a config.

    With w = warmup_steps, steps counted from 0:

      rsqrt: learning_rate / sqrt(max(step, w)), with no ramp (arXiv:1910.10683, section 3.1.2);
      others: peak * (step + 1) / w while step < w, so that step 0 already moves the parameters and
              step w - 1 is at the peak; the decay begins at step w.

    Args:
      config: shape, height and warm-up.
      total_steps: number of updates in the run; linear and cosine reach their final rate at this
        step and keep it, the others ignore it.
    Returns:
      step -> float32 scalar; works inside jit.
    Raises:
      ValueError: the schedule spans the run and the run is not longer than its warm-up.
    """
    if config.spans_run and total_steps <= config.warmup_steps:
        raise ValueError(
            f"total_steps must be more than warmup_steps={config.warmup_steps} for {config.name}, "
            f"got {total_steps}; lower warmup_steps, or use the constant schedule."
        )
    schedule = _schedule(config, total_steps)

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        # optax divides steps as Python floats, which strict promotion refuses for an int32 step.
        return jnp.asarray(schedule(jnp.asarray(step).astype(jnp.float32)), jnp.float32)

    return rate


def _schedule(config: ScheduleConfig, total_steps: int) -> optax.Schedule:
    peak, warmup = config.peak, config.warmup_steps
    decay_steps = total_steps - warmup
    match config.name:
        case "rsqrt":
            return lambda step: config.learning_rate / jnp.sqrt(jnp.maximum(step, float(warmup)))
        case "constant":
            decay = optax.constant_schedule(peak)
        case "linear":
            decay = optax.linear_schedule(peak, config.final_fraction * peak, decay_steps)
        case "cosine":
            decay = optax.cosine_decay_schedule(peak, decay_steps, alpha=config.final_fraction)
    if warmup == 0:
        return decay
    ramp = optax.linear_schedule(peak / warmup, peak, warmup - 1)
    return optax.join_schedules([ramp, decay], [warmup])
