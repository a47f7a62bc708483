"""Metrics of generated text, with bootstrap intervals."""

from .bleu_rouge import (
    Tokenize as Tokenize,
)
from .bootstrap import (
    MetricResult as MetricResult,
    bootstrap_interval as bootstrap_interval,
)
from .classification import (
    best_choices as best_choices,
    choice_accuracy as choice_accuracy,
)
from .correlation import (
    perplexity as perplexity,
)
from .matching import (
    id_accuracy as id_accuracy,
)
from .registry import (
    METRICS as METRICS,
    MetricOptions as MetricOptions,
    TextOptions as TextOptions,
    check_metrics as check_metrics,
    compute_metrics as compute_metrics,
    mean_score as mean_score,
    used_options as used_options,
)

__all__ = [
    "METRICS",
    "MetricOptions",
    "MetricResult",
    "TextOptions",
    "bootstrap_interval",
    "compute_metrics",
    "mean_score",
    "perplexity",
]
