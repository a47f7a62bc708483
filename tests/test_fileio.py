"""Files and folders that are there whole or not at all, and JSON of strangers."""

import contextlib
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from t5jax import fileio
from t5jax.fileio import (
    MAX_JSON_BYTES,
    atomic_folder,
    is_temporary,
    read_json,
    read_json_object,
    read_text,
    write_atomically,
    write_json,
)


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


# Folders.


def names(path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


@pytest.fixture
def folder(tmp_path):
    """A folder with a file in it."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    return tmp_path / "folder"


def replace(path):
    return atomic_folder(path, check_replaceable=lambda path: None)


def test_folder_takes_the_place_of_what_may_be_replaced(folder, tmp_path):
    checked = []
    with atomic_folder(folder, check_replaceable=checked.append) as temporary:
        assert (folder / "old").read_text() == "old"
        (temporary / "new").write_text("new")
    assert checked == [folder]
    assert names(folder) == ["new"]
    assert names(tmp_path) == ["folder"]


def test_folder_of_a_new_path_or_without_files_is_not_checked(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "a" / "b"):
        with atomic_folder(path, check_replaceable=pytest.fail) as temporary:
            (temporary / "new").write_text("new")
        assert names(path) == ["new"]


def test_folder_is_not_replaced_without_a_check(folder, tmp_path):
    with pytest.raises(FileExistsError, match=f"^{folder} must be"), atomic_folder(folder):
        pytest.fail("the block must not run")
    assert names(folder) == ["old"]
    with pytest.raises(FileExistsError), atomic_folder(folder / "old"):
        pytest.fail("the block must not run")
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_interrupted_folder_leaves_what_was_there(folder, tmp_path, error):
    def write_half():
        with replace(folder) as temporary:
            (temporary / "new").write_text("half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert names(folder) == ["old"]
    assert names(tmp_path) == ["folder"]


def test_folder_that_cannot_take_its_place_leaves_the_old_one(folder, tmp_path, monkeypatch):
    """The last of two renames fails, when the old folder has made room."""
    rename = Path.rename

    def failing(self, target):
        if self.name.endswith(".tmp"):
            raise OSError("Device or resource busy")
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", failing)
        with pytest.raises(OSError, match="busy"), replace(folder):
            pass
    assert names(folder) == ["old"]
    assert names(tmp_path) == ["folder"]


def test_folder_is_not_disturbed_by_what_a_killed_process_left(tmp_path):
    """Process ids come back, in containers at every start."""
    with contextlib.ExitStack() as never_left:
        never_left.enter_context(atomic_folder(tmp_path / "folder"))
        left = names(tmp_path)
        assert len(left) == 1
        with atomic_folder(tmp_path / "folder") as temporary:
            (temporary / "new").write_text("whole")
        assert (tmp_path / "folder" / "new").read_text() == "whole"
        assert names(tmp_path) == [*left, "folder"]
        shutil.rmtree(tmp_path / "folder")


def test_interrupted_folder_removes_what_threads_still_write(tmp_path, monkeypatch):
    """An interrupt leaves writers running, which make files while others are being removed."""
    remove, calls = shutil.rmtree, []

    def removed_too_early(path, **options):
        remove(path, **options)
        calls.append(path)
        if len(calls) < 3:
            path.mkdir()
            (path / "late").write_text("of a thread")

    monkeypatch.setattr(fileio.shutil, "rmtree", removed_too_early)
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "folder"):
        raise KeyboardInterrupt
    assert names(tmp_path) == []


# JSON: a sentence for whatever is none, and no more memory than configs need.


def error_of(path, read=read_json) -> str:
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        read(path)
    assert type(caught.value) is ValueError
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("value", [{}, {"a": [1, None, "é"]}, [1], 3, None, "x"])
def test_read_returns_what_was_written(tmp_path, value):
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"1" * 5000, b"nan?"])
def test_read_refuses_what_is_no_json(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert "must be JSON" in error_of(path)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"x"'])
def test_read_object_refuses_other_values(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    assert "must be a JSON object, got" in error_of(path, read_json_object)


def test_read_says_what_to_do_with_a_pointer(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:d60a\nsize 791656\n")
    assert "git lfs pull" in error_of(path, read_json_object)


def test_read_refuses_a_file_too_large_for_a_config(tmp_path):
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    assert "it is a different kind of file" in error_of(path)


def test_read_does_not_wait_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "must be a readable file" in error_of(tmp_path / "pipe")
    assert "must be a readable file" in error_of(tmp_path)
    assert "must be a readable file" in error_of(tmp_path / "absent")


def test_write_writes_through_links_and_into_devices(tmp_path):
    target, link = tmp_path / "real.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    write_atomically(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    dangling = tmp_path / "dangling.txt"
    dangling.symlink_to(tmp_path / "later.txt")
    write_atomically(dangling, "new")
    assert (tmp_path / "later.txt").read_text() == "new"
    write_atomically("/dev/null", "lost")
    assert Path("/dev/null").is_char_device()


def test_write_into_a_pipe_reaches_its_reader(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(pipe.read_bytes)
        write_atomically(pipe, "text")
        assert received.result(timeout=10) == b"text"
    assert pipe.is_fifo()


def test_read_text_refuses_what_is_too_large_or_not_utf_8(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbftext")
    assert read_text(tmp_path / "a.txt") == "text"
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"b\.txt must be UTF-8"):
        read_text(tmp_path / "b.txt")
    with (tmp_path / "c.txt").open("wb") as file:
        file.truncate(12 << 30)  # sparse
    with pytest.raises(ValueError, match=r"c\.txt must have at most"):
        read_text(tmp_path / "c.txt")
