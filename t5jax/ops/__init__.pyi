"""Attention, matrix products and masks: mathematics that knows nothing of T5."""

from . import attention as attention
from .linear import (
    Int8Kernel as Int8Kernel,
    Kernel as Kernel,
    add_bias as add_bias,
    concatenate_kernels as concatenate_kernels,
    einsum as einsum,
    einsum_f32 as einsum_f32,
    flatten_rows as flatten_rows,
    is_kernel as is_kernel,
    matmul as matmul,
    matmul_f32 as matmul_f32,
    quantize_kernel as quantize_kernel,
    softmax as softmax,
)
from .masks import (
    AttentionKind as AttentionKind,
    Segments as Segments,
    attention_mask as attention_mask,
    segments_from_ids as segments_from_ids,
)

__all__ = [
    "Int8Kernel",
    "Kernel",
    "Segments",
    "attention_mask",
    "is_kernel",
    "matmul",
    "quantize_kernel",
    "segments_from_ids",
]
