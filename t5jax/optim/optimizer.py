"""Optimizers with steps relative to the RMS of the parameter: Adafactor, AdamW and Muon.

They work on any pytree of parameters.  The layers of a stacked parameter are treated as separate
parameters.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from t5jax.optim import schedules
from t5jax.optim.adafactor import scale_by_adafactor
from t5jax.optim.layers import IsStacked, per_layer, rms
from t5jax.optim.muon import scale_by_muon

MIN_PARAMETER_RMS = 1e-3  # so that parameters initialized to zero can move
OptimizerName = Literal["adafactor", "adamw", "muon"]
_OWN_OPTIONS = {
    "adafactor": ("decay_exponent", "clip_threshold"),
    "adamw": ("b1", "b2", "eps", "weight_decay"),
    "muon": ("momentum", "b1", "b2", "eps", "weight_decay"),
}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer and its options.

    Options of other optimizers must keep their defaults.

    Attributes:
      name: adafactor = T5's optimizer, low memory; adamw = Adam with steps scaled by the RMS of the
        parameter; muon = orthogonal steps for layer matrices, adamw for the rest
      schedule: learning rate schedule
      clip_norm: maximum global gradient norm; None disables clipping
      decay_exponent: adafactor: c in the second-moment decay 1 - (step + 1)^-c; higher averages
        over more steps
      clip_threshold: adafactor: maximum RMS of a parameter's update, before the learning rate
      b1: adamw, muon: decay of Adam's first moment
      b2: adamw, muon: decay of Adam's second moment
      eps: adamw, muon: added to the root of Adam's second moment
      weight_decay: adamw, muon: decoupled weight decay per step, multiplied by the learning rate;
        vectors are exempt
      momentum: muon: decay of the running mean of gradients

    Examples:
      >>> schedule = t5jax.optim.ScheduleConfig(
      ...     name="cosine", learning_rate=0.02, warmup_steps=10000
      ... )
      >>> t5jax.optim.OptimizerConfig(name="adamw", schedule=schedule, clip_norm=1.0).b2
      0.999
    """

    name: OptimizerName
    schedule: schedules.ScheduleConfig
    clip_norm: float | None = None
    decay_exponent: float = 0.8
    clip_threshold: float = 1.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.0
    momentum: float = 0.95

    def __post_init__(self) -> None:
        if self.name not in _OWN_OPTIONS:
            raise ValueError(
                f"name must be one of {', '.join(_OWN_OPTIONS)}, got {self.name!r}; "
                "T5 uses adafactor."
            )
        for field in dataclasses.fields(self):
            owners = [owner for owner, options in _OWN_OPTIONS.items() if field.name in options]
            value = getattr(self, field.name)
            if owners and self.name not in owners and value != field.default:
                raise ValueError(
                    f"{field.name} must be left out for {self.name}, got {value}; "
                    f"it is an option of {' and '.join(owners)}."
                )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be > 0 or None, got {self.clip_norm}; 1 is usual.")
        if not 0 < self.decay_exponent <= 1:
            raise ValueError(
                f"decay_exponent must be in (0, 1], got {self.decay_exponent}; 0.8 is usual."
            )
        if not self.clip_threshold > 0:
            raise ValueError(f"clip_threshold must be > 0, got {self.clip_threshold}; 1 is usual.")
        for name, usual in (("momentum", 0.95), ("b1", 0.9), ("b2", 0.999)):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be in [0, 1), got {getattr(self, name)}; {usual} is usual."
                )
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps must be > 0 and finite, got {self.eps}; 1e-06 is usual.")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"weight_decay must be >= 0 and finite, got {self.weight_decay}; 0 is usual."
            )


