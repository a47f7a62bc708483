"""Compare predictions with references."""

from . import metrics as metrics
from .evaluate import (
    Evaluate as Evaluate,
)
from .evaluate import (
    evaluate_files as evaluate_files,
)
