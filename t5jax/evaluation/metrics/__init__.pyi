"""Metrics of generated text, with bootstrap intervals."""

from .bleu_rouge import (
    Tokenize as Tokenize,
)
from .bootstrap import (
    MetricResult as MetricResult,
)
from .bootstrap import (
    bootstrap_interval as bootstrap_interval,
)
from .classification import (
    best_choices as best_choices,
)
from .classification import (
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
)
from .registry import (
    MetricOptions as MetricOptions,
)
from .registry import (
    TextOptions as TextOptions,
)
from .registry import (
    check_metrics as check_metrics,
)
from .registry import (
    compute_metrics as compute_metrics,
)
from .registry import (
    mean_score as mean_score,
)
from .registry import (
    used_options as used_options,
)
