"""BLEU, chrF and TER from sacrebleu and ROUGE from rouge-score, with per-example statistics.

sacrebleu's corpus scores are functions of summed n-gram counts.  Counts are stored per example, so
that bootstrap resamples are scored without recounting n-grams.
"""

import dataclasses
import importlib
import importlib.metadata
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from t5jax.evaluation.metrics import bootstrap
from t5jax.evaluation.metrics.bootstrap import MetricResult
from t5jax.evaluation.metrics.references import References, pair_references

Tokenize = Literal[
    "13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "flores101", "flores200", "spm", "none"
]
Rouge = Literal["rouge1", "rouge2", "rougeL", "rougeLsum"]
# sacrebleu's defaults.
_BLEU_ORDER = 4
_CHAR_ORDER = 6
_BETA = 2
# ASCII punctuation that chrF++ splits off words.
_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_UNICODE_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")


def bleu(
    predictions: Sequence[str],
    references: References,
    *,
    tokenize: Tokenize = "13a",
    lowercase: bool = False,
) -> MetricResult:
    """Compute sacrebleu's corpus BLEU, in [0, 100] (arXiv:1804.08771).

    Args:
      predictions: one text per example.
      references: one or more texts per prediction.
      tokenize: sacrebleu's tokenizer; "none" for text that is already tokenized, split at spaces.
      lowercase: whether to ignore case.
    Returns:
      The score; `detail` holds sacrebleu's signature, precisions and brevity penalty.
    Raises:
      ValueError: sacrebleu, or what its tokenizer needs, is not installed.
    """
    sacrebleu = _import_library("sacrebleu")
    pairs = pair_references(predictions, references)
    try:
        # `force` silences the warning about tokenized text, which is legitimate input.
        metric = sacrebleu.BLEU(tokenize=tokenize, lowercase=lowercase, force=True)
    except (RuntimeError, ImportError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"tokenize={tokenize} requires an optional dependency of sacrebleu: {reason}"
        ) from error
    signature = _signature(metric, pairs)
    # effective_order does not affect counts; without it sacrebleu warns about sentence scores.
    sentences = sacrebleu.BLEU(
        tokenize=tokenize, lowercase=lowercase, force=True, effective_order=True
    )
    rows = []
    for prediction, texts in pairs:
        sentence = sentences.sentence_score(prediction, texts)
        rows.append([sentence.sys_len, sentence.ref_len, *sentence.counts, *sentence.totals])

    def corpus_score(rows: np.ndarray) -> Any:
        sys_len, ref_len, *counts = rows.sum(axis=0).tolist()
        return metric.compute_bleu(
            counts[:_BLEU_ORDER],
            counts[_BLEU_ORDER:],
            sys_len,
            ref_len,
            smooth_method=metric.smooth_method,
        )

    counts = np.array(rows, np.int64)
    detail = corpus_score(counts).format(signature=signature)
    return MetricResult(counts, lambda rows: corpus_score(rows).score, detail)


def chrf(
    predictions: Sequence[str],
    references: References,
    *,
    word_order: int = 0,
    lowercase: bool = False,
) -> MetricResult:
    """Compute sacrebleu's corpus chrF2: the F2 score of character n-grams, in [0, 100].

    (W15-3049; chrF++ is W17-4770)

    Args:
      predictions: one text per example.
      references: one or more texts per prediction.
      word_order: maximum word n-gram order; 0 = characters only, 2 = chrF++.
      lowercase: whether to ignore case.
    Returns:
      The score; `detail` holds sacrebleu's signature.
    Raises:
      ValueError: sacrebleu is not installed.
    """
    sacrebleu = _import_library("sacrebleu.metrics")
    pairs = pair_references(predictions, references)
    signature = _signature(sacrebleu.CHRF(word_order=word_order, lowercase=lowercase), pairs)

    rows = []
    for prediction, texts in pairs:
        if lowercase:
            prediction, texts = prediction.lower(), [text.lower() for text in texts]
        ngrams = _chrf_ngrams(prediction, word_order)
        counts = [_chrf_counts(ngrams, _chrf_ngrams(text, word_order)) for text in texts]
        # Only the best reference counts; ties go to the first.
        rows.append(max(counts, key=_chrf_score) if len(counts) > 1 else counts[0])

    def score(rows: np.ndarray) -> float:
        return _chrf_score(rows.sum(axis=0).tolist())

    counts = np.array(rows, np.int64)
    result = sacrebleu.CHRFScore(score(counts), _CHAR_ORDER, word_order, _BETA)
    return MetricResult(counts, score, result.format(signature=signature))


def ter(
    predictions: Sequence[str], references: References, *, lowercase: bool = False
) -> MetricResult:
    """Compute sacrebleu's translation edit rate, in percent; lower is better.

    It is the number of word edits and shifts per word of the nearest reference, and ignores case
    if `lowercase` is set.  (Snover et al. 2006)

    Args:
      predictions: one text per example.
      references: one or more texts per prediction.
      lowercase: whether to ignore case.
    Returns:
      The rate; `detail` holds sacrebleu's signature.
    Raises:
      ValueError: sacrebleu is not installed.
    """
    sacrebleu = _import_library("sacrebleu")
    pairs = pair_references(predictions, references)
    metric = sacrebleu.TER(case_sensitive=not lowercase)
    signature = _signature(metric, pairs)
    sentences = [metric.sentence_score(prediction, texts) for prediction, texts in pairs]
    result = bootstrap.ratio_percent(
        np.array([one.num_edits for one in sentences]),
        np.array([one.ref_length for one in sentences]),
    )
    return dataclasses.replace(result, detail=f"TER|{signature} = {result.score:.2f}")


