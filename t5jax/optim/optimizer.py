"""Adafactor as T5X computes it, AdamW, and Muon; all step in proportion to the parameter's size.

They work on any pytree of parameters. A parameter may be a stack of layers on its leading axis; it
is then treated, layer by layer, as the separate parameters it holds.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int32, PyTree

from t5jax.ops import on_cpu
from t5jax.optim import schedules
from t5jax.parallel import path_name

MIN_FACTORED_DIM = 128  # T5X's; Mesh TensorFlow's code has 32, but T5's configs set 128


MIN_PARAMETER_RMS = 1e-3  # lets a parameter that starts at zero move


SQUARE_FLOOR = 1e-30  # Adafactor's epsilon_1: no moment is ever zero, nor Muon's norm


MUON_RMS = 0.2  # of Muon's directions; AdamW's is 0.2 to 0.4 (arXiv:2502.16982, section 2.2)


# Five steps of a x + b x^3 + c x^5 bring singular values near one.
# https://kellerjordan.github.io/posts/muon
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


_NEWTON_SCHULZ_STEPS = 5


OptimizerName = Literal["adafactor", "adamw", "muon"]


_Init = Callable[[PyTree], Any]  # parameters -> state


_Direct = Callable[[PyTree, Any], tuple[PyTree, Any]]  # gradients, state -> directions, state


_OWN_OPTIONS = {
    "adafactor": ("decay_exponent", "clip_threshold"),
    "adamw": ("b1", "b2", "eps", "weight_decay"),
    "muon": ("momentum", "b1", "b2", "eps", "weight_decay"),
}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Which optimizer, and how it steps.

    Options that the chosen optimizer does not have must keep their defaults.
    """

    name: OptimizerName
    """adafactor: T5's, with little memory; adamw: with steps scaled by the parameter's RMS; muon:
    scaled likewise, orthogonal for the matrices of layers, adamw's for all else."""
    schedule: schedules.ScheduleConfig
    """Learning rate over the run."""
    clip_norm: float | None = None
    """Highest global norm of the gradient; a larger gradient is scaled down. None: no limit."""
    decay_exponent: float = 0.8
    """adafactor: c in the moment decay 1 - (step + 1)^-c; higher remembers more."""
    clip_threshold: float = 1.0
    """adafactor: highest RMS of one parameter's update, before the learning rate."""
    b1: float = 0.9
    """adamw, muon: decay of Adam's first moment."""
    b2: float = 0.999
    """adamw, muon: decay of Adam's second moment."""
    eps: float = 1e-6
    """adamw, muon: added to the root of Adam's second moment."""
    weight_decay: float = 0.0
    """adamw, muon: fraction of a matrix removed per step, times the learning rate; vectors are
    exempt."""
    momentum: float = 0.95
    """muon: decay of the running mean of a matrix's gradients."""

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
        for option, holds, rule, usual in (
            ("clip_norm", self.clip_norm is None or self.clip_norm > 0, "> 0 or None", 1),
            ("decay_exponent", 0 < self.decay_exponent <= 1, "in (0, 1]", 0.8),
            ("clip_threshold", self.clip_threshold > 0, "> 0", 1),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)", 0.95),
            ("b1", 0 <= self.b1 < 1, "in [0, 1)", 0.9),
            ("b2", 0 <= self.b2 < 1, "in [0, 1)", 0.999),
            ("eps", 0 < self.eps < math.inf, "> 0 and finite", 1e-6),
            ("weight_decay", 0 <= self.weight_decay < math.inf, ">= 0 and finite", 0),
        ):
            if not holds:
                raise ValueError(
                    f"{option} must be {rule}, got {getattr(self, option)}; {usual} is usual."
                )