def make_optimizer(
    config: OptimizerConfig, *, total_steps: int, stacked: IsStacked
) -> optax.GradientTransformation:
    """Build an optax optimizer with steps relative to the RMS of each parameter.

    For each parameter p, or each layer of a stack, with gradient g and step count t from 0:

      update = -rate(t) * (max(RMS(p), 1e-3) * direction(g) + weight_decay * p)

    The direction is Adafactor's (arXiv:1804.04235, see `scale_by_adafactor`), Adam's for AdamW
    (arXiv:1412.6980; the RMS factor makes it work for T5, as in nanoT5's AdamWScale) or Muon's
    (arXiv:2502.16982, see `scale_by_muon`).  Gradients are clipped first.  Weight decay is
    decoupled (arXiv:1711.05101) and exempts vectors.

    Args:
      config: optimizer and its options.
      total_steps: number of updates in the run, used by linear and cosine schedules.
      stacked: predicate on the "/"-joined path of a parameter: True if its leading axis is layers.
    Returns:
      optax transformation.  `update` requires the parameters and returns updates in their dtype.
      The state is an `AdafactorState`, `optax.ScaleByAdamState` or `MuonState`, in float32.
    Raises:
      ValueError: the run is too short for the schedule.  Later: `init` found no matrix in a stack
        (muon), or `update` got no parameters.

    Examples:
      >>> schedule = t5jax.optim.ScheduleConfig(
      ...     name="constant", learning_rate=0.1, warmup_steps=0
      ... )
      >>> config = t5jax.optim.OptimizerConfig(name="adafactor", schedule=schedule)
      >>> tx = t5jax.optim.make_optimizer(config, total_steps=10, stacked=t5jax.models.is_stacked)
      >>> params = {"w": jnp.full(2, 4.0)}
      >>> updates, state = tx.update({"w": jnp.full(2, 7.0)}, tx.init(params), params)
      >>> updates["w"]  # -learning_rate * RMS
      Array([-0.4, -0.4], dtype=float32)
    """
    rate = schedules.learning_rate_schedule(config.schedule, total_steps=total_steps)
    scale = _scale_by(config, stacked)
    clip = None if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)

    def init(params: optax.Params) -> optax.OptState:
        return scale.init(_float32(params))

    def update(
        updates: optax.Updates, state: PyTree, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError(
                "params must be the parameters, since their RMS scales the step, got None; "
                "call update(grads, state, params)."
            )
        grads = _float32(updates)
        if clip is not None:
            grads, _ = clip.update(grads, optax.EmptyState())
        directions, new_state = scale.update(grads, state)
        step_rate = jnp.asarray(rate(state.count))

        def leaf_step(path: jax.tree_util.KeyPath, direction: Array, param: Array) -> Array:
            def layer_step(direction: Array, param: Array) -> Array:
                step = direction * jnp.maximum(rms(param), MIN_PARAMETER_RMS)
                if config.weight_decay and param.ndim > 1:
                    step += config.weight_decay * param
                return -step_rate * step

            step = per_layer(layer_step, path, stacked)(direction, param.astype(jnp.float32))
            return step.astype(param.dtype)

        return jax.tree.map_with_path(leaf_step, directions, params), new_state

    return optax.GradientTransformation(init, update)


def _scale_by(config: OptimizerConfig, stacked: IsStacked) -> optax.GradientTransformation:
    """Return the transformation from gradients to directions, both in float32."""
    match config.name:
        case "adafactor":
            return scale_by_adafactor(
                decay_exponent=config.decay_exponent,
                clip_threshold=config.clip_threshold,
                is_stacked=stacked,
            )
        case "adamw":
            return _scale_by_adam(config)
        case "muon":
            return scale_by_muon(
                momentum=config.momentum, adam=_scale_by_adam(config), is_stacked=stacked
            )


def _scale_by_adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return Adam's scaling (arXiv:1412.6980, algorithm 1), usable with strict promotion."""
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None
    ) -> tuple[PyTree, optax.OptState]:
        del params
        # optax raises a Python float to the power of the int32 count, which strict promotion
        # rejects.
        with jax.numpy_dtype_promotion("standard"):
            return adam.update(updates, state)

    return optax.GradientTransformation(adam.init, update)


def _float32(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)
