"""Pre-training objectives: from tokens to inputs and targets."""

from .objective import (
    ExampleLengths as ExampleLengths,
    Objective as Objective,
)
from .span_corruption import (
    SpanCorruption as SpanCorruption,
    SpanCorruptionConfig as SpanCorruptionConfig,
)

__all__ = [
    "ExampleLengths",
    "Objective",
    "SpanCorruption",
    "SpanCorruptionConfig",
]
