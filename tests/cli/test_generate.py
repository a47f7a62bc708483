import dataclasses
import os
import signal
import subprocess
import sys

import pytest
import tyro

from t5jax.cli import generate as command
from t5jax.cli.generate import Generate
from t5jax.generation import GenerationConfig
from t5jax.recipes import batch_inference

LIMIT = 12


@pytest.fixture(scope="module")
def folder(t5, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "saved"
    t5.save(path)
    return path


@pytest.fixture
def generate(t5jax, folder, texts, tmp_path, monkeypatch):
    """Runs the command for the texts with some options more."""
    monkeypatch.setattr(command, "enable_compilation_cache", lambda: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("".join(text + "\n" for text in texts), encoding="utf-8")

    def run(*options):
        arguments = ("--input", "in.txt", "--output", "out.txt", "--dtype", "float32")
        limits = ("--max-new-tokens", str(LIMIT), "--batch-size", "3")
        return t5jax("generate", folder, *arguments, *limits, *options)

    return run


def test_generate_goes_on_and_says_what_it_wrote(generate, t5, texts, tmp_path, monkeypatch):
    whole = batch_inference._generate

    def interrupted(*arguments):
        yield next(whole(*arguments))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(batch_inference, "_generate", interrupted)
        status, out, _ = generate()
    assert status == 130
    assert out == f"\nkept 3 of {len(texts)} outputs; rerun the same command to resume.\n"
    status, out, _ = generate()
    assert status == 0
    assert out == f"wrote {len(texts)} outputs to out.txt, 3 of them from an earlier run\n"
    written = (tmp_path / "out.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert written == t5.generate(texts, max_new_tokens=LIMIT)


def test_generate_says_what_constraints_and_rounding_did(generate, t5, texts):
    every = map(str, range(t5.config.vocab_size))
    status, out, _ = generate("--weights", "int8", "--suppress-tokens", *every)
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith("int8 weights: ")
    assert lines[1:] == [
        f"wrote {len(texts)} outputs to out.txt",
        f"note: {len(texts)} outputs are empty: the constraints allowed no token",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--output", "out.csv"), "error: output must end in .txt or .jsonl, got 'out.csv'"),
        (("--input", "in.docx"), "error: input must end in .txt"),
    ],
)
def test_generate_refuses_files_of_other_formats(generate, options, message):
    status, out, err = generate(*options)
    assert (status, out) == (2, "")
    assert err.startswith(message)


def test_t5jax_generate_survives_a_kill(t5, texts, folder, tmp_path):
    """A real process, killed when it has written some answers, and started again."""
    given = [f"{text} {i}" for i in range(60) for text in texts[:3]]
    (tmp_path / "in.txt").write_text("".join(text + "\n" for text in given), encoding="utf-8")
    output = tmp_path / "out.txt"
    arguments = ["--input", str(tmp_path / "in.txt"), "--output", str(output), "--batch-size", "1"]
    code = "from t5jax.cli.main import entry; entry()"
    argv = [sys.executable, "-c", code, "generate", str(folder), *arguments]
    argv += ["--max-new-tokens", str(LIMIT), "--dtype", "float32"]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs")}
    partial = tmp_path / "out.txt.partial"
    with subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL) as process:
        while not (partial.exists() and partial.read_bytes().count(b"\n") > 20):
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert not output.exists()
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "from an earlier run" in done.stdout
    assert output.read_text(encoding="utf-8").split("\n")[:-1] == t5.generate(
        given, max_new_tokens=LIMIT
    )
    assert not partial.exists()


def test_command_line_lists_every_option_that_it_can_express(t5jax):
    status, said, _ = t5jax("generate", "--help")
    assert status == 0
    options = {field.name for field in dataclasses.fields(GenerationConfig)}
    listed = {name for name in options if f" --{name.replace('_', '-')} " in said}
    assert options - listed == {"bad_words_ids", "automaton"}


@pytest.mark.usefixtures("own_checks")
def test_command_line_options_become_a_config():
    argv = ["MODEL", "--input", "in.txt", "--output", "out.txt", "--decoder-prefix", "the"]
    argv += ["--num-beams", "3", "--early-stopping", "never", "--stop-strings", "a", "b"]
    config = tyro.cli(Generate, args=[*argv, "--truncate"]).generation
    chosen = {name: value for name, value in vars(config).items() if value not in (None, ())}
    assert chosen == {
        "decoder_prefix": "the",
        "num_beams": 3,
        "early_stopping": "never",
        "stop_strings": ["a", "b"],
        "truncate": True,
    }
    assert {*vars(config), "bad_words_ids", "automaton"} == {*vars(GenerationConfig())}
