"""Products of activations with weights, of any type that either may have.

Shape letters: I input features, O output features.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from t5jax.ops.contraction import einsum, einsum_f32
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
