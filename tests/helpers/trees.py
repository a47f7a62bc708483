"""Trees of arrays, compared bit for bit: NaN is NaN, and -0.0 is not 0.0."""

import jax
import numpy as np


def flat(params) -> dict[str, np.ndarray]:
    """Leaves by '/'-joined path; a flat dict is its own."""
    leaves = jax.tree.leaves_with_path(params)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in leaves}


def assert_same_bits(found, expected):
    """Also of the same names, types and shapes."""
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name
