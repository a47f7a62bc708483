"""Partition parameters into trained and frozen ones.

The loss is differentiated by the trained ones alone. `optax.selective_transform` would compute the
gradient of all parameters first, and count frozen ones in its norm.
"""

from collections.abc import Sequence
from typing import Any

import jax

from t5jax.parallel import matches_path, path_name


def partition_params(tree: Any, patterns: Sequence[str]) -> tuple[Any, Any]:
    """Split parameters in two trees of the same structure, with None where the other has a leaf.

    Args:
      tree: a nested dict of parameters.
      patterns: regular expressions over whole '/'-separated parts of a path, such as `encoder` or
        `(encoder|decoder)/.*/relative_bias`; parameters that match one of them are frozen.
    Returns:
      Trained and frozen parameters.
    Raises:
      ValueError: a pattern matches no parameter, or nothing is left to train.
    """
    paths = [path_name(path) for path, _ in jax.tree.leaves_with_path(tree)]
    for pattern in patterns:
        if not any(matches_path(pattern, path) for path in paths):
            raise ValueError(
                f"frozen must name parameters of this model, got {pattern!r}, which fits none; "
                f"there are {', '.join(sorted({path.partition('/')[0] for path in paths}))}, and "
                f"paths below them such as {paths[0]}."
            )

    def frozen(path: Any) -> bool:
        return any(matches_path(pattern, path_name(path)) for pattern in patterns)

    trained = jax.tree.map_with_path(lambda path, x: None if frozen(path) else x, tree)
    if not jax.tree.leaves(trained):
        raise ValueError(f"frozen must leave something to train, got {list(patterns)}.")
    return trained, jax.tree.map_with_path(lambda path, x: x if frozen(path) else None, tree)


def merge_params(trained: Any, frozen: Any) -> Any:
    """Merge the trees that `partition_params` returned."""
    return jax.tree.map(
        lambda x, y: y if x is None else x, trained, frozen, is_leaf=lambda x: x is None
    )
