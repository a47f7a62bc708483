"""Every Python block of the README and of docs/ runs, in order, page by page."""

import contextlib
import io
import re
import runpy
from pathlib import Path

import datasets
import jax
import pytest

from t5jax.cli.main import _COMMANDS, entry
from t5jax.models.config import T5Config
from t5jax.models.t5 import init_params
from t5jax.pretrained import open as opening
from t5jax.pretrained.hf.save import save_hf
from t5jax.pretrained.source import Weights
from t5jax.tokenizers.sentencepiece import train_tokenizer

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Pages that train a model, or use every way to generate.
LONG = ("finetuning.md", "generation.md")
assert {*LONG} <= {page.name for page in PAGES}
SENTENCE = "The party of the small dogs was good; its story is told in German and English. "
# What examples of generation allow as answers.
ANSWERS = "Das ist gut. Das ist schlecht. yes no "


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A folder with the text that pages read, where a hub id is a tiny model of T5's vocabulary."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "notes.txt").write_text("\n".join([SENTENCE * 3] * 30))
    config = T5Config(
        vocab_size=32128,
        d_model=4,
        d_ff=4,
        d_kv=2,
        num_heads=1,
        num_encoder_layers=1,
        num_decoder_layers=1,
    )
    words = train_tokenizer([(SENTENCE + ANSWERS) * 3], vocab_size=38)
    weights = Weights.from_params(init_params(config, jax.random.key(0)))
    save_hf(tmp_path / "hub", config, weights, words)
    monkeypatch.setattr(
        opening, "download_snapshot", lambda name, *, revision, subfolder: tmp_path / "hub"
    )
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow if p.name in LONG else ()) for p in PAGES],
    ids=lambda page: page.name,
)
def test_docs_python_blocks_run(page, workplace):
    namespace: dict = {}
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_docs_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_pictures_are_drawn(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 5.0, "eval_loss": 5.5}\n')
    pictures = runpy.run_path(str(ROOT / "docs" / "pictures.py"))
    pictures["draw_all"](tmp_path / "images", run=tmp_path)
    shown = "".join((ROOT / "docs" / page).read_text() for page in ("models.md", "pretraining.md"))
    assert {f"images/{path.name}" for path in (tmp_path / "images").iterdir()} == set(
        re.findall(r"images/\w+\.svg", shown)
    )


def test_source_names_files_that_exist():
    page = (ROOT / "docs" / "source.md").read_text()
    paths = re.findall(r"`((?:[a-z0-9_]+/)+(?:[a-z0-9_]+\.py)?)`", page)
    assert len(paths) > 50
    for path in paths:
        base = ROOT if path.startswith("tests/") else ROOT / "t5jax"
        assert (base / path).exists(), path


def test_docs_options_exist():
    """Options in shell blocks are options of the command."""
    shown = io.StringIO()
    for name in _COMMANDS:
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            entry(name, "--help")
    known = set(re.findall(r"--[a-z][a-z0-9.-]*", shown.getvalue()))
    known |= {option.rsplit(".", 1)[0] for option in known}  # groups, as in `--data.*`
    known |= {"--quick", "--data", "--config", "--version"}  # of the examples, and of all commands
    for page in PAGES:
        text = page.read_text()
        lines = [x for x in text.splitlines() if "pip" not in x and "pytest" not in x]
        for option in re.findall(r"--[a-z][a-z0-9.-]*[a-z0-9]", "\n".join(lines)):
            assert option in known | {"--help", "--check"}, (page.name, option)
