"""Attention, matrix products and masks: mathematics that knows nothing of T5."""

from . import attention as attention
from .attention import (
    AttentionKind as AttentionKind,
    uses_blocks as uses_blocks,
)
from .contraction import (
    add_bias as add_bias,
    einsum as einsum,
    einsum_f32 as einsum_f32,
    softmax as softmax,
)
from .linear import (
    Int8Kernel as Int8Kernel,
    Kernel as Kernel,
    concatenate_kernels as concatenate_kernels,
    flatten_rows as flatten_rows,
    is_kernel as is_kernel,
    matmul as matmul,
    matmul_f32 as matmul_f32,
    quantize_kernel as quantize_kernel,
)
from .masks import (
    Segments as Segments,
    segments_from_ids as segments_from_ids,
)