class AdafactorState(NamedTuple):
    """What Adafactor remembers between updates.

    count: updates made so far.
    moments: the tree of the parameters, each replaced by its second moments in float32:
      {"row", "col"} if factored, else {"full"}. A moment has the rank of its parameter, with size 1
      on the axis that it averages: the largest for "row", the second largest for "col".
    """

    count: Int32[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    moments: PyTree[Float32[Array, "..."]]


class MuonState(NamedTuple):
    """What Muon remembers between updates.

    count: updates made so far.
    moments: the tree of the parameters, each replaced by its float32 moments, of its shape:
      {"momentum"} for a matrix of a layer, else Adam's {"mu", "nu"}.
    """

    count: Int32[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    moments: PyTree[Float32[Array, "..."]]


def make_optimizer(
    config: OptimizerConfig, *, total_steps: int, stacked: Callable[[str], bool]
) -> optax.GradientTransformation:
    """Build the optimizer.

    For each parameter p, or each layer of a stack, with gradient g and step count t from 0:

      update = -rate(t) * (max(RMS(p), 1e-3) * direction(g) + weight_decay * p)

    Adafactor (arXiv:1804.04235) has direction g / sqrt(v), scaled down to RMS clip_threshold; v is
    the running mean of g^2, for large matrices the outer product of its row and column means.
    AdamW has Adam's direction (arXiv:1412.6980); the RMS makes it train T5 (nanoT5's AdamWScale).
    Muon's, for a matrix [I, O] of a stack, is 0.2 sqrt(max(I, O)) times about the orthogonal matrix
    nearest to 0.95 m + 0.05 g, where m is the running mean of g and 0.95 the momentum (Jordan et
    al. 2024; arXiv:2502.16982).  For tables, named `embedding`, and for parameters outside of
    stacks it is Adam's.  Mesh axes must be of type Auto.

    Args:
      config: the optimizer and its options.
      total_steps: updates in the run, for schedules that span it.
      stacked: whether the parameter at a path, keys joined by "/", has layers as leading axis.
    Returns:
      init and update as in optax. `update` needs the parameters; its updates have their dtype. The
      state is one `AdafactorState`, `optax.ScaleByAdamState` or `MuonState`, in float32, whatever
      the options.
    Raises:
      ValueError: the schedule spans a run that is too short for it.  By `init`: Muon finds no
        matrix in a stack.
    """
    rate = schedules.learning_rate_schedule(config.schedule, total_steps=total_steps)
    makers = {"adafactor": _adafactor, "adamw": _adam, "muon": _muon}
    init_moments, direct = makers[config.name](config, stacked)
    limit = None if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)

    def init(params: optax.Params) -> optax.OptState:
        return init_moments(_float32(params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError(
                "params must be the parameters, whose RMS scales the step, got None; "
                "call update(grads, state, params)."
            )
        grads = _float32(updates)
        if limit is not None:
            grads, _ = limit.update(grads, optax.EmptyState())
        directions, new_state = direct(grads, state)
        step_rate = jnp.asarray(rate(state.count))

        def leaf_step(path: jax.tree_util.KeyPath, direction: Array, param: Array) -> Array:
            def layer_step(direction: Array, param: Array) -> Array:
                step = direction * jnp.maximum(_rms(param), MIN_PARAMETER_RMS)
                if config.weight_decay and param.ndim > 1:
                    step += config.weight_decay * param
                return -step_rate * step

            step = _per_layer(layer_step, path, stacked)(direction, param.astype(jnp.float32))
            return step.astype(param.dtype)

        return jax.tree.map_with_path(leaf_step, directions, params), new_state

    return optax.GradientTransformation(init, update)


def _adafactor(config: OptimizerConfig, stacked: Callable[[str], bool]) -> tuple[_Init, _Direct]:
    def init(params: PyTree) -> AdafactorState:
        moments = jax.tree.map_with_path(
            lambda path, param: _per_layer(_zero_moments, path, stacked)(param), params
        )
        return AdafactorState(count=jnp.zeros((), jnp.int32), moments=moments)

    def direct(grads: PyTree, state: AdafactorState) -> tuple[PyTree, AdafactorState]:
        decay = 1.0 - (state.count + 1).astype(jnp.float32) ** -config.decay_exponent

        def layer(grad: Array, moments: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
            return _adafactor_direction(grad, moments, decay, clip_at=config.clip_threshold)

        directions, moments = _map_with_moments(
            lambda path, *leaves: _per_layer(layer, path, stacked)(*leaves), grads, state.moments
        )
        return directions, AdafactorState(_increment(state.count), moments)

    return init, direct


def _map_with_moments(function: Callable, grads: PyTree, moments: PyTree) -> tuple[PyTree, PyTree]:
    """Maps function(path, gradient, moments) -> (direction, moments); a tree of each."""
    paths_and_grads, tree = jax.tree.flatten_with_path(grads)
    results = [
        function(path, grad, of_grad)
        for (path, grad), of_grad in zip(paths_and_grads, tree.flatten_up_to(moments), strict=True)
    ]
    return tree.unflatten([one for one, _ in results]), tree.unflatten([two for _, two in results])


def _increment(count: Array) -> Array:
    return jnp.asarray(optax.safe_increment(count))


def _averaged_axes(shape: tuple[int, ...]) -> dict[str, int | None]:
    """Which moments a parameter of this shape has, and the axis each averages."""
    if len(shape) < 2:
        return {"full": None}
    # Stable, so that of equal axes the last counts as the largest on every machine.
    second, largest = (int(axis) for axis in np.argsort(shape, kind="stable")[-2:])
    return {"full": None} if shape[second] < MIN_FACTORED_DIM else {"row": largest, "col": second}


def _zero_moments(param: Float[Array, "..."]) -> dict[str, Array]:
    return {
        name: jnp.zeros([1 if i == axis else n for i, n in enumerate(param.shape)], jnp.float32)
        for name, axis in _averaged_axes(param.shape).items()
    }


def _adafactor_direction(
    grad: Array, moments: dict[str, Array], decay: Array, *, clip_at: float
) -> tuple[Array, dict[str, Array]]:
    squares = jnp.square(grad) + SQUARE_FLOOR
    axes = _averaged_axes(grad.shape)
    moments = {
        name: decay * moments[name]
        + (1.0 - decay) * (squares if axis is None else squares.mean(axis, keepdims=True))
        for name, axis in axes.items()
    }
    if "full" in moments:
        direction = grad * jax.lax.rsqrt(moments["full"])
    else:
        row, col = moments["row"], moments["col"]
        # The outer product row * col estimates the moment times its mean, which row holds too.
        relative_row = row / row.mean(axes["col"], keepdims=True)
        direction = grad * jax.lax.rsqrt(relative_row) * jax.lax.rsqrt(col)
    return direction / jnp.maximum(1.0, _rms(direction) / clip_at), moments


def _adam(config: OptimizerConfig, _: Callable[[str], bool]) -> tuple[_Init, _Direct]:
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)

    def direct(grads: PyTree, state: optax.OptState) -> tuple[PyTree, optax.OptState]:
        # optax raises a Python float to the int32 count, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            return adam.update(grads, state)

    return adam.init, direct


def _muon(config: OptimizerConfig, stacked: Callable[[str], bool]) -> tuple[_Init, _Direct]:
    _, adam = _adam(config, stacked)

    def is_matrix(path: jax.tree_util.KeyPath, param: Array) -> bool:
        name = path_name(path)
        # A layer may have a table too, of the biases of its attention.
        is_table = name.rpartition("/")[2] == "embedding"
        return stacked(name) and param.ndim == 3 and not is_table

    def init(params: PyTree) -> MuonState:
        def zeros(path: jax.tree_util.KeyPath, param: Array) -> dict[str, Array]:
            kept = ("momentum",) if is_matrix(path, param) else ("mu", "nu")
            return {moment: jnp.zeros_like(param) for moment in kept}

        if not any(is_matrix(*leaf) for leaf in jax.tree.leaves_with_path(params)):
            raise ValueError(
                "muon must have matrices of layers to train, got none; choose adamw instead."
            )
        moments = jax.tree.map_with_path(zeros, params)
        return MuonState(count=jnp.zeros((), jnp.int32), moments=moments)

    def mean(past: Array, new: Array) -> Array:
        return config.momentum * past + (1.0 - config.momentum) * new

    def direct(grads: PyTree, state: MuonState) -> tuple[PyTree, MuonState]:
        def leaf(
            _: jax.tree_util.KeyPath, grad: Array, moments: dict[str, Array]
        ) -> tuple[Array, dict[str, Array]]:
            if "momentum" not in moments:
                direction, new = adam(grad, optax.ScaleByAdamState(state.count, **moments))
                return direction, {"mu": new.mu, "nu": new.nu}
            momentum = mean(moments["momentum"], grad)
            ahead = mean(momentum, grad)
            if on_cpu():  # what is in a loop gets fewer threads there
                direction = jax.vmap(_orthogonal)(ahead)
            else:  # so that a mesh gathers one layer at a time
                direction = jax.lax.map(_orthogonal, ahead)
            return MUON_RMS * max(grad.shape[1:]) ** 0.5 * direction, {"momentum": momentum}

        directions, moments = _map_with_moments(leaf, grads, state.moments)
        return directions, MuonState(_increment(state.count), moments)

    return init, direct


def _orthogonal(matrix: Float32[Array, "I O"]) -> Float32[Array, "I O"]:
    """The matrix with its singular values brought near one, 0.68 to 1.2; zero stays zero.

    Values below about 1/700 of the norm do not get there.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x * jax.lax.rsqrt(jnp.sum(jnp.square(x)) + SQUARE_FLOOR)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if tall else x


def _per_layer(
    function: Callable, path: jax.tree_util.KeyPath, stacked: Callable[[str], bool]
) -> Callable:
    """Map a function of one layer over the stack, where the parameter at `path` is one."""
    return jax.vmap(function) if stacked(path_name(path)) else function


def _float32(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def _rms(x: Float32[Array, "..."]) -> Float32[Array, ""]:
    return jnp.sqrt(jnp.mean(jnp.square(x)))
