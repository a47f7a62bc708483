import dataclasses
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

from t5jax.cli.main import entry, run_command
from t5jax.models.config import T5Config
from t5jax.pretrained.formats.safetensors import SafetensorsWriter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """A command."""

    steps: int = 3
    """How many."""


def run(monkeypatch, arguments: list[str], function) -> int:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    try:
        run_command(Options, function)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_main_passes_the_parsed_config(monkeypatch):
    seen = []
    assert run(monkeypatch, ["--steps", "7"], seen.append) == 0
    assert seen == [Options(steps=7)]


def test_main_suggests_the_option_that_was_meant(monkeypatch, capsys):
    assert run(monkeypatch, ["--stepps", "7"], lambda _: None) == 2
    assert "--steps" in capsys.readouterr().err


def test_main_prints_our_errors_as_one_sentence(monkeypatch, capsys):
    assert run(monkeypatch, [], lambda _: T5Config.preset("t5-smal")) == 2
    shown = capsys.readouterr().err
    assert shown == "error: unknown preset 't5-smal'; did you mean 't5-small'?\n"


def test_main_prints_os_errors_as_one_sentence(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, [], lambda _: (tmp_path / "absent").read_text()) == 2
    assert capsys.readouterr().err.startswith("error: [Errno 2]")


def test_main_tells_what_to_do_about_a_full_disk(monkeypatch, capsys):
    def write(_):
        with open("/dev/full", "w") as file:
            file.write("text")

    assert run(monkeypatch, [], write) == 2
    assert "free disk space and run the same command again" in capsys.readouterr().err


def test_main_keeps_the_traceback_of_errors_that_are_not_ours(monkeypatch):
    with pytest.raises(json.JSONDecodeError):
        run(monkeypatch, [], lambda _: json.loads("{"))


def test_main_keeps_every_traceback_when_asked(monkeypatch):
    monkeypatch.setenv("T5JAX_TRACEBACK", "1")
    with pytest.raises(ValueError, match="did you mean"):
        run(monkeypatch, [], lambda _: T5Config.preset("t5-smal"))