def rouge(
    kind: Rouge, predictions: Sequence[str], references: References, *, use_stemmer: bool = False
) -> MetricResult:
    """Compute rouge-score's F1, in percent: the mean over examples of the best reference's F1.

    Args:
      kind: "rouge1" and "rouge2" match word n-grams, "rougeL" the longest common subsequence, and
        "rougeLsum" the same sentence by sentence, split at line breaks.
      predictions: one text per example; only ASCII letters and digits count, unless a reference
        has letters but none in ASCII: then all letters of the example count, and each Chinese or
        Japanese character is a word.
      references: one or more texts per prediction.
      use_stemmer: whether to match words with the same Porter stem; English only.
    Returns:
      The score; `detail` holds kind, stemmer and version.
    Raises:
      ValueError: rouge-score is not installed.
    """
    library = _import_library("rouge_score.rouge_scorer")
    pairs = pair_references(predictions, references)
    scorer = library.RougeScorer([kind], use_stemmer=use_stemmer)
    unicode_scorer = library.RougeScorer([kind], tokenizer=_UnicodeTokenizer())
    wide = [any(map(_lacks_ascii_words, texts)) for _, texts in pairs]
    scores = [
        (unicode_scorer if is_wide else scorer).score_multi(texts, prediction)[kind].fmeasure
        for (prediction, texts), is_wide in zip(pairs, wide, strict=True)
    ]
    stemmer = "yes" if use_stemmer else "no"
    version = importlib.metadata.version("rouge-score")
    return dataclasses.replace(
        bootstrap.mean_percent(np.array(scores)),
        detail=f"{kind}|stemmer:{stemmer}|version:{version}" + "|words:unicode" * any(wide),
    )


class _UnicodeTokenizer:
    """Tokenizer of rouge-score for any script."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text, and each Chinese or Japanese character."""
        return _UNICODE_WORD.findall(text.lower())


def _lacks_ascii_words(text: str) -> bool:
    words = "".join(_UNICODE_WORD.findall(text))
    return bool(words) and not any(x.isascii() for x in words)


def _signature(metric: Any, pairs: Sequence[tuple[str, list[str]]]) -> str:
    """Return sacrebleu's signature of a metric for these examples."""
    prediction, texts = pairs[0]
    # sacrebleu has no signature until the metric has been used.
    metric.corpus_score([prediction], [[text] for text in texts])
    signature = metric.get_signature()
    numbers = {len(texts) for _, texts in pairs}
    signature.update("nrefs", numbers.pop() if len(numbers) == 1 else "var")
    return str(signature)


def _chrf_ngrams(text: str, word_order: int) -> list[Counter[str]]:
    """Count n-grams of non-space characters, then of words, by order."""
    characters = "".join(text.split())
    ngrams = [
        Counter([characters[i : i + n] for i in range(len(characters) - n + 1)])
        for n in range(1, _CHAR_ORDER + 1)
    ]
    if word_order:
        words = _split_punctuation(text)
        for n in range(1, word_order + 1):
            ngrams.append(Counter([" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]))
    return ngrams


def _split_punctuation(text: str) -> list[str]:
    """Split at white space, and one punctuation mark off either end of a word, as chrF++.py."""
    words = []
    for word in text.split():
        if len(word) > 1 and word[-1] in _PUNCTUATION:
            words += [word[:-1], word[-1]]
        elif len(word) > 1 and word[0] in _PUNCTUATION:
            words += [word[0], word[1:]]
        else:
            words.append(word)
    return words


def _chrf_counts(
    prediction: Sequence[Counter[str]], reference: Sequence[Counter[str]]
) -> list[int]:
    """Count n-grams in the prediction, the reference and both, for each order."""
    counts = []
    for ours, theirs in zip(prediction, reference, strict=True):
        # Faster than the intersection of counters.
        matches = sum(min(count, theirs[ngram]) for ngram, count in ours.items() if ngram in theirs)
        # An order without reference n-grams does not count.
        counts += [ours.total() if theirs else 0, theirs.total(), matches]
    return counts


def _chrf_score(counts: Sequence[int]) -> float:
    """Compute chrF from counts: F_beta of precision and recall, averaged over non-empty orders."""
    precision, recall, orders = 0.0, 0.0, 0
    for i in range(0, len(counts), 3):
        in_prediction, in_reference, matches = counts[i : i + 3]
        if in_prediction > 0 and in_reference > 0:
            precision += matches / in_prediction
            recall += matches / in_reference
            orders += 1
    if not precision + recall:
        return 0.0
    precision, recall = precision / orders, recall / orders
    factor = _BETA**2
    return 100 * ((1 + factor) * precision * recall / (factor * precision + recall))


def _import_library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if error.name != package:
            raise
        raise ValueError(
            f"BLEU, chrF and ROUGE require {package.replace('_', '-')}, which is not installed; "
            "run pip install 't5jax[eval]'."
        ) from None
