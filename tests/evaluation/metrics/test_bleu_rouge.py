import functools
import itertools
import subprocess
import sys

import numpy as np
import pytest

from t5jax.evaluation.metrics.bleu_rouge import bleu, chrf, rouge, ter
from t5jax.evaluation.metrics.bootstrap import bootstrap_interval

TEXT = "the cat sat on a Mat . , runs running Läufer 世界 it's 3.5 don't (so) — \U0001f600"
WORDS = TEXT.split()


def texts(seed, count=100, references=1):
    """Random texts that share words with their references; some are empty or only punctuation."""
    rng = np.random.default_rng(seed)
    predictions, listed = [], []
    for _ in range(count):
        words = list(rng.choice(WORDS, rng.integers(0, 12)))
        row = []
        for _ in range(references):
            changed = [w if rng.random() < 0.7 else str(rng.choice(WORDS)) for w in words]
            row.append(" ".join(changed + ["on"] * int(rng.integers(0, 3))))
        predictions.append(" ".join(words))
        listed.append(row)
    predictions[3], listed[4] = "...", ["!?"] * references
    return predictions, listed


@pytest.mark.parametrize("references", [1, 3])
@pytest.mark.parametrize("options", [{}, {"tokenize": "none", "lowercase": True}])
def test_bleu_is_sacrebleu_s(references, options):
    sacrebleu = pytest.importorskip("sacrebleu")
    predictions, listed = texts(0, references=references)
    metric = sacrebleu.BLEU(**options)
    expected = metric.corpus_score(predictions, list(zip(*listed, strict=True)))
    found = bleu(predictions, listed, **options)
    assert found.score == expected.score
    assert found.detail == expected.format(signature=str(metric.get_signature()))
    assert 20 < found.score < 90


@pytest.mark.parametrize("options", [{}, {"word_order": 2}, {"lowercase": True}])
def test_chrf_is_sacrebleu_s(options):
    sacrebleu = pytest.importorskip("sacrebleu")
    predictions, listed = texts(1, references=2)
    metric = sacrebleu.CHRF(**options)
    expected = metric.corpus_score(predictions, list(zip(*listed, strict=True)))
    found = chrf(predictions, listed, **options)
    assert found.score == expected.score
    assert found.detail == expected.format(signature=str(metric.get_signature()))


def test_bleu_takes_unequally_many_references():
    sacrebleu = pytest.importorskip("sacrebleu")
    predictions, listed = texts(2, references=2)
    listed[::2] = [row[:1] for row in listed[::2]]
    columns = list(itertools.zip_longest(*listed))
    expected = sacrebleu.BLEU().corpus_score(predictions, columns)
    found = bleu(predictions, listed)
    assert found.score == expected.score
    assert "nrefs:var" in found.detail


@pytest.mark.parametrize("metric", [bleu, chrf])
def test_draws_are_scored_as_sacrebleu_scores_their_texts(metric):
    pytest.importorskip("sacrebleu")
    predictions, listed = texts(3)
    measured = metric(predictions, listed)
    draw = np.random.default_rng(0).integers(100, size=100)
    drawn = metric([predictions[i] for i in draw], [listed[i] for i in draw])
    assert measured.combine(measured.rows[draw]) == drawn.score
    low, high = bootstrap_interval(measured, resamples=100)
    assert low < measured.score < high


def test_bleu_interval_is_as_wide_as_sacrebleu_s_own(monkeypatch):
    """Two bootstraps of 1000: half-widths differ by a few percent from draw to draw."""
    sacrebleu = pytest.importorskip("sacrebleu")
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    predictions, listed = texts(4, count=200)
    columns = list(zip(*listed, strict=True))
    theirs = sacrebleu.BLEU().corpus_score(predictions, columns, n_bootstrap=1000)
    low, high = bootstrap_interval(bleu(predictions, listed), resamples=1000)
    width = float(theirs.format(score_only=True, width=6).rpartition("±")[2].strip(" )"))
    assert (high - low) / 2 == pytest.approx(width, rel=0.15)


@pytest.mark.parametrize("use_stemmer", [False, True])
@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
def test_rouge_is_rouge_score_s_best_reference(kind, use_stemmer):
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    predictions, listed = texts(5, references=2)
    predictions = [text.replace(" . ", "\n") for text in predictions]
    scorer = rouge_scorer.RougeScorer([kind], use_stemmer=use_stemmer)
    expected = [
        max(scorer.score(text, prediction)[kind].fmeasure for text in row)
        for prediction, row in zip(predictions, listed, strict=True)
    ]
    found = rouge(kind, predictions, listed, use_stemmer=use_stemmer)
    np.testing.assert_array_equal(found.rows[:, 0], expected)
    assert found.score == pytest.approx(100 * np.mean(expected), rel=1e-14)
    assert f"stemmer:{'yes' if use_stemmer else 'no'}" in found.detail


@pytest.mark.parametrize(
    ("package", "compute"),
    [("sacrebleu", bleu), ("rouge_score", functools.partial(rouge, "rouge1"))],
)
def test_a_missing_library_is_a_sentence_that_says_how_to_install_it(package, compute, monkeypatch):
    class Absent:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == package:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent, *sys.meta_path])
    with pytest.raises(ValueError, match=r"pip install 't5jax\[eval\]'"):
        compute(["a"], ["a"])


def test_libraries_are_imported_by_use_alone():
    code = "import sys; import t5jax.evaluation.evaluate; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "t5jax" in loaded
    assert not loaded & {"sacrebleu", "rouge_score", "nltk", "scipy"}


@pytest.mark.parametrize("lowercase", [False, True])
def test_ter_is_sacrebleu_s(lowercase):
    sacrebleu = pytest.importorskip("sacrebleu")
    predictions, listed = texts(5, references=2)
    metric = sacrebleu.TER(case_sensitive=not lowercase)
    expected = metric.corpus_score(predictions, list(zip(*listed, strict=True)))
    result = ter(predictions, listed, lowercase=lowercase)
    assert result.score == pytest.approx(expected.score, rel=1e-12)
    assert result.detail.startswith("TER|")


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("今天天气很好", "今天天气很好", 100.0),
        ("今天很好", "今天天气很好", 80.0),  # 4 of 4 and 4 of 6 characters
        ("Сегодня хорошо", "сегодня плохо", 50.0),
        ("", "сегодня плохо", 0.0),
    ],
)
def test_rouge_counts_words_of_all_scripts(prediction, reference, expected):
    pytest.importorskip("rouge_score")
    result = rouge("rouge1", [prediction], [[reference]])
    assert result.score == pytest.approx(expected)
    assert result.detail.endswith("|words:unicode")
    mixed = rouge("rouge1", ["a b", prediction], [["a c"], [reference]])
    assert mixed.score == pytest.approx((50 + expected) / 2)


def test_tokenizer_without_its_library_is_an_error_of_one_sentence(monkeypatch):
    pytest.importorskip("sacrebleu")
    monkeypatch.setitem(sys.modules, "MeCab", None)
    with pytest.raises(ValueError, match="tokenize=ja-mecab requires"):
        bleu(["a"], [["a"]], tokenize="ja-mecab")
