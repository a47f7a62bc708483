import pytest

from t5jax import fileio
from t5jax.fileio import is_temporary, write_atomically


def test_write_replaces_a_file_whole(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "höchst\n")
    write_atomically(path, b"\x00new")
    assert path.read_bytes() == b"\x00new"
    assert list(tmp_path.iterdir()) == [path]


def test_write_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fileio.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_is_temporary_knows_what_a_crash_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(fileio.Path, "replace", lambda self, target: None)
    monkeypatch.setattr(fileio.Path, "unlink", lambda self, missing_ok: None)
    write_atomically(tmp_path / "file", "text")
    (left,) = tmp_path.iterdir()
    assert is_temporary(left)
    assert not is_temporary(tmp_path / "file")
