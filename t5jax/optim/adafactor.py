"""Adafactor (Shazeer and Stern 2018, arXiv:1804.04235), as T5X computes it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int32, PyTree

from t5jax.optim.layers import IsStacked, increment, map_moments, per_layer, rms

MIN_FACTORED_DIM = 128  # as in T5X; Mesh TensorFlow defaults to 32, but T5's configs set 128
SQUARE_FLOOR = 1e-30  # epsilon_1 of the paper; keeps moments positive


class AdafactorState(NamedTuple):
    """State of Adafactor.

    Attributes:
      count: number of updates so far.
      moments: the parameter tree, with each parameter replaced by its float32 second moments:
        {"row", "col"} if factored, else {"full"}.  A moment has the rank of its parameter, with
        size 1 on the averaged axis: the largest for "row", the second largest for "col".
    """

    count: Int32[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    moments: PyTree[Float32[Array, "..."]]


def scale_by_adafactor(
    *, decay_exponent: float, clip_threshold: float, is_stacked: IsStacked
) -> optax.GradientTransformation:
    """Divide gradients by the root of Adafactor's factored second moments.

    For each parameter, or each layer of a stack, with gradient g and step count t from 0
    (algorithm 4 of the paper):

      beta = 1 - (t + 1)^-decay_exponent
      v = beta v + (1 - beta) (g^2 + 1e-30)
      u = g / sqrt(v)
      direction = u / max(1, RMS(u) / clip_threshold)

    If the two largest axes have at least 128 elements each, only the means of v along them are
    stored (row and col), and v is estimated as row col / mean(row).

    Args:
      decay_exponent: in (0, 1]; higher averages over more steps.
      clip_threshold: maximum RMS of a direction, > 0.
      is_stacked: predicate on paths.
    Returns:
      optax transformation of float32 trees, with an `AdafactorState`.
    """

    def init(params: PyTree) -> AdafactorState:
        moments = jax.tree.map_with_path(
            lambda path, param: per_layer(_init_moments, path, is_stacked)(param), params
        )
        return AdafactorState(count=jnp.zeros((), jnp.int32), moments=moments)

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, AdafactorState]:
        del params
        beta = 1.0 - (state.count + 1).astype(jnp.float32) ** -decay_exponent

        def update_layer(grad: Array, moments: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
            moments = _update_moments(moments, jnp.square(grad) + SQUARE_FLOOR, beta)
            direction = _divide_by_root(grad, moments)
            return direction / jnp.maximum(1.0, rms(direction) / clip_threshold), moments

        directions, moments = map_moments(
            lambda path, *leaves: per_layer(update_layer, path, is_stacked)(*leaves),
            updates,
            state.moments,
        )
        return directions, AdafactorState(increment(state.count), moments)

    return optax.GradientTransformation(init, update)


def _averaged_axes(shape: tuple[int, ...]) -> dict[str, int | None]:
    """Return the axis that each moment of a parameter averages, by name of the moment."""
    if len(shape) < 2:
        return {"full": None}
    # A stable sort takes the last of equal axes as the largest on every machine.
    second, largest = (int(axis) for axis in np.argsort(shape, kind="stable")[-2:])
    return {"full": None} if shape[second] < MIN_FACTORED_DIM else {"row": largest, "col": second}


def _init_moments(param: Float[Array, "..."]) -> dict[str, Array]:
    return {
        name: jnp.zeros([1 if i == axis else n for i, n in enumerate(param.shape)], jnp.float32)
        for name, axis in _averaged_axes(param.shape).items()
    }


def _update_moments(
    moments: dict[str, Array], squares: Float32[Array, "..."], beta: Float32[Array, ""]
) -> dict[str, Array]:
    return {
        name: beta * moments[name]
        + (1.0 - beta) * (squares if axis is None else squares.mean(axis, keepdims=True))
        for name, axis in _averaged_axes(squares.shape).items()
    }


def _divide_by_root(
    grad: Float32[Array, "..."], moments: dict[str, Array]
) -> Float32[Array, "..."]:
    """Return g / sqrt(v)."""
    if "full" in moments:
        return grad * jax.lax.rsqrt(moments["full"])
    row, col = moments["row"], moments["col"]
    # The outer product row * col estimates the moment times its mean, and mean(row) is that mean.
    relative_row = row / row.mean(_averaged_axes(grad.shape)["col"], keepdims=True)
    return grad * jax.lax.rsqrt(relative_row) * jax.lax.rsqrt(col)
