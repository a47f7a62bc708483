"""Products of activations with one another and with weights, in every type that either may have.

The plain expressions are `jnp.einsum`, `x @ kernel`, `x + bias`, `jax.nn.softmax` and `jnp.sum`.  A
CPU has fast kernels for narrow types in some shapes only, so some products are written in a
roundabout way there.  Each way that differs from the plain one says why; each was measured to be
faster with jax 0.10.2.

Shape letters: I input features, O output features.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from t5jax.parallel import Sharder, on_cpu

_NO_MESH = Sharder()
# Above this many rows, products are bound by arithmetic, and int8 weights are widened first
# (jax 0.10.2 on a CPU, benchmarks/decode.py with int8 weights).
_MANY_ROWS = 64
# int8 counts from -127 to 127; a rounding error of one half is 127 steps of the fine row.
_COARSE, _FINE = 127.0, 254.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Kernel:
    """A kernel in int8: `values * scale`, one scale for each output feature.

    Axes before the last two are stacked layers.
    """

    values: Int8[Array, "*L I O"]
    scale: Float[Array, "*L O"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def size(self) -> int:
        return self.values.size

    def dequantize(self, dtype) -> Float[Array, "*L I O"]:
        """Return the kernel as floats of a type."""
        return (self.values.astype(jnp.float32) * self.scale[..., None, :]).astype(dtype)


Kernel = Array | Int8Kernel


def is_kernel(leaf: object) -> bool:
    """Return whether a node of a parameter tree is an `Int8Kernel`, and so one parameter."""
    return isinstance(leaf, Int8Kernel)


def quantize_kernel(kernel: Float[Array, "*L I O"]) -> Int8Kernel:
    """Round a kernel to int8, symmetrically, by the largest weight of each output feature."""
    kernel = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(kernel), axis=-2) / _COARSE
    steps = kernel / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)[..., None, :]
    return Int8Kernel(jnp.round(steps).astype(jnp.int8), scale)


def concatenate_kernels(*kernels: Kernel) -> Kernel:
    """Concatenate the outputs of kernels into one kernel."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=-1), *kernels)


def flatten_rows(x: Float[Array, "*A I"], sharder: Sharder = _NO_MESH) -> Float[Array, "*rows I"]:
    """Put all positions on one axis, unless devices divide both batch and length.

    A kernel's gradient is then a plain matrix product too, where XLA would transpose whole
    activations on a CPU (jax 0.10.2, benchmarks/train.py).
    """
    if sharder.num_shards(("sequence",)) > 1:
        return x
    # Counted, since reshape cannot infer it of an empty array.
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def matmul(
    x: Float[Array, "*A I"], kernel: Kernel, sharder: Sharder = _NO_MESH
) -> Float[Array, "*A O"]:
    """Multiply every position by a kernel [I, O], in the type of `x`.

    Args:
      x: activations.
      kernel: of any type that weights may have.
      sharder: of the model.
    """
    rows = flatten_rows(x, sharder)
    if isinstance(kernel, Int8Kernel):
        product = _matmul_int8(rows, kernel.values, kernel.scale).astype(x.dtype)
    else:
        product = einsum("...i,io->...o", rows, kernel.astype(x.dtype))
    return product.reshape(*x.shape[:-1], kernel.shape[-1])


def matmul_f32(
    x: Float[Array, "*A I"], kernel: Kernel, sharder: Sharder = _NO_MESH
) -> Float[Array, "*A O"]:
    """`matmul` with a float32 result, in the wider of the two types."""
    rows = flatten_rows(x, sharder)
    if isinstance(kernel, Int8Kernel):
        product = _matmul_int8(rows, kernel.values, kernel.scale)
    elif x.dtype == kernel.dtype:
        product = einsum_f32("...i,io->...o", rows, kernel)
    else:
        product = rows.astype(jnp.float32) @ kernel.astype(jnp.float32)
    return product.reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_jvp
def _matmul_int8(
    x: Float[Array, "A I"], values: Int8[Array, "I O"], scale: Float[Array, " O"]
) -> Float[Array, "A O"]:
    if on_cpu() and len(x) <= _MANY_ROWS:
        return _matmul_int8_rows(x, values, scale)
    return einsum_f32("ai,io->ao", x, values.astype(x.dtype)) * scale[None]


def _matmul_int8_rows(
    x: Float[Array, "A I"], values: Int8[Array, "I O"], scale: Float[Array, " O"]
) -> Float[Array, "A O"]:
    """Multiply by bytes, which a CPU reads in a quarter of the time of floats.

    Activations become two rows of int8, the second for what rounding the first has lost: sixteen
    bits of them, for the price of the second row that the fast kernel wants anyway (jax 0.10.2,
    benchmarks/decode.py with int8 weights).
    """
    count = len(x)
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    steps = x / jnp.where(largest > 0, largest, 1.0) * _COARSE
    coarse = jnp.round(steps)
    fine = jnp.round((steps - coarse) * _FINE)
    rows = jnp.concatenate([coarse, fine]).astype(jnp.int8)
    product = jnp.einsum("ai,io->ao", rows, values, preferred_element_type=jnp.int32)
    product = product.astype(jnp.float32)
    return (product[:count] + product[count:] / _FINE) * (largest / _COARSE) * scale[None]


@_matmul_int8.defjvp
def _matmul_int8_jvp(primals, tangents):
    # Rounding has no derivative; the product that it approximates has one.  Weights in bytes have
    # none either.
    x, values, scale = primals
    wide = values.astype(x.dtype)
    tangent = jnp.einsum("ai,io->ao", tangents[0], wide, preferred_element_type=jnp.float32)
    return _matmul_int8(x, values, scale), tangent * scale[None]


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
