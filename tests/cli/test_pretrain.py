"""`scripts/pretrain.py` shows what the model has learnt, if the run is complete."""

import datasets
import pytest

from t5jax.cli import pretrain as command
from t5jax.recipes.pretrain import PretrainResult
from t5jax.recipes.pretrain_config import PretrainConfig

SENTENCE = (
    "The baker of our village sells seven kinds of bread, and closes her shop at noon on Sundays."
)


@pytest.fixture
def run(t5, tmp_path, monkeypatch, caplog):
    def run(evaluation):
        heldout = datasets.Dataset.from_dict({"text": ["a title", SENTENCE]})
        result = PretrainResult(t5, evaluation, heldout)
        monkeypatch.setattr(command, "pretrain", lambda config: result)
        command.pretrain_and_show(PretrainConfig(output=str(tmp_path / "run")))
        return "\n".join(caplog.messages)

    return run


def test_a_complete_run_ends_with_sentences_and_the_way_to_load_it(run, tmp_path):
    shown = run({"loss": 1.0, "accuracy": 0.5})
    assert shown.count(" -> ") == 3  # in the heading, and two blanks
    assert "  The baker " in shown
    assert f"t5jax.load({str(tmp_path / 'run')!r})" in shown


def test_an_interrupted_run_shows_nothing(run):
    assert run(None) == ""
