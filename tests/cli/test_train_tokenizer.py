import os
import subprocess
import sys
from pathlib import Path

import pytest

from t5jax.cli.train_tokenizer import TrainTokenizer, train_and_save
from t5jax.data.corpus import DataConfig
from t5jax.tokenizers.load import load_tokenizer
from t5jax.tokenizers.sentencepiece import train_tokenizer

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "train_tokenizer.py"
LINES = [
    "The quick brown fox jumps over the lazy dog.",
    "Hello world, hello again: the numbers are 12345 and 67890.",
    "Sphinx of black quartz, judge my vow.",
] * 20


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join([*LINES, *["held-out žžž"] * 3]))
    return path


def config(text_file, output, **changes):
    data = DataConfig(path=str(text_file))
    return TrainTokenizer(data=data, output=output, **{"vocab_size": 50, **changes})


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_command_trains_on_what_is_not_held_out(text_file, tmp_path, capsys):
    output = tmp_path / "new" / "vocabulary"
    train_and_save(config(text_file, output, num_sentinels=7))
    loaded = load_tokenizer(output)
    assert loaded is not None
    assert loaded.vocab_size == 57
    # 5 % of 63 lines are the last three: the only ones with this letter.
    assert loaded.encode("ž")[-1] == loaded.unk_id
    expected = train_tokenizer(LINES, vocab_size=50, num_sentinels=7)
    assert loaded.fingerprint == expected.fingerprint
    assert "57 ids, 7 of them sentinels" in capsys.readouterr().out


def test_command_leaves_nothing_behind_when_it_fails(text_file, tmp_path):
    with pytest.raises(ValueError, match="got 9999"):
        train_and_save(config(text_file, tmp_path / "out", vocab_size=9999))
    assert [path.name for path in tmp_path.iterdir()] == [text_file.name]


def test_command_keeps_a_folder_that_has_content(text_file, tmp_path):
    output = tmp_path / "full"
    output.mkdir()
    (output / "notes").write_text("mine")
    with pytest.raises(FileExistsError, match="full"):
        train_and_save(config(text_file, output))
    assert [path.name for path in output.iterdir()] == ["notes"]


def test_command_fills_an_empty_folder(text_file, tmp_path):
    output = tmp_path / "empty"
    output.mkdir()
    done = run("--data.path", text_file, "--vocab-size", "50", "--output", output)
    assert done.returncode == 0, done.stderr
    assert "150 ids, 100 of them sentinels" in done.stdout
    assert sorted(path.name for path in output.iterdir()) == [
        "spiece.model",
        "tokenizer_config.json",
    ]


def test_command_reports_an_error_in_one_sentence(text_file, tmp_path):
    output = tmp_path / "out"
    done = run("--data.path", text_file, "--vocab-size", "2", "--output", output)
    assert done.returncode == 2
    assert done.stderr.startswith("error: vocab_size must exceed 3")
    assert "Traceback" not in done.stderr
    assert not output.exists()
