"""BLEU and chrF by sacrebleu, ROUGE by rouge-score: their numbers, for any draw of examples."""

import dataclasses
import importlib
import importlib.metadata
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from t5jax.evaluation.metrics import bootstrap
from t5jax.evaluation.metrics.bootstrap import MetricResult
from t5jax.evaluation.metrics.references import References, pair_references

Tokenize = Literal["13a", "intl", "zh", "char", "none"]


Rouge = Literal["rouge1", "rouge2", "rougeL", "rougeLsum"]


def bleu(
    predictions: Sequence[str],
    references: References,
    *,
    tokenize: Tokenize = "13a",
    lowercase: bool = False,
) -> MetricResult:
    """BLEU of the corpus, by sacrebleu, from 0 to 100.  (arXiv:1804.08771)

    Args:
      predictions: texts.
      references: one or more for each.
      tokenize: how sacrebleu finds words; "none" for texts with spaces between their tokens.
      lowercase: ignore case.
    Returns:
      the score, and in its detail sacrebleu's signature, precisions and brevity penalty.
    Raises:
      ValueError: sacrebleu is not installed.
    """
    # `force` silences a warning that texts look tokenized: they may well be.
    metric = _library("sacrebleu").BLEU(tokenize=tokenize, lowercase=lowercase, force=True)
    return _by_sacrebleu(metric, predictions, references)


def chrf(
    predictions: Sequence[str],
    references: References,
    *,
    word_order: int = 0,
    lowercase: bool = False,
) -> MetricResult:
    """The F2 of character n-grams of the corpus, by sacrebleu, from 0 to 100.  (W15-3049)

    Args:
      predictions: texts.
      references: one or more for each.
      word_order: longest n-grams of words that count, too; 2 is chrF++.
      lowercase: ignore case.
    Returns:
      the score, and in its detail sacrebleu's signature.
    Raises:
      ValueError: sacrebleu is not installed.
    """
    metric = _library("sacrebleu").CHRF(word_order=word_order, lowercase=lowercase)
    return _by_sacrebleu(metric, predictions, references)


def rouge(
    kind: Rouge, predictions: Sequence[str], references: References, *, use_stemmer: bool = False
) -> MetricResult:
    """Mean over examples of ROUGE's F1, by rouge-score, in percent; the best reference's.

    Args:
      kind: n-grams of words, or the longest common subsequence, "rougeLsum" sentence by sentence,
        which line breaks separate.
      predictions: texts; only ASCII letters and digits count.
      references: one or more for each.
      use_stemmer: let words of one stem match.  (Porter 1980; English)
    Raises:
      ValueError: rouge-score is not installed.
    """
    scorer = _library("rouge_score.rouge_scorer").RougeScorer([kind], use_stemmer=use_stemmer)
    pairs = pair_references(predictions, references)
    found = [scorer.score_multi(texts, prediction)[kind].fmeasure for prediction, texts in pairs]
    stemmer = "yes" if use_stemmer else "no"
    version = importlib.metadata.version("rouge-score")
    measured = bootstrap.mean_percent(np.array(found))
    return dataclasses.replace(measured, detail=f"{kind}|stemmer:{stemmer}|version:{version}")


def _by_sacrebleu(metric: Any, predictions: Sequence[str], references: References) -> MetricResult:
    listed = [texts for _, texts in pair_references(predictions, references)]
    # sacrebleu takes a list for each reference of all examples, None where an example has fewer.
    columns = [list(column) for column in itertools.zip_longest(*listed)]
    # Its public functions have a score for all examples or a bootstrap with one seed for all; these
    # two are what each of its metrics must define: counts of an example, the score of their sums.
    rows = np.array(metric._extract_corpus_statistics(list(predictions), columns), np.int64)

    def score_of(rows: np.ndarray) -> Any:
        return metric._compute_score_from_stats(rows.sum(axis=0).tolist())

    detail = score_of(rows).format(signature=str(metric.get_signature()))
    return MetricResult(rows, lambda rows: score_of(rows).score, detail)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if error.name != package:
            raise
        raise ValueError(
            f"BLEU, chrF and ROUGE must have {package.replace('_', '-')} installed, got none; "
            "pip install 't5jax[eval]'."
        ) from None
