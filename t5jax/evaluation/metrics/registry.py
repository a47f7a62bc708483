"""Metrics by name, and the mean score over tasks."""

import dataclasses
import functools
import math
import statistics
import typing
from collections.abc import Callable, Mapping, Sequence

from t5jax.errors import suggest
from t5jax.evaluation.metrics import bleu_rouge, classification, correlation, error_rates, matching
from t5jax.evaluation.metrics.bleu_rouge import Tokenize
from t5jax.evaluation.metrics.bootstrap import MetricResult
from t5jax.evaluation.metrics.references import References


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Text comparison options of metrics.

    Attributes:
      tokenize: sacrebleu tokenizer for BLEU: 13a (as in WMT), intl, zh, ja-mecab, ko-mecab, char,
        flores101, flores200, spm, or none for text that is already tokenized.
      lowercase: ignore case in BLEU, chrF and TER.
      use_stemmer: match words with the same stem in ROUGE; English only.

    Examples:
      >>> t5jax.evaluation.metrics.TextOptions(tokenize="zh")
      TextOptions(tokenize='zh', lowercase=False, use_stemmer=False)
    """

    tokenize: Tokenize = "13a"
    lowercase: bool = False
    use_stemmer: bool = False

    def __post_init__(self):
        if self.tokenize not in typing.get_args(Tokenize):
            raise ValueError(
                f"tokenize must be one of {', '.join(typing.get_args(Tokenize))}, got "
                f"{self.tokenize!r:.60}."
            )
        for name in ("lowercase", "use_stemmer"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r:.60}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricOptions(TextOptions):
    """Metric options of a task, including those of `TextOptions`.

    Attributes:
      positive: positive class for F1.

    Examples:
      >>> metrics = t5jax.evaluation.metrics
      >>> options = metrics.MetricOptions(positive="spam")
      >>> labels = ["spam", "ham", "spam"]
      >>> metrics.compute_metrics(["f1"], labels, labels, options)["f1"].score
      100.0
    """

    positive: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.positive, str | None):
            raise ValueError(f"positive must be a string, got {self.positive!r:.60}.")


@dataclasses.dataclass(frozen=True)
class Metric:
    """Metric function and its properties.

    Attributes:
      function: function of predictions, references and, by keyword, the options below.
      summary: one-line description for a list of metrics.
      options: fields of `MetricOptions` that the function takes.
      is_error: whether lower is better.
    """

    function: Callable[..., MetricResult]
    summary: str
    options: tuple[str, ...] = ()
    is_error: bool = False


def _rouge(name: bleu_rouge.Rouge, summary: str) -> Metric:
    return Metric(functools.partial(bleu_rouge.rouge, name), summary, ("use_stemmer",))


METRICS: dict[str, Metric] = {
    "exact_match": Metric(matching.exact_match, "equal texts"),
    "token_accuracy": Metric(matching.token_accuracy, "equal tokens, position by position"),
    "sequence_accuracy": Metric(matching.sequence_accuracy, "equal sequences of tokens"),
    "squad_em": Metric(matching.squad_exact_match, "SQuAD exact match"),
    "squad_f1": Metric(matching.squad_f1, "SQuAD F1 of words"),
    "bleu": Metric(bleu_rouge.bleu, "sacrebleu's corpus BLEU", ("tokenize", "lowercase")),
    "chrf": Metric(bleu_rouge.chrf, "sacrebleu's chrF2 of characters", ("lowercase",)),
    "chrf++": Metric(
        functools.partial(bleu_rouge.chrf, word_order=2),
        "sacrebleu's chrF2 of characters and words",
        ("lowercase",),
    ),
    "ter": Metric(
        bleu_rouge.ter, "sacrebleu's translation edit rate", ("lowercase",), is_error=True
    ),
    "rouge1": _rouge("rouge1", "ROUGE F1 of words"),
    "rouge2": _rouge("rouge2", "ROUGE F1 of pairs of words"),
    "rougeL": _rouge("rougeL", "ROUGE F1 of the longest common subsequence"),
    "rougeLsum": _rouge("rougeLsum", "rougeL by line, for summaries of several sentences"),
    "wer": Metric(error_rates.word_error_rate, "word error rate", is_error=True),
    "cer": Metric(error_rates.character_error_rate, "character error rate", is_error=True),
    "per": Metric(error_rates.phoneme_error_rate, "phoneme error rate", is_error=True),
    "g2p_wer": Metric(
        error_rates.pronunciation_error_rate, "words without a correct pronunciation", is_error=True
    ),
    "accuracy": Metric(classification.accuracy, "correct classes"),
    "f1": Metric(classification.f1, "F1 of one class", ("positive",)),
    "matthews": Metric(classification.matthews, "Matthews correlation of classes"),
    "pearson": Metric(correlation.pearson, "Pearson correlation of numbers"),
    "spearman": Metric(correlation.spearman, "Spearman rank correlation of numbers"),
}


def check_metrics(names: Sequence[str], options: MetricOptions) -> None:
    """Check metrics and their options before anything is computed.

    Args:
      names: names of metrics, keys of `METRICS`.
      options: options of these metrics.
    Raises:
      ValueError: there are no metrics, a metric is unknown, an option is set that none of them
        takes, or a required option is not set.
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
        raise ValueError("f1 must have its positive class set, got none; set positive.")


