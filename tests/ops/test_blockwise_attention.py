"""Blockwise attention against dense attention and its automatic gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.dense_attention import H, N, check, dense, example

from t5jax.ops.blockwise_attention import bias_by_distance, blockwise_attend, sum_diagonals
from t5jax.ops.masks import Segments


def by_blocks_of(block):
    def attend(q, k, v, bias, segments):
        return blockwise_attend(q, k, v, segments=segments, bias=bias, block=block)

    return attend


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["all", "padding", "segments"])
@pytest.mark.parametrize("lengths", [(16, 16), (37, 37), (21, 43), (43, 21), (1, 9)])
def test_attend_and_gradients_equal_dense(lengths, kind, causal):
    check(by_blocks_of(16), *lengths, kind=kind, causal=causal)


@pytest.mark.parametrize("block", [8, 37, 512])
def test_attend_is_the_same_for_every_block(block):
    check(by_blocks_of(block), 37, 37, kind="segments", causal=True)


def test_attend_without_bias_equals_dense():
    check(by_blocks_of(16), 21, 43, kind="padding", causal=False, has_bias=False)


def test_attend_of_scores_that_overflow_exp_equals_dense():
    (q, k, v, bias), _, segments, mask = example(37, 37, kind="segments", causal=False)
    found = blockwise_attend(100 * q, k, v, segments=segments, bias=bias, block=16)
    assert float(jnp.abs(jnp.einsum("bnth,bnsh->bnts", 100 * q, k)).max()) > 89  # log of the most
    # Scores of size 1000 have errors of 1e-4.
    np.testing.assert_allclose(found, dense(100 * q, k, v, bias, mask), rtol=0, atol=1e-3)


def test_attend_in_bfloat16_is_as_near_as_its_roundings():
    (q, k, v, bias), _, segments, mask = example(
        37, 37, kind="padding", causal=True, dtype=jnp.bfloat16
    )
    found = blockwise_attend(q, k, v, segments=segments, bias=bias, block=16)
    assert found.dtype == jnp.bfloat16
    wide = dense(*(x.astype(jnp.float32) for x in (q, k, v)), bias, mask)
    # Two roundings to 8 bits of values up to 3.
    np.testing.assert_allclose(found.astype(jnp.float32), wide, rtol=0, atol=0.02)


def test_by_distance_is_a_toeplitz_block_and_by_diagonal_its_transpose():
    row = jnp.arange(3.0 + 4.0)
    expected = [[2, 3, 4, 5], [1, 2, 3, 4], [0, 1, 2, 3]]
    np.testing.assert_array_equal(bias_by_distance(row, 3), expected)
    block = jnp.asarray(np.random.default_rng(0).integers(0, 9, (2, 3, 4)), jnp.float32)
    sums = [[np.trace(x, d) for d in range(-2, 4)] + [0] for x in np.asarray(block)]
    np.testing.assert_array_equal(sum_diagonals(block), sums)


def test_attend_memory_is_linear_in_length():
    def memory(length):
        x = jax.ShapeDtypeStruct((1, N, length, H), jnp.float32)
        bias = jax.ShapeDtypeStruct((N, 2 * length - 1), jnp.float32)

        def total(q, k, v, bias):
            found = by_blocks_of(64)(q, k, v, bias, Segments(None, None, False))
            return (found**2).sum()

        run = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))
        return run.lower(x, x, x, bias).compile().memory_analysis().temp_size_in_bytes

    assert memory(4096) < 2.2 * memory(2048)
