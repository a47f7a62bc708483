"""Learning rate schedules."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax

ScheduleName = Literal["rsqrt", "constant", "linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Shape, peak and warm-up of the learning rate.

    The rate is relative: all optimizers multiply it by the RMS of the parameter they update.
    T5 pre-trains with rsqrt, 1.0, 10000 and fine-tunes with constant, 0.001, 0; nanoT5 pre-trains
    AdamW with cosine, 0.02, 10000.

    Attributes:
      name: rsqrt = T5's 1/sqrt(step) after a flat start; the others warm up linearly, then are
        constant or decay to final_fraction of the peak (linear, cosine)
      learning_rate: peak rate; for rsqrt the numerator, with a peak of learning_rate /
        sqrt(warmup_steps)
      warmup_steps: number of warm-up steps; for rsqrt, length of the flat start
      final_fraction: linear, cosine: rate at the last step as a fraction of the peak

    Examples:
      >>> t5jax.optim.ScheduleConfig(name="rsqrt", learning_rate=1.0, warmup_steps=10000).peak
      0.01
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
                f"the peak rate must be in (0, 1), got {self.peak:g} from "
                f"learning_rate={self.learning_rate} for {self.name}; rates are relative to the "
                "RMS of a parameter, and T5 peaks at 0.01 (its learning_rate of 1.0 is for rsqrt)."
            )
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(
                f"final_fraction must be in [0, 1], got {self.final_fraction}; 0 decays to zero."
            )
        if self.final_fraction and not self.spans_run:
            raise ValueError(
                f"final_fraction must be left out for {self.name}, got {self.final_fraction}; "
                "it is an option of linear and cosine."
            )

    @property
    def peak(self) -> float:
        """Highest rate of the schedule."""
        flat_start = self.name == "rsqrt"
        return self.learning_rate / (math.sqrt(self.warmup_steps) if flat_start else 1.0)

    @property
    def spans_run(self) -> bool:
        """True if the rate depends on the length of the run."""
        return self.name in ("linear", "cosine")


def learning_rate_schedule(config: ScheduleConfig, *, total_steps: int) -> optax.Schedule:
    """Build an optax schedule from its config.

    With w = warmup_steps, steps counted from 0:

      rsqrt: learning_rate / sqrt(max(step, w)), with no ramp (arXiv:1910.10683, section 3.1.2);
      others: peak * (step + 1) / w while step < w, so that step 0 already moves the parameters and
              step w - 1 is at the peak; the decay begins at step w.

    Args:
      config: shape, peak and warm-up.
      total_steps: number of updates in the run; linear and cosine reach their final rate at this
        step and keep it, the others ignore it.
    Returns:
      Function from the step to a float32 scalar, usable inside `jax.jit`.
    Raises:
      ValueError: total_steps <= warmup_steps, for linear and cosine.

    Examples:
      >>> config = t5jax.optim.ScheduleConfig(name="linear", learning_rate=0.4, warmup_steps=4)
      >>> rate = t5jax.optim.learning_rate_schedule(config, total_steps=8)
      >>> [round(float(rate(step)), 3) for step in range(9)]
      [0.1, 0.2, 0.3, 0.4, 0.4, 0.3, 0.2, 0.1, 0.0]
    """
    if config.spans_run and total_steps <= config.warmup_steps:
        raise ValueError(
            f"total_steps must be more than warmup_steps={config.warmup_steps} for {config.name}, "
            f"got {total_steps}; lower warmup_steps, or use the constant schedule."
        )
    schedule = _schedule(config, total_steps)

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        # optax divides steps by Python floats, which strict promotion rejects for int32.
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