def used_options(names: Sequence[str], options: MetricOptions) -> MetricOptions:
    """Return the options that these metrics take, and defaults for the others."""
    used = {option for name in names for option in METRICS[name].options}
    return MetricOptions(**{option: getattr(options, option) for option in used})


def compute_metrics(
    names: Sequence[str],
    predictions: Sequence[str],
    references: References,
    options: MetricOptions | None = None,
) -> dict[str, MetricResult]:
    """Compute metrics by name.

    Args:
      names: names of metrics, keys of `METRICS`.
      predictions: one text per example.
      references: one text per example, or several equally correct ones.
      options: options for metrics that take any.
    Returns:
      Metrics by name, in the order of `names`, all in percent.
    Raises:
      ValueError: a metric is unknown, an option is unused or missing, predictions and references
        differ in length, or a text is invalid for a metric.

    Examples:
      >>> predictions, references = ["the cat", "dogs"], [["a cat", "cats"], "dog"]
      >>> metrics = t5jax.evaluation.metrics
      >>> metrics.compute_metrics(["squad_f1"], predictions, references)["squad_f1"].score
      50.0
    """
    options = options or MetricOptions()
    check_metrics(names, options)
    results = {}
    for name in names:
        metric = METRICS[name]
        arguments = {option: getattr(options, option) for option in metric.options}
        results[name] = metric.function(predictions, references, **arguments)
    return results


def mean_score(scores: Mapping[str, Mapping[str, float]]) -> float:
    """Average each task's metrics, then the tasks, as GLUE and T5 do.

    Higher is better: an error rate of x counts as 100 - x.  An undefined metric, such as the
    correlation with a constant, counts as 0.  (arXiv:1804.07461; arXiv:1910.10683, section 2.3)

    Args:
      scores: percent by task and metric; NaN where undefined.
    Returns:
      The mean score, in percent.
    Raises:
      ValueError: there are no tasks, or a task has no metrics.

    Examples:
      >>> scores = {"mrpc": {"accuracy": 90.0, "f1": 80.0}, "g2p": {"wer": 25.0}}
      >>> t5jax.evaluation.metrics.mean_score(scores)
      80.0
    """
    if not scores or not all(scores.values()):
        raise ValueError(
            f"scores must have a task and each task a metric, got {dict(scores)!r:.60}."
        )

    def benefit(name: str, score: float) -> float:
        if math.isnan(score):
            return 0.0
        return 100.0 - score if METRICS[name].is_error else score

    return statistics.fmean(
        statistics.fmean(benefit(name, score) for name, score in metrics.items())
        for metrics in scores.values()
    )
