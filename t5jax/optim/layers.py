"""Optimizer helpers that treat the layers of a stack as separate parameters."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32, Int32, PyTree

from t5jax.parallel import path_name

IsStacked = Callable[[str], bool]
"""Predicate on the "/"-joined path of a parameter: True if its leading axis is layers."""


def per_layer(function: Callable, path: jax.tree_util.KeyPath, is_stacked: IsStacked) -> Callable:
    """Map a function of one layer over the leading axis if the parameter is stacked.

    Args:
      function: maps arrays of one layer to arrays.
      path: key path of the parameter.
      is_stacked: predicate on paths.
    """
    return jax.vmap(function) if is_stacked(path_name(path)) else function


def map_moments(function: Callable, grads: PyTree, moments: PyTree) -> tuple[PyTree, PyTree]:
    """Map a function over gradients and their moments.

    Args:
      function: maps (key path, gradient, its moments) to (direction, new moments).
      grads: tree of gradients.
      moments: the same tree, with a tree of moments in place of each gradient.
    Returns:
      The tree of directions, and the tree of new moments.
    """
    leaves, tree = jax.tree.flatten_with_path(grads)
    leaf_moments = tree.flatten_up_to(moments)
    results = [
        function(path, grad, own) for (path, grad), own in zip(leaves, leaf_moments, strict=True)
    ]
    directions, new_moments = zip(*results, strict=True) if results else ((), ())
    return tree.unflatten(directions), tree.unflatten(new_moments)


def increment(count: Int32[Array, ""]) -> Int32[Array, ""]:
    """Add one to a step count, saturating instead of overflowing."""
    return jnp.asarray(optax.safe_increment(count))


def rms(x: Float32[Array, "..."]) -> Float32[Array, ""]:
    """Return the root mean square of all elements."""
    return jnp.sqrt(jnp.mean(jnp.square(x)))
