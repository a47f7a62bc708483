"""Metrics of written text, by name."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Sequence

from t5jax.errors import suggest
from t5jax.metrics import edits, labels, matches, numbers, overlap
from t5jax.metrics.bootstrap import Interval, Measured, interval
from t5jax.metrics.overlap import Tokenize
from t5jax.metrics.pairs import References

__all__ = [
    "KNOWN",
    "Interval",
    "Measured",
    "MetricOptions",
    "check",
    "interval",
    "measure",
    "taken",
]


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

    function: Callable[..., Measured]
    """Of predictions and references, and of the options below."""
    options: tuple[str, ...] = ()
    """Fields of MetricOptions that it takes."""
    is_error: bool = False
    """Lower is better."""


KNOWN: dict[str, Metric] = {
    "exact_match": Metric(matches.exact_match),
    "token_accuracy": Metric(matches.token_accuracy),
    "sequence_accuracy": Metric(matches.sequence_accuracy),
    "squad_em": Metric(matches.squad_exact_match),
    "squad_f1": Metric(matches.squad_f1),
    "bleu": Metric(overlap.bleu, ("tokenize", "lowercase")),
    "chrf": Metric(overlap.chrf, ("lowercase",)),
    "chrf++": Metric(functools.partial(overlap.chrf, word_order=2), ("lowercase",)),
    "rouge1": Metric(functools.partial(overlap.rouge, "rouge1"), ("use_stemmer",)),
    "rouge2": Metric(functools.partial(overlap.rouge, "rouge2"), ("use_stemmer",)),
    "rougeL": Metric(functools.partial(overlap.rouge, "rougeL"), ("use_stemmer",)),
    "rougeLsum": Metric(functools.partial(overlap.rouge, "rougeLsum"), ("use_stemmer",)),
    "wer": Metric(edits.word_error_rate, is_error=True),
    "cer": Metric(edits.character_error_rate, is_error=True),
    "per": Metric(edits.phoneme_error_rate, is_error=True),
    "g2p_wer": Metric(edits.pronunciation_error_rate, is_error=True),
    "accuracy": Metric(labels.accuracy),
    "f1": Metric(labels.f1, ("positive",)),
    "matthews": Metric(labels.matthews),
    "pearson": Metric(numbers.pearson),
    "spearman": Metric(numbers.spearman),
}


def check(names: Sequence[str], options: MetricOptions) -> None:
    """Refuses names and options before anything is computed.

    Raises:
      ValueError: no such metric, none, or an option that none of them takes or that one lacks.
    """
    if not names:
        raise ValueError(f"metrics must be some of {', '.join(KNOWN)}, got none.")
    for name in names:
        if name not in KNOWN:
            hint = suggest(name.lower(), KNOWN, "choose one of these.")
            raise ValueError(f"unknown metric {name!r}, metrics are {', '.join(KNOWN)}; {hint}")
    taken = {option for name in names for option in KNOWN[name].options}
    for field in dataclasses.fields(options):
        if getattr(options, field.name) != field.default and field.name not in taken:
            users = [name for name, metric in KNOWN.items() if field.name in metric.options]
            raise ValueError(
                f"{field.name} must go with one of {', '.join(users)}, got {', '.join(names)}."
            )
    if "f1" in names and options.positive is None:
        raise ValueError("f1 must know its class; set positive to it.")


def taken(names: Sequence[str], options: MetricOptions) -> MetricOptions:
    """The options without those that none of these metrics takes."""
    used = {option for name in names for option in KNOWN[name].options}
    return MetricOptions(**{option: getattr(options, option) for option in used})


def measure(
    names: Sequence[str],
    predictions: Sequence[str],
    references: References,
    options: MetricOptions | None = None,
) -> dict[str, Measured]:
    """Computes metrics by name.

    Args:
      names: keys of KNOWN.
      predictions: one text for each example.
      references: for each example a text, or several that are equally right.
      options: for the metrics that take them.
    Returns:
      name -> metric, in the order of names; percent, where papers give percent.
    Raises:
      ValueError: what `check` refuses, lists that do not match, or texts that a metric cannot take.
    """
    options = options or MetricOptions()
    check(names, options)
    found = {}
    for name in names:
        metric = KNOWN[name]
        arguments = {option: getattr(options, option) for option in metric.options}
        found[name] = metric.function(predictions, references, **arguments)
    return found
