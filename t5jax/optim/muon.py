"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; arXiv:2502.16982)."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32, Int32, PyTree

from t5jax.optim.layers import IsStacked, increment, map_moments
from t5jax.parallel import on_cpu, path_name

DIRECTION_RMS = 0.2  # AdamW's is 0.2 to 0.4 (arXiv:2502.16982, section 2.2)
SQUARE_FLOOR = 1e-30  # avoids 0 / 0 for zero gradients
# Five steps of a x + b x^3 + c x^5 bring singular values close to one (Jordan et al. 2024).
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5


class MuonState(NamedTuple):
    """State of Muon.

    Attributes:
      count: number of updates so far.
      moments: the parameter tree, with each parameter replaced by float32 moments of its shape:
        {"momentum"} for layer matrices, else Adam's {"mu", "nu"}.
    """

    count: Int32[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    moments: PyTree[Float32[Array, "..."]]


def scale_by_muon(
    *, momentum: float, adam: optax.GradientTransformation, is_stacked: IsStacked
) -> optax.GradientTransformation:
    """Orthogonalize the gradients of layer matrices, and apply Adam to all others.

    For each matrix [I, O] in a stack of layers, with gradient g:

      m = momentum m + (1 - momentum) g
      direction = 0.2 sqrt(max(I, O)) orthogonalize(momentum m + (1 - momentum) g)

    Matrices named `embedding` are tables and use Adam.  Mesh axes must have the type Auto.

    Args:
      momentum: decay of the running mean m, in [0, 1).
      adam: transformation of all other parameters, from `optax.scale_by_adam`.
      is_stacked: predicate on paths.
    Returns:
      optax transformation of float32 trees, with a `MuonState`.
    Raises:
      ValueError: `init` found no matrix in a stack.
    """

    def is_matrix(path: jax.tree_util.KeyPath, param: Array) -> bool:
        name = path_name(path)
        # A layer may also have a table: its relative position bias.
        is_table = name.rpartition("/")[2] == "embedding"
        return is_stacked(name) and param.ndim == 3 and not is_table

    def init(params: PyTree) -> MuonState:
        def init_moments(path: jax.tree_util.KeyPath, param: Array) -> dict[str, Array]:
            names = ("momentum",) if is_matrix(path, param) else ("mu", "nu")
            return {name: jnp.zeros_like(param) for name in names}

        if not any(is_matrix(*leaf) for leaf in jax.tree.leaves_with_path(params)):
            raise ValueError("muon must have layer matrices to train, got none; use adamw instead.")
        moments = jax.tree.map_with_path(init_moments, params)
        return MuonState(count=jnp.zeros((), jnp.int32), moments=moments)

    def average(mean: Array, grad: Array) -> Array:
        return momentum * mean + (1.0 - momentum) * grad

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, MuonState]:
        del params

        def update_leaf(
            _: jax.tree_util.KeyPath, grad: Array, moments: dict[str, Array]
        ) -> tuple[Array, dict[str, Array]]:
            if "momentum" not in moments:
                adam_state = optax.ScaleByAdamState(state.count, **moments)
                direction, new = cast(Any, adam.update(grad, adam_state))
                return direction, {"mu": new.mu, "nu": new.nu}
            mean = average(moments["momentum"], grad)
            direction = orthogonalize_layers(average(mean, grad))  # Nesterov's look-ahead
            scale = DIRECTION_RMS * max(grad.shape[1:]) ** 0.5
            return scale * direction, {"momentum": mean}

        directions, moments = map_moments(update_leaf, updates, state.moments)
        return directions, MuonState(increment(state.count), moments)

    return optax.GradientTransformation(init, update)


def orthogonalize_layers(stack: Float32[Array, "L I O"]) -> Float32[Array, "L I O"]:
    """Orthogonalize every matrix of a stack.

    With a loop, a mesh gathers one layer at a time.  On CPU the layers form one batch instead,
    because XLA gives matmuls inside a loop fewer threads (jax 0.10.2).  Measure with
    `python benchmarks/train.py --optimizer muon`, and drop the batch once the loop is as fast.
    """
    if on_cpu():
        return jax.vmap(orthogonalize)(stack)
    return jax.lax.map(orthogonalize, stack)


def orthogonalize(matrix: Float32[Array, "I O"]) -> Float32[Array, "I O"]:
    """Bring the singular values of a matrix close to one by Newton-Schulz iteration.

    Args:
      matrix: [I, O]; a zero matrix is returned unchanged.
    Returns:
      [I, O], with singular values in about [0.68, 1.2], or smaller if they were below about 1/700
      of the Frobenius norm.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x * jax.lax.rsqrt(jnp.sum(jnp.square(x)) + SQUARE_FLOOR)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if tall else x
