"""Pre-training objectives: from tokens to inputs and targets."""

from .span_corruption import (
    SpanCorruption as SpanCorruption,
    span_corruption_example as span_corruption_example,
)
