"""Products against float64, as far as the types they are computed in allow."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5jax.ops import linear
from t5jax.ops.linear import (
    concatenate_kernels,
    einsum,
    einsum_f32,
    is_kernel,
    matmul,
    matmul_f32,
    quantize_kernel,
    softmax,
)

I, O = 24, 10  # noqa: E741
ROWS = [1, 2, 7, 64, 65]
F32, BF16 = jnp.float32, jnp.bfloat16
# A float32 sum of n products errs by less than n * 2**-24 of the sum of their sizes.
SUM = I * 2.0**-24
# One rounding to the 8 bits of bfloat16's mantissa.
ROUNDING = 2.0**-8
# Rounding an activation to 127 steps of 254 steps each moves it by half a step at most.
STEP = 0.5 / 127 / 254


def drawn(shape, dtype, seed=0):
    values = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(values.astype(np.float32)).astype(dtype)


def exact(*arrays):
    return [np.asarray(array.astype(F32), np.float64) for array in arrays]


def assert_close(found, x, kernel, *, rounded=0.0):
    x, kernel = exact(x, kernel)
    sizes = np.abs(x) @ np.abs(kernel)
    error = np.abs(exact(found)[0] - x @ kernel)
    assert np.all(error <= SUM * sizes + rounded * (np.abs(x @ kernel) + SUM * sizes))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_multiply_equals_float64_in_the_type_of_x(rows, dtype):
    x, kernel = drawn((rows, I), dtype), drawn((I, O), dtype, 1)
    found = matmul(x, kernel)
    assert (found.shape, found.dtype) == ((rows, O), dtype)
    assert_close(found, x, kernel, rounded=ROUNDING if dtype == BF16 else 0)


def test_multiply_rounds_a_wide_kernel_to_the_type_of_x():
    x, kernel = drawn((3, I), BF16), drawn((I, O), F32, 1)
    assert_close(matmul(x, kernel), x, kernel.astype(BF16), rounded=ROUNDING)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("types", [(F32, F32), (BF16, BF16), (F32, BF16), (BF16, F32)])
def test_multiply_wide_equals_float64_in_float32(rows, types):
    x, kernel = drawn((rows, I), types[0]), drawn((I, O), types[1], 1)
    found = matmul_f32(x, kernel)
    assert (found.shape, found.dtype) == ((rows, O), F32)
    assert_close(found, x, kernel)


@pytest.mark.parametrize("multiply", [matmul, matmul_f32])
@pytest.mark.parametrize("axes", [(), (3,), (2, 3), (1, 2, 3)])
def test_multiply_takes_any_number_of_axes(multiply, axes):
    x, kernel = drawn((*axes, I), F32), drawn((I, O), F32, 1)
    for one in (kernel, quantize_kernel(kernel)):
        found = multiply(x, one)
        assert found.shape == (*axes, O)
        flat = multiply(x.reshape(-1, I), one)
        np.testing.assert_array_equal(found, flat.reshape(found.shape))


@pytest.mark.parametrize("queries", [1, 2, 5])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_contract_equals_float64_for_scores_and_what_is_read(dtype, queries):
    query, key = drawn((2, 3, queries, I), dtype), drawn((2, 3, 7, I), dtype, 1)
    scores = einsum("bnth,bnsh->bnts", query, key)
    wide = einsum_f32("bnth,bnsh->bnts", query, key)
    assert scores.dtype == dtype
    assert wide.dtype == F32
    assert scores.shape == wide.shape == (2, 3, queries, 7)
    rounded = ROUNDING if dtype == BF16 else 0
    turned = key.swapaxes(2, 3)
    assert_close(scores, query, turned, rounded=rounded)
    assert_close(wide, query, turned)
    weights = drawn((2, 3, queries, 7), dtype, 2)
    read = einsum("bnts,bnsh->bnth", weights, key)
    assert (read.shape, read.dtype) == ((2, 3, queries, I), dtype)
    assert_close(read, weights, key, rounded=rounded)


@pytest.mark.parametrize("rows", [1, 3])
def test_multiply_has_the_gradient_of_a_matrix_product(rows):
    x, kernel, out = drawn((2, rows, I), F32), drawn((I, O), F32, 1), drawn((2, rows, O), F32, 2)
    _, back = jax.vjp(matmul, x, kernel)
    to_x, to_kernel = back(out)
    x, kernel, out = exact(x, kernel, out)
    # Sums of up to 10 products of size 1.
    np.testing.assert_allclose(to_x, out @ kernel.T, rtol=0, atol=1e-5)
    np.testing.assert_allclose(to_kernel, np.einsum("bti,bto->io", x, out), rtol=0, atol=1e-5)


# int8.


@pytest.mark.parametrize("shape", [(I, O), (3, I, O), (1, O), (I, 1)])
def test_quantize_moves_no_weight_by_more_than_half_a_step(shape):
    sizes = 10.0 ** np.arange(-4, 4)[np.arange(shape[-1]) % 8]
    kernel = jnp.asarray(np.asarray(drawn(shape, F32)) * sizes.astype(np.float32))
    found = quantize_kernel(kernel)
    assert found.values.dtype == jnp.int8
    assert found.scale.dtype == F32
    assert found.shape == shape
    assert found.size == kernel.size
    assert found.scale.shape == (*shape[:-2], shape[-1])
    assert np.abs(np.asarray(found.values)).max(axis=-2).min() == 127  # every column's largest
    scale, weights = exact(found.scale, kernel)
    # And the last bits of float32: of the quotient, up to 127, and of the product.
    error = np.abs(exact(found.dequantize(F32))[0] - weights)
    assert np.all(error <= scale[..., None, :] * (0.5 + 127 * 2.0**-22))


def test_quantize_of_a_column_of_zeros_is_zero():
    kernel = drawn((I, O), F32).at[:, 3].set(0.0)
    found = quantize_kernel(kernel)
    assert not np.asarray(found.dequantize(F32))[:, 3].any()
    assert np.isfinite(matmul(drawn((2, I), F32), found)).all()


def test_quantize_of_bfloat16_is_that_of_its_values():
    kernel = drawn((I, O), BF16)
    one, other = quantize_kernel(kernel), quantize_kernel(kernel.astype(F32))
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.scale, other.scale)


def assert_close_int8(found, x, kernel, *, rounded=0.0):
    """To the product with the widened kernel; activations have 16 bits of the largest of a row."""
    x, wide = exact(x, kernel.dequantize(F32))
    sizes = np.abs(x).max(-1, keepdims=True) * np.abs(wide).sum(0)[None]
    error = np.abs(exact(found)[0] - x @ wide)
    assert np.all(error <= (STEP + 2 * SUM) * sizes + rounded * np.abs(x @ wide))
    assert (STEP + 2 * SUM) < 1e-4


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_multiply_of_int8_equals_the_widened_kernel(rows, dtype):
    sizes = jnp.asarray(10.0 ** (np.arange(rows) % 7 - 3), dtype)
    x = drawn((rows, I), dtype) * sizes[:, None]
    kernel = quantize_kernel(drawn((I, O), F32, 1))
    found = matmul(x, kernel)
    assert (found.shape, found.dtype) == ((rows, O), dtype)
    assert_close_int8(found, x, kernel, rounded=ROUNDING if dtype == BF16 else 0)
    wide = matmul_f32(x, kernel)
    assert (wide.shape, wide.dtype) == ((rows, O), F32)
    assert_close_int8(wide, x, kernel)


@pytest.mark.parametrize("rows", [3, 65])
def test_multiply_of_int8_takes_rows_and_columns_of_zeros(rows):
    x = drawn((rows, I), F32).at[1].set(0.0)
    kernel = quantize_kernel(drawn((I, O), F32, 1).at[:, 4].set(0.0))
    found = np.asarray(matmul(x, kernel))
    assert not found[1].any()
    assert not found[:, 4].any()
    assert_close_int8(jnp.asarray(found), x, kernel)


def test_multiply_of_int8_takes_rows_of_one_size_and_tiny_ones():
    x = jnp.concatenate([jnp.ones((1, I)), -jnp.ones((1, I)), jnp.full((1, I), 1e-30)])
    kernel = quantize_kernel(drawn((I, O), F32, 1))
    assert_close_int8(matmul(x, kernel), x, kernel)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_products_are_the_same_on_accelerators(monkeypatch, dtype):
    """As far as this machine can tell: the way that they take there."""
    x, kernel = drawn((3, I), dtype), drawn((I, O), dtype, 1)
    narrow = quantize_kernel(kernel)
    monkeypatch.setattr(linear, "on_cpu", lambda: False)
    rounded = ROUNDING if dtype == BF16 else 0
    # XLA may then round partial sums of bfloat16, of which there are few.
    assert_close(matmul(x, kernel), x, kernel, rounded=4 * rounded)
    assert_close(matmul_f32(x, kernel), x, kernel)
    assert_close_int8(matmul(x, narrow), x, narrow, rounded=rounded)


def test_join_puts_outputs_next_to_one_another():
    x = drawn((5, I), F32)
    parts = [drawn((I, size), F32, size) for size in (3, 10, 1)]
    expected = [matmul(x, part) for part in parts]
    found = matmul(x, concatenate_kernels(*parts))
    np.testing.assert_allclose(found, jnp.concatenate(expected, axis=-1), rtol=0, atol=1e-5)
    narrow = [quantize_kernel(part) for part in parts]
    joined = concatenate_kernels(*narrow)
    assert joined.shape == (I, 14)
    expected = [matmul(x, part) for part in narrow]
    # The same integers in the same order.
    found = matmul(x, joined)
    np.testing.assert_allclose(found, jnp.concatenate(expected, axis=-1), rtol=1e-6)


def test_is_kernel_tells_an_int8_kernel_from_its_parts():
    kernel = quantize_kernel(drawn((I, O), F32))
    tree = {"a": kernel, "b": jnp.zeros(3)}
    assert [*map(is_kernel, jax.tree.leaves(tree, is_leaf=is_kernel))] == [
        True,
        False,
    ]
    assert len(jax.tree.leaves(tree)) == 3


def test_multiply_int8_has_the_gradient_of_the_widened_kernel():
    rng = np.random.default_rng(5)
    kernel = quantize_kernel(jnp.asarray(rng.normal(size=(9, 7)).astype(np.float32)))
    x = jnp.asarray(rng.normal(size=(3, 9)).astype(np.float32))
    found = jax.grad(lambda x: jnp.sum(matmul(x, kernel)))(x)
    wide = np.asarray(kernel.values, np.float64) * np.asarray(kernel.scale, np.float64)
    expected = np.broadcast_to(wide.sum(axis=1), (3, 9))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)  # float32 sums of seven


@pytest.mark.parametrize(
    ("subscripts", "shapes"),
    [
        ("...i,io->...o", ((2, 3, 8), (8, 5))),
        ("...i,io->...o", ((1, 8), (8, 5))),
        ("bnth,bnsh->bnts", ((2, 3, 4, 8), (2, 3, 5, 8))),
        ("bnts,bnsh->bnth", ((2, 3, 1, 5), (2, 3, 5, 8))),
    ],
)
def test_contract_has_narrow_gradients_that_equal_wide_ones(subscripts, shapes):
    rng = np.random.default_rng(6)
    x, y = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes)

    def total(function, x, y):
        return jnp.sum(jnp.sin(function(subscripts, x, y).astype(jnp.float32)))

    def wide(subscripts, x, y):
        return jnp.einsum(subscripts, x.astype(jnp.float32), y.astype(jnp.float32))

    gradients = jax.jit(jax.grad(total, (1, 2)), static_argnums=0)
    expected = gradients(wide, x, y)
    for function in (einsum, einsum_f32):
        lowered = gradients.lower(function, x, y)
        dots = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
        assert len(dots) == 3
        assert all(line.count("bf16>") == 2 for line in dots)
        for one, other in zip(gradients(function, x, y), expected, strict=True):
            assert one.dtype == jnp.bfloat16
            # Results, their gradients and the products of these are rounded to 8 bits each.
            np.testing.assert_allclose(
                one.astype(jnp.float32), other.astype(jnp.float32), rtol=0.05, atol=0.1
            )


@pytest.mark.parametrize("columns", [96, 64, 33])
def test_contract_adds_up_narrow_gradients_along_rows_in_memory(columns):
    # A CPU's fast product of narrow types has the sum along the first factor's last axis.
    x, y = jnp.ones((48, columns), jnp.bfloat16), jnp.ones((columns, 40), jnp.bfloat16)

    def total(y):
        return jnp.sum(einsum_f32("...i,io->...o", x, y))

    text = jax.jit(jax.grad(total)).lower(y).compile().as_text()
    assert re.findall(r"lhs_contracting_dims=\{(\d)\}, rhs_contracting_dims=\{(\d)\}", text) == [
        ("1", "0")
    ]


def test_softmax_of_a_narrow_type_has_the_gradient_of_the_wide_one():
    rng = np.random.default_rng(8)
    scores, seen = (jnp.float32(rng.normal(size=(2, 3, 4, 9), scale=scale)) for scale in (3, 1))

    def total(scores, dtype):
        return jnp.sum(softmax(scores, dtype).astype(jnp.float32) * seen)

    assert softmax(scores, jnp.bfloat16).dtype == jnp.bfloat16
    expected = jax.grad(lambda scores: jnp.sum(jax.nn.softmax(scores) * seen))(scores)
    np.testing.assert_array_equal(jax.grad(total)(scores, jnp.float32), expected)
    found = jax.grad(total)(scores, jnp.bfloat16)
    assert found.dtype == jnp.float32
    # Weights of at most 1 and their gradients are rounded to 8 bits.
    np.testing.assert_allclose(found, expected, atol=0.02)
