"""Products, sums and softmax of activations, in float32 and in bfloat16.

The plain expressions are `jnp.einsum`, `x + bias`, `jax.nn.softmax` and `jnp.sum`.  A CPU has fast
kernels for bfloat16 in some shapes only, so some products are written in a roundabout way there.
Each way that differs from the plain one says why; all of them were seen to pay with jax 0.10.2.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from t5jax.parallel import on_cpu


def einsum(subscripts: str, x: Array, y: Array) -> Array:
    """Compute `jnp.einsum` of two arrays of one type; rows of `x` are its last axis but one.

    A CPU has fast kernels for bfloat16 only if the result is float32, which is rounded once
    (jax 0.10.2, benchmarks/train.py in bfloat16).
    """
    if x.dtype == jnp.bfloat16 and on_cpu():
        return einsum_f32(subscripts, x, y).astype(x.dtype)
    return jnp.einsum(subscripts, x, y)


def einsum_f32(subscripts: str, x: Array, y: Array) -> Float[Array, "..."]:
    """Compute `einsum` with a float32 result.

    Gradients are products of the same narrow type: that of the result is rounded to it first, so
    that the backward pass is as fast as the forward pass (jax 0.10.2, benchmarks/train.py in
    bfloat16).  Every index must occur in two of the three terms.
    """
    if x.dtype == jnp.float32:
        return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)
    # Named indices can change places, as gradients need.
    free = "ABCDEFG"[: x.ndim - len(subscripts.partition(",")[0].replace("...", ""))]
    return _einsum_narrow(subscripts.replace("...", free), x, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _einsum_narrow(subscripts: str, x: Array, y: Array) -> Float[Array, "..."]:
    two = _two_rows(x)
    product = jnp.einsum(subscripts, two, y, preferred_element_type=jnp.float32)
    return product[..., : x.shape[-2], :] if two is not x else product


def _einsum_narrow_forward(subscripts: str, x: Array, y: Array) -> tuple[Array, Any]:
    return _einsum_narrow(subscripts, x, y), (x, y)


def _einsum_narrow_backward(subscripts: str, kept: Any, cotangent: Array) -> tuple[Array, Array]:
    x, y = kept
    terms, out = subscripts.split("->")
    of_x, of_y = terms.split(",")
    narrow = cotangent.astype(x.dtype)
    wide = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    to_x = wide(f"{out},{of_y}->{of_x}", narrow, y)
    summed = of_x[-2]
    if on_cpu() and out[-2] == summed and set(of_x[:-2]) <= set(of_y):
        # The fast kernel wants the factor that gives the rows of the result first, and the sum
        # along its last axis.
        (rows, first), (columns, second) = (of_x, x), (out, narrow)
        if of_y[-2] not in rows:
            (rows, first), (columns, second) = (columns, second), (rows, first)
        turned = rows[:-2] + rows[-1] + rows[-2]
        to_y = wide(f"{turned},{columns}->{of_y}", _transpose_in_memory(first), second)
    else:
        to_y = wide(f"{of_x},{out}->{of_y}", x, narrow)
    return to_x.astype(x.dtype), to_y.astype(y.dtype)


_einsum_narrow.defvjp(_einsum_narrow_forward, _einsum_narrow_backward)


def _transpose_in_memory(x: Float[Array, "*A R C"]) -> Float[Array, "*A C R"]:
    """Exchange the last two axes in memory.

    XLA would fold a transpose into the product after it, and a CPU has a fast kernel for narrow
    types only if the sum runs along the first factor's last axis.  It does not fold one of three
    axes that a reshape follows (jax 0.10.2, benchmarks/train.py in bfloat16).
    """
    *outer, rows, columns = x.shape
    part = math.gcd(columns, 32)
    parts = jnp.moveaxis(x.reshape(*outer, rows, columns // part, part), -3, -1)
    return jax.lax.optimization_barrier(parts).reshape(*outer, columns, rows)


def add_bias(x: Float[Array, "B *A"], bias: Float[Array, "#B *A"]) -> Float[Array, "B *A"]:
    """Add a bias, shared by all examples or one for each; see `sum_examples` for its gradient."""
    return _add_shared(x, bias) if bias.shape[0] == 1 else x + bias


@jax.custom_vjp
def _add_shared(x: Array, shared: Array) -> Array:
    return x + shared


def _add_shared_forward(x: Array, shared: Array) -> tuple[Array, None]:
    return x + shared, None


def _add_shared_backward(_: None, cotangent: Array) -> tuple[Array, Array]:
    return cotangent, sum_examples(cotangent)


_add_shared.defvjp(_add_shared_forward, _add_shared_backward)


def softmax(scores: Float[Array, "*A S"], dtype: Any) -> Float[Array, "*A S"]:
    """Compute the softmax over the last axis in float32 and round it to a type.

    Its gradient is that at the rounded result, so that nothing wider is kept for it (jax 0.10.2,
    benchmarks/train.py in bfloat16).
    """
    if dtype == jnp.float32:
        return jax.nn.softmax(scores)
    return _softmax_narrow(scores, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _softmax_narrow(scores: Array, dtype: Any) -> Array:
    return jax.nn.softmax(scores).astype(dtype)


def _softmax_narrow_forward(scores: Array, dtype: Any) -> tuple[Any, Any]:
    weights = _softmax_narrow(scores, dtype)
    return weights, weights


def _softmax_narrow_backward(dtype: Any, weights: Array, cotangent: Array) -> tuple[Array]:
    wide = weights.astype(jnp.float32)
    product = wide * cotangent.astype(jnp.float32)
    return (product - wide * jnp.sum(product, axis=-1, keepdims=True),)


_softmax_narrow.defvjp(_softmax_narrow_forward, _softmax_narrow_backward)


def sum_examples(x: Float[Array, "B *A"]) -> Float[Array, "1 *A"]:
    """Sum over the first axis.

    A CPU's reductions of that axis are many times slower than products (jax 0.10.2,
    benchmarks/train.py, and benchmarks/attention.py for blockwise attention).
    """
    if on_cpu():
        return jnp.tensordot(jnp.ones((1, len(x)), x.dtype), x, axes=1)
    return jnp.sum(x, axis=0, keepdims=True)


def _two_rows(x: Array) -> Array:
    """Return `x`, its only row twice on a CPU, whose fast bfloat16 kernels start at two rows.

    (jax 0.10.2, benchmarks/decode.py in bfloat16 at batch 1)
    """
    if x.shape[-2] == 1 and x.dtype == jnp.bfloat16 and on_cpu():
        return jnp.broadcast_to(x, (*x.shape[:-2], 2, x.shape[-1]))
    return x
