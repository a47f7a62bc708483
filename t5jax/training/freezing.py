"""Parameters that training leaves as they are."""

from collections.abc import Sequence
from typing import Any

import jax

from t5jax.parallel import matches_path, path_name


def partition_params(tree: Any, patterns: Sequence[str]) -> tuple[Any, Any]:
    """What is trained and what is frozen: two trees of one structure, None where the other has it.

    Args:
      tree: a nested dict of parameters.
      patterns: regular expressions over whole '/'-separated parts of a path, such as `encoder` or
        `(encoder|decoder)/.*/relative_bias`; what one of them fits is frozen.
    Raises:
      ValueError: a pattern fits no parameter, or nothing is left to train.
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
    """The tree that `partition_params` divided."""
    return jax.tree.map(
        lambda x, y: y if x is None else x, trained, frozen, is_leaf=lambda x: x is None
    )
