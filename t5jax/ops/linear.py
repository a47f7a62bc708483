"""Matrix multiplication of activations and weights, in every supported dtype.

The plain expressions are `jnp.einsum`, `x @ kernel`, `x + bias`, `jax.nn.softmax` and `jnp.sum`.
CPUs have fast kernels for narrow dtypes only in some shapes, so some functions take a detour there.
Each detour states its reason; each was measured to be faster with jax 0.10.2.

Shape letters: I input features, O output features.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8

from t5jax.parallel import Sharder, on_cpu

_NO_MESH = Sharder()
# Above this number of rows a matmul is compute-bound, and int8 weights are widened first
# (jax 0.10.2 on a CPU, benchmarks/decode.py with int8 weights).
_MANY_ROWS = 64
# int8 covers [-127, 127]; so does a rounding error of at most 0.5, times 254.
_COARSE, _FINE = 127.0, 254.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Kernel:
    """Int8 kernel with one scale per output feature: `values * scale`.

    Axes before the last two are stacked layers.

    Attributes:
      values: [*L, I, O] int8, in [-127, 127].
      scale: [*L, O] float32.

    Examples:
      >>> kernel = t5jax.ops.Int8Kernel(jnp.array([[127, -64]], jnp.int8), jnp.array([0.5, 2.0]))
      >>> kernel.dequantize(jnp.float32).tolist()
      [[63.5, -128.0]]
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
        """Convert the kernel to floating point.

        Args:
          dtype: floating-point dtype of the result.
        Returns:
          [*L, I, O] in `dtype`.
        """
        return (self.values.astype(jnp.float32) * self.scale[..., None, :]).astype(dtype)


Kernel = Array | Int8Kernel


def is_kernel(leaf: object) -> bool:
    """Return True if a node of a parameter tree is an `Int8Kernel`.

    Pass it as `is_leaf` to treat a quantized kernel as one parameter.

    Args:
      leaf: node of a parameter tree.
    Returns:
      True for an `Int8Kernel`.

    Examples:
      >>> tree = {"query": t5jax.ops.quantize_kernel(jnp.ones((3, 4)))}
      >>> len(jax.tree.leaves(tree)), len(jax.tree.leaves(tree, is_leaf=t5jax.ops.is_kernel))
      (2, 1)
    """
    return isinstance(leaf, Int8Kernel)


def quantize_kernel(kernel: Float[Array, "*L I O"]) -> Int8Kernel:
    """Quantize a kernel to int8, symmetrically.

    The scale of an output feature is its largest absolute weight / 127.

    Args:
      kernel: [*L, I, O] floating point.
    Returns:
      The int8 kernel.

    Examples:
      >>> t5jax.ops.quantize_kernel(jnp.array([[2.0, -4.0], [0.0, 1.0]])).values.tolist()
      [[127, -127], [0, 32]]
    """
    kernel = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(kernel), axis=-2) / _COARSE
    steps = kernel / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)[..., None, :]
    return Int8Kernel(jnp.round(steps).astype(jnp.int8), scale)


