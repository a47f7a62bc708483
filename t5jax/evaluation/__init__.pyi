"""Compare predictions with references."""

from . import metrics as metrics
from .evaluate import (
    EvalTask as EvalTask,
    evaluate_files as evaluate_files,
)
from .predictions import (
    Predictions as Predictions,
    read_predictions as read_predictions,
)

__all__ = [
    "EvalTask",
    "Predictions",
    "evaluate_files",
    "metrics",
    "read_predictions",
]
