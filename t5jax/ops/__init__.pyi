"""Attention, matrix products and masks: mathematics that knows nothing of T5."""

from . import attention as attention
from .attention import (
    AttentionKind as AttentionKind,
)
from .attention import (
    uses_blocks as uses_blocks,
)
from .contraction import (
    add_bias as add_bias,
)
from .contraction import (
    einsum as einsum,
)
from .contraction import (
    einsum_f32 as einsum_f32,
)
from .contraction import (
    flatten_rows as flatten_rows,
)
from .contraction import (
    on_cpu as on_cpu,
)
from .contraction import (
    softmax as softmax,
)
from .linear import (
    Int8Kernel as Int8Kernel,
)
from .linear import (
    Kernel as Kernel,
)
from .linear import (
    concatenate_kernels as concatenate_kernels,
)
from .linear import (
    is_kernel as is_kernel,
)
from .linear import (
    matmul as matmul,
)
from .linear import (
    matmul_f32 as matmul_f32,
)
from .linear import (
    quantize_kernel as quantize_kernel,
)
from .masks import (
    Segments as Segments,
)
from .masks import (
    segments_from_ids as segments_from_ids,
)