def concatenate_kernels(*kernels: Kernel) -> Kernel:
    """Concatenate kernels along their output features."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=-1), *kernels)


def flatten_rows(x: Float[Array, "*A I"], sharder: Sharder = _NO_MESH) -> Float[Array, "*rows I"]:
    """Flatten all axes except the last, unless the mesh shards the sequence.

    The gradient of a kernel is then a plain matmul too, where XLA on CPU would transpose whole
    activations (jax 0.10.2, benchmarks/train.py).
    """
    if sharder.num_shards(("sequence",)) > 1:
        return x
    # Not -1, which reshape cannot infer for an empty array.
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def matmul(
    x: Float[Array, "*A I"], kernel: Kernel, sharder: Sharder = _NO_MESH
) -> Float[Array, "*A O"]:
    """Multiply activations by a kernel.

    Args:
      x: [*A, I] activations.
      kernel: [I, O], an array or an `Int8Kernel`.
      sharder: sharder of the model.
    Returns:
      [*A, O] in the dtype of `x`.

    Examples:
      >>> kernel = jnp.array([[1.0, 0.0], [10.0, 1.0]])
      >>> t5jax.ops.matmul(jnp.array([[1.0, 2.0]]), kernel).tolist()
      [[21.0, 2.0]]
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
    """Multiply activations by a kernel, with a float32 result.

    Args:
      x: [*A, I] activations.
      kernel: [I, O], an array or an `Int8Kernel`; an array of another dtype than `x` is multiplied
        in float32.
      sharder: sharder of the model.
    Returns:
      [*A, O] float32.
    """
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
    """Multiply by int8 weights directly, which a CPU reads in a quarter of the time of float32.

    Activations become two int8 rows, the second holding the rounding error of the first: 16 bits
    for free, since the fast kernel needs a second row anyway (jax 0.10.2, benchmarks/decode.py
    with int8 weights).
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
    # Differentiates the exact product, since rounding has no derivative. int8 weights get none.
    x, values, scale = primals
    wide = values.astype(x.dtype)
    tangent = jnp.einsum("ai,io->ao", tangents[0], wide, preferred_element_type=jnp.float32)
    return _matmul_int8(x, values, scale), tangent * scale[None]


def einsum(subscripts: str, x: Array, y: Array) -> Array:
    """Compute `jnp.einsum` of two arrays of the same dtype.

    CPUs have fast bfloat16 kernels only for a float32 result, which is then rounded once
    (jax 0.10.2, benchmarks/train.py in bfloat16).

    Args:
      subscripts: subscripts of `jnp.einsum`.
      x: first operand, with rows on its second-to-last axis.
      y: second operand.
    Returns:
      The result, in the dtype of `x`.
    """
    if x.dtype == jnp.bfloat16 and on_cpu():
        return einsum_f32(subscripts, x, y).astype(x.dtype)
    return jnp.einsum(subscripts, x, y)


def einsum_f32(subscripts: str, x: Array, y: Array) -> Float[Array, "..."]:
    """Compute `einsum` with a float32 result.

    The backward pass rounds the gradient of the result to the dtype of `x` first, to be as fast as
    the forward pass (jax 0.10.2, benchmarks/train.py in bfloat16).

    Args:
      subscripts: subscripts of `jnp.einsum`; every index must occur in two of the three terms.
      x: first operand, with rows on its second-to-last axis.
      y: second operand, of the same dtype.
    Returns:
      The result, in float32.
    """
    if x.dtype == jnp.float32:
        return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)
    # Gradients permute indices, so the ellipsis needs names.
    free = "ABCDEFG"[: x.ndim - len(subscripts.partition(",")[0].replace("...", ""))]
    return _einsum_narrow(subscripts.replace("...", free), x, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _einsum_narrow(subscripts: str, x: Array, y: Array) -> Float[Array, "..."]:
    two = _two_rows(x)
    product = jnp.einsum(subscripts, two, y, preferred_element_type=jnp.float32)
    return product[..., : x.shape[-2], :] if two is not x else product


def _einsum_narrow_forward(
    subscripts: str, x: Array, y: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _einsum_narrow(subscripts, x, y), (x, y)


def _einsum_narrow_backward(
    subscripts: str, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    x, y = residuals
    terms, out = subscripts.split("->")
    of_x, of_y = terms.split(",")
    narrow = cotangent.astype(x.dtype)
    wide = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    to_x = wide(f"{out},{of_y}->{of_x}", narrow, y)
    summed = of_x[-2]
    if on_cpu() and out[-2] == summed and set(of_x[:-2]) <= set(of_y):
        # The fast kernel needs the factor with the rows of the result first, contracted over its
        # last axis.
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
    """Swap the last two axes in memory.

    XLA would fold a transpose into the next matmul, and CPUs have a fast kernel for narrow dtypes
    only if the first factor is contracted over its last axis. XLA does not fold a transpose of
    three axes followed by a reshape (jax 0.10.2, benchmarks/train.py in bfloat16).
    """
    *outer, rows, columns = x.shape
    part = math.gcd(columns, 32)
    parts = jnp.moveaxis(x.reshape(*outer, rows, columns // part, part), -3, -1)
    return jax.lax.optimization_barrier(parts).reshape(*outer, columns, rows)


def add_bias(x: Float[Array, "B *A"], bias: Float[Array, "#B *A"]) -> Float[Array, "B *A"]:
    """Add a bias per example or shared by all; `sum_examples` computes its gradient if shared."""
    return _add_shared(x, bias) if bias.shape[0] == 1 else x + bias


@jax.custom_vjp
def _add_shared(x: Array, shared: Array) -> Array:
    return x + shared


def _add_shared_forward(x: Array, shared: Array) -> tuple[Array, None]:
    return x + shared, None


def _add_shared_backward(_: None, cotangent: Array) -> tuple[Array, Array]:
    return cotangent, sum_examples(cotangent)


_add_shared.defvjp(_add_shared_forward, _add_shared_backward)


def softmax(scores: Float[Array, "*A S"], dtype: DTypeLike) -> Float[Array, "*A S"]:
    """Compute the softmax over the last axis in float32 and round it to `dtype`.

    The gradient is taken at the rounded result, to avoid a float32 residual (jax 0.10.2,
    benchmarks/train.py in bfloat16).
    """
    if dtype == jnp.float32:
        return jax.nn.softmax(scores)
    return _softmax_narrow(scores, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _softmax_narrow(scores: Array, dtype: DTypeLike) -> Array:
    return jax.nn.softmax(scores).astype(dtype)


def _softmax_narrow_forward(scores: Array, dtype: DTypeLike) -> tuple[Array, Array]:
    weights: Array = _softmax_narrow(scores, dtype)
    return weights, weights


def _softmax_narrow_backward(dtype: DTypeLike, weights: Array, cotangent: Array) -> tuple[Array]:
    wide = weights.astype(jnp.float32)
    product = wide * cotangent.astype(jnp.float32)
    return (product - wide * jnp.sum(product, axis=-1, keepdims=True),)


_softmax_narrow.defvjp(_softmax_narrow_forward, _softmax_narrow_backward)


def sum_examples(x: Float[Array, "B *A"]) -> Float[Array, "1 *A"]:
    """Sum over the first axis.

    On CPU a reduction over that axis is many times slower than a matmul (jax 0.10.2,
    benchmarks/train.py, and benchmarks/attention.py for blockwise attention).
    """
    if on_cpu():
        return jnp.tensordot(jnp.ones((1, len(x)), x.dtype), x, axes=1)
    return jnp.sum(x, axis=0, keepdims=True)


def _two_rows(x: Array) -> Array:
    """Duplicate a single bfloat16 row on CPU, where fast kernels need at least two rows.

    (jax 0.10.2, benchmarks/decode.py in bfloat16 at batch 1)
    """
    if x.shape[-2] == 1 and x.dtype == jnp.bfloat16 and on_cpu():
        return jnp.broadcast_to(x, (*x.shape[:-2], 2, x.shape[-1]))
    return x
