"""Pre-training objectives: from tokens to inputs and targets."""

from .objective import (
    ExampleLengths as ExampleLengths,
)
from .objective import (
    Objective as Objective,
)
from .span_corruption import (
    SpanCorruption as SpanCorruption,
)
from .span_corruption import (
    SpanCorruptionConfig as SpanCorruptionConfig,
)
