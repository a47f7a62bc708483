"""Hardware, FLOPs, step times and traces."""

from .flops import (
    decode_step_flops as decode_step_flops,
    encode_flops as encode_flops,
    forward_flops as forward_flops,
    train_step_flops as train_step_flops,
)
from .hardware import (
    GIB as GIB,
    Chip as Chip,
    chip_of_kind as chip_of_kind,
    chip_of_topology as chip_of_topology,
)
from .steps import (
    Profiler as Profiler,
    StepTimer as StepTimer,
    peak_memory_bytes as peak_memory_bytes,
)

__all__ = [
    "Chip",
    "Profiler",
    "StepTimer",
    "chip_of_kind",
    "chip_of_topology",
    "decode_step_flops",
    "encode_flops",
    "forward_flops",
    "peak_memory_bytes",
    "train_step_flops",
]
