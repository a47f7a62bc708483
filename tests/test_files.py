import pytest

from t5jax import files


def test_write_replaces_a_file_whole(tmp_path):
    path = tmp_path / "file"
    files.write(path, "höchst\n")
    files.write(path, b"\x00new")
    assert path.read_bytes() == b"\x00new"
    assert list(tmp_path.iterdir()) == [path]


def test_write_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write(path, "old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        files.write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_is_temporary_knows_what_a_crash_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(files.Path, "replace", lambda self, target: None)
    monkeypatch.setattr(files.Path, "unlink", lambda self, missing_ok: None)
    files.write(tmp_path / "file", "text")
    (left,) = tmp_path.iterdir()
    assert files.is_temporary(left)
    assert not files.is_temporary(tmp_path / "file")
