"""Metrics of written text, by name."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Sequence

from t5jax.errors import suggest
from t5jax.evaluation.metrics import bleu_rouge, classification, correlation, error_rates, matching
from t5jax.evaluation.metrics.bleu_rouge import Tokenize
from t5jax.evaluation.metrics.bootstrap import MetricResult
from t5jax.evaluation.metrics.references import References


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricOptions:
    """What some metrics can be told."""

    tokenize: Tokenize = "13a"
    """How BLEU finds words: as WMT does (13a), intl, zh, char, or none, for tokenized text."""
    lowercase: bool = False
    """Ignore case in BLEU and chrF."""
    use_stemmer: bool = False
    """Let words of one stem match in ROUGE; English."""
    positive: str | None = None
    """Class whose F1 is measured."""

    def __post_init__(self):
        if self.tokenize not in typing.get_args(Tokenize):
            raise ValueError(
                f"tokenize must be one of {', '.join(typing.get_args(Tokenize))}, got "
                f"{self.tokenize!r:.60}."
            )
        for name in ("lowercase", "use_stemmer"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r:.60}.")
        if not isinstance(self.positive, str | None):
            raise ValueError(f"positive must be a text, got {self.positive!r:.60}.")


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric and what is known of it."""

    function: Callable[..., MetricResult]
    """Of predictions and references, and of the options below."""
    options: tuple[str, ...] = ()
    """Fields of MetricOptions that it takes."""
    is_error: bool = False
    """Lower is better."""


METRICS: dict[str, Metric] = {
    "exact_match": Metric(matching.exact_match),
    "token_accuracy": Metric(matching.token_accuracy),
    "sequence_accuracy": Metric(matching.sequence_accuracy),
    "squad_em": Metric(matching.squad_exact_match),
    "squad_f1": Metric(matching.squad_f1),
    "bleu": Metric(bleu_rouge.bleu, ("tokenize", "lowercase")),
    "chrf": Metric(bleu_rouge.chrf, ("lowercase",)),
    "chrf++": Metric(functools.partial(bleu_rouge.chrf, word_order=2), ("lowercase",)),
    "rouge1": Metric(functools.partial(bleu_rouge.rouge, "rouge1"), ("use_stemmer",)),
    "rouge2": Metric(functools.partial(bleu_rouge.rouge, "rouge2"), ("use_stemmer",)),
    "rougeL": Metric(functools.partial(bleu_rouge.rouge, "rougeL"), ("use_stemmer",)),
    "rougeLsum": Metric(functools.partial(bleu_rouge.rouge, "rougeLsum"), ("use_stemmer",)),
    "wer": Metric(error_rates.word_error_rate, is_error=True),
    "cer": Metric(error_rates.character_error_rate, is_error=True),
    "per": Metric(error_rates.phoneme_error_rate, is_error=True),
    "g2p_wer": Metric(error_rates.pronunciation_error_rate, is_error=True),
    "accuracy": Metric(classification.accuracy),
    "f1": Metric(classification.f1, ("positive",)),
    "matthews": Metric(classification.matthews),
    "pearson": Metric(correlation.pearson),
    "spearman": Metric(correlation.spearman),
}


def check_metrics(names: Sequence[str], options: MetricOptions) -> None:
    """Refuses names and options before anything is computed.

    Raises:
      ValueError: no such metric, none, or an option that none of them takes or that one lacks.
    """
    if not names:
        raise ValueError(f"metrics must be some of {', '.join(METRICS)}, got none.")
    for name in names:
        if name not in METRICS:
            hint = suggest(name.lower(), METRICS, "choose one of these.")
            raise ValueError(f"unknown metric {name!r}, metrics are {', '.join(METRICS)}; {hint}")
    taken = {option for name in names for option in METRICS[name].options}
    for field in dataclasses.fields(options):
        if getattr(options, field.name) != field.default and field.name not in taken:
            users = [name for name, metric in METRICS.items() if field.name in metric.options]
            raise ValueError(
                f"{field.name} must go with one of {', '.join(users)}, got {', '.join(names)}."
            )
    if "f1" in names and options.positive is None:
        raise ValueError("f1 must know its class; set positive to it.")


def used_options(names: Sequence[str], options: MetricOptions) -> MetricOptions:
    """The options without those that none of these metrics takes."""
    used = {option for name in names for option in METRICS[name].options}
    return MetricOptions(**{option: getattr(options, option) for option in used})


def compute_metrics(
    names: Sequence[str],
    predictions: Sequence[str],
    references: References,
    options: MetricOptions | None = None,
) -> dict[str, MetricResult]:
    """Computes metrics by name.

    Args:
      names: keys of KNOWN.
      predictions: one text for each example.
      references: for each example a text, or several that are equally right.
      options: for the metrics that take them.
    Returns:
      name -> metric, in the order of names; percent, where papers give percent.
    Raises:
      ValueError: what `check_metrics` refuses, lists that do not match, or texts that a metric cannot
        take.
    """
    options = options or MetricOptions()
    check_metrics(names, options)
    found = {}
    for name in names:
        metric = METRICS[name]
        arguments = {option: getattr(options, option) for option in metric.options}
        found[name] = metric.function(predictions, references, **arguments)
    return found
