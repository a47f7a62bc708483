import dataclasses
import json
import sys

import pytest

from t5jax import cli
from t5jax.config import T5Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """A command."""

    steps: int = 3
    """How many."""


def run(monkeypatch, arguments: list[str], function) -> int:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    try:
        cli.main(Options, function)
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
    assert "make room and run the same command again" in capsys.readouterr().err


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
