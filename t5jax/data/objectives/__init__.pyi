"""Pre-training objectives: from tokens to inputs and targets."""

from .span_corruption import (
    SpanCorruption as SpanCorruption,
)
from .span_corruption import (
    span_corruption_example as span_corruption_example,
)
