"""Compiled programs outlive a process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_CODE = """
import sys
from t5jax.runtime import enable_compilation_cache
print(enable_compilation_cache(*sys.argv[1:]))
import jax
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
print(jax.jit(lambda x: x * 3 + 1)(jax.numpy.arange(4)).tolist())
print(sum(name.endswith("cache_hits") for name in events))
"""


def run(home, *arguments, **environment):
    """What a fresh process prints: the folder, the numbers, and how often it found a program."""
    chosen_here = ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR")
    env = {name: value for name, value in os.environ.items() if name not in chosen_here}
    env |= {"HOME": str(home), "JAX_PLATFORMS": "cpu"} | environment
    done = subprocess.run(
        [sys.executable, "-c", _CODE, *map(str, arguments)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder, numbers, hits = done.stdout.splitlines()
    assert numbers == "[1, 4, 7, 10]"
    return folder, int(hits)


def test_keep_serves_the_next_process(tmp_path):
    folder, hits = run(tmp_path)
    assert (Path(folder), hits) == (tmp_path / ".cache" / "t5jax" / "programs", 0)
    assert any(Path(folder).iterdir())
    assert run(tmp_path)[1] > 0


@pytest.mark.parametrize("chosen_by", ["argument", "environment"])
def test_keep_takes_the_folder_that_was_chosen(tmp_path, chosen_by):
    chosen = tmp_path / "chosen"
    if chosen_by == "argument":
        folder, _ = run(tmp_path, chosen)
    else:
        folder, _ = run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(chosen))
    # What JAX has been given already is not this function's.
    assert folder == (str(chosen) if chosen_by == "argument" else "None")
    if chosen_by == "argument":
        assert any(chosen.iterdir())
    assert not (tmp_path / ".cache").exists()


def test_keep_does_without_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    folder, hits = run(tmp_path, tmp_path / "file" / "programs")
    assert (folder, hits) == ("None", 0)