def test_main_exits_130_after_an_interrupt(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    assert run(monkeypatch, [], interrupt) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("thread", [False, True])
def test_main_ends_at_once_when_a_run_of_several_processes_is_aborted(thread):
    code = f"""
import atexit, dataclasses, threading
from t5jax.cli import run_command
from t5jax.parallel import RunAborted

@dataclasses.dataclass
class Options:
    pass

def abort():
    raise RunAborted("process 1 of 2 is gone")

def main(_):
    if {thread}:  # as in a collective that never completes
        threading.Thread(target=abort).start()
        threading.Event().wait()
    abort()

atexit.register(print, "exit handlers run")
run_command(Options, main)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert (done.stdout, done.stderr) == ("", "\nerror: process 1 of 2 is gone\n")


# The command `t5jax`.

MESH_TF = Path(__file__).parents[1] / "fixtures" / "mesh_tf"


def test_t5jax_is_installed_as_a_command():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="t5jax")
    assert script.load() is entry


def test_t5jax_runs_in_a_process_of_its_own():
    code = "from t5jax.cli.main import entry; entry()"
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", "/nowhere/model"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: /nowhere/model must be ")
    assert done.stderr.count("\n") == 1


def test_t5jax_help_lists_its_commands(t5jax):
    status, out, err = t5jax("--help")
    assert (status, err) == (0, "")
    assert out.startswith("usage: t5jax [-h] {pretrain,finetune,train-tokenizer,generate,")
    assert "generate         Generate an output for every line or row of a file" in out
    assert "evaluate         Compare predictions with references" in out
    assert "convert          Write a checkpoint in another format" in out


def test_t5jax_suggests_the_command_that_was_meant(t5jax):
    status, _, err = t5jax("pretrian")
    assert status == 2
    assert "pretrain" in err


def test_t5jax_prints_its_version(t5jax):
    assert t5jax("--version") == (0, f"t5jax {importlib.metadata.version('t5jax')}\n", "")


@pytest.mark.parametrize("command", ["convert", "inspect"])
def test_t5jax_help_of_a_command_explains_every_option(t5jax, command):
    status, out, err = t5jax(command, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: t5jax {command} ")
    options = {
        "convert": ("to", "dtype", "encoder-only", "scan-layers", "max-shard-size SIZE"),
        "inspect": ("json",),
    }
    for option in (*options[command], "revision NAME", "subfolder FOLDER"):
        assert f"--{option}" in out
    assert "SOURCE " in out
    assert "--no-" not in out
    assert "{None}" not in out
    assert "/a/long/path" not in out
    assert all(len(line) <= 100 for line in out.splitlines())


def test_t5jax_suggests_the_option_that_was_meant(t5jax):
    status, out, err = t5jax("convert", "a", "b", "--to", "hf", "--encoder-onli")
    assert (status, out) == (2, "")
    assert "--encoder-only" in err


@pytest.mark.parametrize(
    "arguments", [[], ["explode"], ["convert"], ["inspect", "a", "b"], ["generate", "a"]]
)
def test_t5jax_refuses_what_is_no_command(t5jax, arguments):
    status, out, err = t5jax(*arguments)
    assert (status, out) == (2, "")
    assert "--help" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--to", "onnx"], "'onnx'"),
        ([], "--to"),
        (["--to", "hf", "--dtype", "float16"], "'float16'"),
        (["--to", "hf", "--scan-layers"], "scan_layers must not be set for hf"),
        (["--to", "hf", "--max-shard-size", "0"], "max_shard_size must be a size such as 5GB"),
    ],
)
def test_t5jax_convert_refuses_options_before_it_reads(t5jax, tmp_path, options, reason):
    status, out, err = t5jax("convert", MESH_TF, tmp_path / "out", *options)
    assert (status, out) == (2, "")
    assert reason in " ".join(err.replace("│", "").split())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["inspect"], ["convert", "--to", "hf"]])
def test_t5jax_says_in_one_sentence_what_is_wrong_with_a_path(t5jax, tmp_path, command):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.safetensors").write_bytes(b"<html>")
    (tmp_path / "text.txt").write_text("text")
    for name in ("absent/model", "empty", "file.safetensors", "text.txt"):
        destination = [tmp_path / "out"] if command[0] == "convert" else []
        status, out, err = t5jax(command[0], tmp_path / name, *destination, *command[1:])
        assert (status, out) == (2, "")
        assert err.startswith(f"error: {tmp_path / name}")
        assert err.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_t5jax_converts_and_inspects(t5jax, tmp_path):
    status, out, _ = t5jax("convert", MESH_TF, tmp_path / "out", "--to", "hf")
    assert status == 0
    assert out.startswith("read     38 tensors")
    status, out, err = t5jax("inspect", tmp_path / "out")
    assert (status, err) == (0, "")
    assert "format        Hugging Face, model.safetensors\n" in out
    status, out, _ = t5jax("inspect", tmp_path / "out", "--json")
    assert json.loads(out)["parameters"] == 3144
    status, out, err = t5jax("convert", MESH_TF, tmp_path / "out", "--to", "hf")
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {tmp_path / 'out'} must be a new or an empty folder")
    assert t5jax("convert", MESH_TF, tmp_path / "out", "--to", "t5x", "--overwrite")[0] == 0
    assert (tmp_path / "out" / "checkpoint_0").is_dir()


def test_t5jax_exits_130_after_an_interrupt_and_leaves_nothing(t5jax, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(SafetensorsWriter, "write", interrupt)
    status, out, err = t5jax("convert", MESH_TF, tmp_path / "out", "--to", "hf")
    assert (status, out) == (130, "")
    assert err.endswith("interrupted\n")
    assert not any(tmp_path.iterdir())
