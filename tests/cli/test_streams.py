import os
import subprocess
import sys

import pytest


def run(body: str, *, writes: bool, **streams) -> subprocess.CompletedProcess:
    """A command whose result is files (`writes`) or what it prints."""
    streams.setdefault("stderr", subprocess.PIPE)
    code = f"""
import sys
from t5jax.cli.streams import safe_streams

with safe_streams(lenient={writes}):
    {body}
"""
    return subprocess.run([sys.executable, "-c", code], text=True, **streams)


@pytest.mark.parametrize("writes", [False, True])
def test_reader_that_went_away_is_no_error(writes):
    reader, writer = os.pipe()
    os.close(reader)
    body = "[print('line', flush=True) for _ in range(3)]"
    done = run(body, writes=writes, stdout=writer)
    assert (done.returncode, done.stderr) == (0, "")
    done = run("print('buffered')", writes=writes, stdout=writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(("writes", "failed"), [(True, False), (False, True)])
def test_full_disk_is_an_error_only_for_what_is_printed(writes, failed):
    with open("/dev/full", "w") as full:
        done = run("print('line')", writes=writes, stdout=full)
    assert bool(done.returncode) == failed
    assert ("No space left" in done.stderr) == failed


def test_streams_that_are_closed_are_the_null_device(tmp_path):
    body = f"print('line'); open({str(tmp_path / 'file')!r}, 'w').write('text')"
    code = (
        f"from t5jax.cli.streams import safe_streams\nwith safe_streams(lenient=True):\n    {body}"
    )
    done = subprocess.run([*("sh", "-c", 'exec "$0" -c "$1" >&- 2>&-'), sys.executable, code])
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "text"


def test_characters_that_the_encoding_lacks_are_escaped():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = run("print('gr\u00fcn')", writes=True, stdout=subprocess.PIPE, env=environment)
    assert (done.returncode, done.stdout) == (0, "gr\\xfcn\n")
