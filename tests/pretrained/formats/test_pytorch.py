"""Files of `torch.save`: those of torch itself, and every way to be none.

What torch writes is compared with torch's own values, bit for bit; damaged and hostile files are
assembled by `torch_pickles`, without torch.
"""

import datetime
import os
import pickle
import random
import re
import struct
import tracemalloc
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from helpers import torch_pickles
from helpers.torch_pickles import PROTO, STOP, items, sizes, text

from t5jax.pretrained.formats import pytorch
from t5jax.pretrained.formats.lazy_array import read_array
from t5jax.pretrained.formats.pytorch import open_pytorch

CONTAINERS = ["zip", "legacy"]
PROTOCOLS = [2, 3, 4, 5]
VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)
COUNTS = np.array([7, -8], np.int64)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def save(path, state, container, protocol=2):
    import torch

    new = container == "zip"
    torch.save(state, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    return path


def bits(tensor) -> tuple:
    """Type, shape and bytes of a torch tensor."""
    import torch

    name = str(tensor.dtype).removeprefix("torch.")
    content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return name, tuple(tensor.shape), content


def assert_opens(path, state):
    found = open_pytorch(path)
    assert list(found) == list(state)
    for name, tensor in state.items():
        value = read_array(found[name])
        assert (value.dtype.name, value.shape, value.tobytes()) == bits(tensor), name
        assert found[name].file == path
    return found


def error_of(path) -> str:
    """The message with which a file is refused: one sentence that names it."""
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        open_pytorch(path)
    assert type(caught.value) is ValueError
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message.replace(str(path), "")) < 400
    return message


# Files of torch.


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_open_file_finds_all_that_torch_saves(torch, tmp_path, container, protocol):
    torch.manual_seed(0)
    odd = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    odd[:1].view(torch.int32)[0] = 0x7FC12345
    state = {
        "float32": torch.randn(3, 5),
        "float16": torch.randn(3, 5).half(),
        "bfloat16": torch.randn(3, 5).bfloat16(),
        "float64": torch.randn(3, 5).double(),
        **{
            name: torch.randint(-100, 100, (2, 3)).to(getattr(torch, name))
            for name in ("int64", "int32", "int16", "int8")
        },
        "uint8": torch.randint(0, 256, (2, 3), dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "odd values": odd,
        "scalar": torch.tensor(2.5),
        "one": torch.ones(1, 1, 1),
        "empty": torch.zeros(0),
        "empty rows": torch.zeros(0, 5),
        "empty columns": torch.zeros(5, 0, 3),
        "parameter": torch.nn.Parameter(torch.randn(4)),
        "frozen": torch.nn.Parameter(torch.randn(4), requires_grad=False),
        "transposed": torch.randn(3, 5).T,
        "transposed cube": torch.randn(2, 3, 4).permute(2, 1, 0),
        "transposed, one row": torch.randn(5, 1).T,
        "any strides of one": torch.randn(5).as_strided((1, 5, 1), (77, 1, 3)),
        "rows of more": torch.randn(9, 4)[2:5],
        "transposed rows of more": torch.randn(9, 4)[2:5].T,
        "element of more": torch.randn(9)[4],
        "nothing of more": torch.randn(9)[9:],
        "müde 雪 \U0001f917": torch.randn(2),
    }
    state["tied"] = state["float32"]
    state["tied in part"] = state["float32"][1:]
    found = assert_opens(save(tmp_path / "model.bin", state, container, protocol), state)
    assert found["tied"] == found["float32"]
    assert found["transposed"].transposed
    assert not found["transposed, one row"].transposed


@pytest.mark.parametrize("container", CONTAINERS)
def test_open_file_finds_a_model_of_transformers(torch, tmp_path, container):
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_ff=24, d_kv=5, num_heads=3, num_layers=2, num_decoder_layers=1
    )
    state = transformers.T5ForConditionalGeneration(config).state_dict()
    assert state._metadata
    found = assert_opens(save(tmp_path / "pytorch_model.bin", state, container), state)
    assert found["shared.weight"] == found["encoder.embed_tokens.weight"]
    assert found["shared.weight"] == found["lm_head.weight"]
    half = {name: tensor.bfloat16().contiguous() for name, tensor in state.items()}
    assert_opens(save(tmp_path / "half.bin", half, container), half)


@pytest.mark.parametrize("container", CONTAINERS)
def test_open_file_finds_many_tensors_in_a_long_pickle(torch, tmp_path, container):
    state = {f"block.{i}.weight": torch.full((2,), float(i)) for i in range(1100)}
    assert_opens(save(tmp_path / "model.bin", state, container), state)


def test_open_file_does_without_checksums_if_torch_does(torch, tmp_path):
    state = {"a": torch.randn(3)}
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        save(tmp_path / "model.bin", state, "zip")
    finally:
        torch.serialization.set_crc32_options(before)
    assert_opens(tmp_path / "model.bin", state)


@pytest.mark.parametrize("container", CONTAINERS)
def test_open_file_refuses_other_views_by_name(torch, tmp_path, container):
    for view in (
        torch.randn(4, 6)[:, :3],
        torch.randn(8)[::2],
        torch.randn(3).expand(4, 3),
        torch.randn(2, 3, 4).permute(1, 0, 2),
        torch.randn(4, 4).diagonal(),
    ):
        state = {"good": torch.ones(2), "sliced.weight": view}
        message = error_of(save(tmp_path / "model.bin", state, container))
        assert "sliced.weight is a view" in message
        assert "save it with .contiguous()" in message


@pytest.mark.parametrize("container", CONTAINERS)
def test_open_file_refuses_all_but_tensors(torch, tmp_path, container):
    tensors = {"a.weight": torch.ones(2)}
    for state, found in (
        ({"weights": tensors}, "got a dict as weights"),
        ({**tensors, "epoch": 3}, "got a int as epoch"),
        ({**tensors, "names": ["a", "b"]}, "got a list as names"),
        ([tensors], "dict of tensors, got a list"),
        (torch.ones(2), "dict of tensors, got a Tensor"),
        (None, "dict of tensors, got a NoneType"),
        ({1: torch.ones(2)}, "got a Tensor as 1"),
    ):
        message = error_of(save(tmp_path / "model.bin", state, container))
        assert found in message
        assert "model.state_dict()" in message


@pytest.mark.parametrize("container", CONTAINERS)
def test_open_file_refuses_other_objects_of_torch_by_name(torch, tmp_path, container):
    for state, asked in (
        ({"a": torch.ones(2).to(torch.complex64)}, "torch.ComplexFloatStorage"),
        ({"a": torch.ones(2).to_sparse()}, "torch._utils._rebuild_sparse_tensor"),
        ({"a": torch.float32}, "torch.float32"),
    ):
        message = error_of(save(tmp_path / "model.bin", state, container))
        assert f"refers to {asked}, which" in message


def test_open_file_names_the_class_of_a_whole_module(torch, tmp_path):
    message = error_of(save(tmp_path / "model.bin", torch.nn.Linear(2, 2), "zip"))
    assert "dict of tensors, got a torch.nn.modules.linear.Linear" in message


@pytest.mark.parametrize("container", CONTAINERS)
def test_tensors_are_found_among_what_trainers_save(torch, tmp_path, container):
    model = torch.nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    options = {"lr": 1e-3, "path": Path("runs"), "names": {"a", "b"}, "args": Namespace(x=1.5)}
    state = model.state_dict()
    for content in (
        {"state_dict": state, "hyper_parameters": options, "epoch": 3},
        {"model": state, "optimizer": optimizer.state_dict(), "score": np.float64(0.5)},
        {"optimizer": optimizer.state_dict(), "model_state_dict": state},
        {"module": {"model": state}, "time": datetime.datetime(2026, 1, 1)},
    ):
        opened = open_pytorch(save(tmp_path / "last.ckpt", content, container))
        assert opened.keys() == state.keys()
        for name, values in state.items():
            np.testing.assert_array_equal(read_array(opened[name]), values.numpy())


def test_torch_reads_the_files_of_these_tests(torch, tmp_path):
    for path in (small_zip(tmp_path / "zip"), small_legacy(tmp_path / "legacy")):
        state = torch.load(path, weights_only=True)
        assert bits(state["weight"]) == ("float32", (2, 3), VALUES.tobytes())
        assert bits(state["turned"]) == ("float32", (3, 2), VALUES.T.tobytes())
        assert bits(state["counts"]) == ("int64", (2,), COUNTS.tobytes())


# Files assembled by hand.


def pickled(*, legacy: bool = False, **more: bytes) -> bytes:
    floats = torch_pickles.storage("0", 6, legacy=legacy)
    tensors = {
        "weight": torch_pickles.tensor(floats, sizes(2, 3), sizes(3, 1)),
        "turned": torch_pickles.tensor(floats, sizes(3, 2), sizes(1, 3)),
        "counts": torch_pickles.tensor(
            torch_pickles.storage("1", 2, "Long", legacy=legacy), sizes(2), sizes(1)
        ),
    }
    return torch_pickles.state_dict(tensors | more)


ZIPPED = {"0": VALUES.tobytes(), "1": COUNTS.tobytes()}
LEGACY = {"1": (2, COUNTS.tobytes()), "0": (6, VALUES.tobytes())}


def small_zip(path, content=None, storages=ZIPPED, **others):
    return torch_pickles.write_zip(path, content or pickled(), storages, **others)


def small_legacy(path, content=None, storages=LEGACY, **changes):
    return torch_pickles.write_legacy(path, content or pickled(legacy=True), storages, **changes)


def assert_small(path):
    found = open_pytorch(path)
    assert set(found) == {"weight", "turned", "counts"}
    for name, value in {"weight": VALUES, "turned": VALUES.T, "counts": COUNTS}.items():
        np.testing.assert_array_equal(read_array(found[name]), value, strict=True)


def test_open_file_reads_files_made_by_hand(tmp_path):
    assert_small(small_zip(tmp_path / "a"))
    assert_small(small_zip(tmp_path / "b", root="another name"))
    assert_small(small_zip(tmp_path / "c", root="雪"))
    # torch 1.6 wrote no byte order.
    assert_small(small_zip(tmp_path / "d", byteorder=None))
    assert_small(
        small_zip(tmp_path / "e", **{"extra/data.pkl": b"", ".data/serialization_id": b"1"})
    )
    assert_small(small_legacy(tmp_path / "f"))
    assert_small(small_legacy(tmp_path / "g", keys=["1", "0"]))


def test_open_file_reads_a_zip_file_behind_something_else(tmp_path):
    path = small_zip(tmp_path / "model.bin")
    path.write_bytes(b"PK\x03\x04 and more" + path.read_bytes())
    assert_small(path)


def test_open_file_reads_sizes_of_64_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1)
    path = small_zip(tmp_path / "model.bin")
    assert b"PK\x06\x06" in path.read_bytes()
    assert_small(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "`git lfs pull`"),
        (bytes(257) + b"ustar" + bytes(250), "a tar file of torch 0.1"),
        (b"<!DOCTYPE html>", "starts with b'<!DOCTYP'"),
        (b"\0\n\xff\0\0\0\0\0\0", r"starts with b'\x00\n\xff"),
        (b"PK\x03\x04", "zip directory"),
        (b"PK\x05\x06" + bytes(18), "starts with b'PK"),
        (b"\x80", "damaged or incomplete"),
        (pickle.dumps(5, protocol=2), "another pickle"),
        (pickle.dumps({"a": 1}, protocol=4), "another pickle"),
        (pickle.dumps(torch_pickles.MAGIC, protocol=2), "damaged or incomplete"),
    ],
)
def test_open_file_says_what_a_file_is_instead(tmp_path, content, found):
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    assert found in error_of(path)


def test_open_file_refuses_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "absent"):
        assert "must be a file" in error_of(path)


def test_open_file_refuses_a_file_that_it_may_not_read(tmp_path, monkeypatch):
    path = small_zip(tmp_path / "model.bin")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    assert "readable file (Permission denied)" in error_of(path)


TENSOR_ERRORS = {
    "beyond": (sizes(7), sizes(1), b"K\0", "must fit into the 6 elements"),
    "offset": (sizes(6), sizes(1), b"K\1", "must fit into"),
    "large": (sizes(1 << 62, 4), sizes(4, 1), b"K\0", "must fit into"),
    "large and empty": (sizes(1 << 62, 0), sizes(0, 1), b"K\0", "must fit into"),
    "empty, offset": (sizes(0), sizes(1), b"K\7", "must fit into"),
    "scalar, offset": (b")", b")", b"K\6", "must fit into"),
    "strides": (sizes(2, 2), sizes(3, 1), b"K\0", "is a view"),
    "stride 0": (sizes(6), sizes(0), b"K\0", "is a view"),
    "large strides": (sizes(2, 3), sizes((1 << 63) - 1, 1), b"K\0", "is a view"),
    "negative shape": (sizes(-2, -3), sizes(3, 1), b"K\0", "integer shape"),
    "negative strides": (sizes(2, 3), sizes(-3, 1), b"K\0", "integer shape"),
    "negative offset": (sizes(2), sizes(1), torch_pickles.integer(-1), "integer shape"),
    "axes": (sizes(2, 3), sizes(1), b"K\0", "integer shape"),
    "many axes": (sizes(*[1] * 9), sizes(*[1] * 9), b"K\0", "at most 8 axes"),
    "far too many axes": (sizes(*[1] * 9999), sizes(*[1] * 9999), b"K\0", "at most 8 axes"),
    "bool": (items(b"\x88"), sizes(1), b"K\0", "integer shape"),
    "text": (items(text("6")), sizes(1), b"K\0", "integer shape"),
    "text for a shape": (text("6"), text("1"), b"K\0", "integer shape"),
    "list": (b"](K\6e", sizes(1), b"K\0", "integer shape"),
    "none": (sizes(6), b"N", b"K\0", "integer shape"),
    "offset none": (sizes(6), sizes(1), b"N", "integer shape"),
    "huge shape": (sizes(*[1 << 2000] * 8), sizes(*[1] * 8), b"K\0", "integer shape"),
    "huge offset": (sizes(6), sizes(1), torch_pickles.integer(1 << 2000), "integer shape"),
    "eight large axes": (sizes(*[(1 << 63) - 1] * 8), sizes(*[1] * 8), b"K\0", "is a view"),
    "eight large strides": (sizes(1, *[2, 1] * 2), sizes(*[1 << 62] * 5), b"K\0", "is a view"),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", TENSOR_ERRORS)
def test_open_file_refuses_impossible_tensors_by_name(tmp_path, container, kind):
    shape, strides, offset, expected = TENSOR_ERRORS[kind]
    legacy = container == "legacy"
    bad = torch_pickles.tensor(torch_pickles.storage("0", 6, legacy=legacy), shape, strides, offset)
    write = small_legacy if legacy else small_zip
    message = error_of(write(tmp_path / "model.bin", pickled(legacy=legacy, **{"bad.weight": bad})))
    assert "bad.weight" in message
    assert expected in message


@pytest.mark.parametrize("container", CONTAINERS)
def test_open_file_shows_strange_names_in_short(tmp_path, container):
    legacy = container == "legacy"
    write = small_legacy if legacy else small_zip
    for name in ("x" * 5000, "\n\0" * 500, "\ud800", "\U0001d173" * 500):
        error_of(write(tmp_path / "model.bin", pickled(legacy=legacy, **{name: b"N"})))
        storage = torch_pickles.storage(name, 6, legacy=legacy)
        tensor = torch_pickles.tensor(storage, sizes(6), sizes(1))
        error_of(write(tmp_path / "model.bin", pickled(legacy=legacy, bad=tensor)))


@pytest.mark.parametrize("container", CONTAINERS)
def test_open_file_executes_nothing(tmp_path, container):
    marker = tmp_path / "marker"
    call = b"cos\nmkdir\n" + items(text(str(marker))) + b"R"
    legacy = container == "legacy"
    write = small_legacy if legacy else small_zip
    message = error_of(write(tmp_path / "model.bin", pickled(legacy=legacy, bad=call)))
    assert "refers to os.mkdir, which" in message
    assert "may be malicious, do not load it" in message
    assert not marker.exists()
    # And it would have been.
    pickle.loads(PROTO + call + STOP)
    assert marker.exists()


def test_open_file_executes_nothing_in_the_other_pickles(tmp_path):
    marker = tmp_path / "marker"
    call = b"cos\nmkdir\n" + items(text(str(marker))) + b"R"
    path = small_legacy(tmp_path / "model.bin", keys=PROTO + call + STOP)
    assert "refers to os.mkdir" in error_of(path)
    path.write_bytes(PROTO + call + STOP)
    assert "refers to os.mkdir" in error_of(path)
    assert not marker.exists()


# The zip container.


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("entry", ["archive/data.pkl", "archive/data/0", "archive/byteorder"])
def test_open_file_refuses_compressed_entries(tmp_path, method, entry):
    path = tmp_path / "model.bin"
    with zipfile.ZipFile(small_zip(path)) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content, method if name == entry else zipfile.ZIP_STORED)
    message = error_of(path)
    assert f"{entry} must be stored uncompressed" in message


def test_open_file_refuses_a_zip_bomb(tmp_path):
    path = tmp_path / "model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(60 << 20))
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    error_of(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_open_file_refuses_a_large_pickle(tmp_path, monkeypatch):
    monkeypatch.setattr(pytorch, "_MAX_PICKLE_BYTES", 100)
    assert "must have at most 100 bytes" in error_of(small_zip(tmp_path / "model.bin"))
    assert "damaged or incomplete" in error_of(small_legacy(tmp_path / "model.bin"))


def edited(path, find: bytes, at: int, value: bytes, *, which: int = 0):
    """Overwrites bytes `at` behind the start of one of the places where `find` stands."""
    content = bytearray(path.read_bytes())
    start = [match.start() for match in re.finditer(re.escape(find), content)][which]
    content[start + at : start + at + len(value)] = value
    path.write_bytes(content)
    return path


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
U16, U32 = struct.Struct("<H").pack, struct.Struct("<I").pack


@pytest.mark.parametrize(
    ("find", "at", "value", "which", "expected"),
    [
        (CENTRAL, 8, U16(1), 0, "archive/data.pkl must be stored uncompressed"),
        (CENTRAL, 8, U16(1), 3, "archive/data/0 must be stored uncompressed"),
        (CENTRAL, 8, U16(1 << 6), 3, "archive/data/0 must be stored uncompressed"),
        (CENTRAL, 34, U16(1), 3, "archive/data/0 must be stored uncompressed"),
        (CENTRAL, 20, U32(25), 3, "archive/data/0 must be stored uncompressed"),
        (CENTRAL, 20, U32(25) * 2, 3, "must have an entry archive/data/0 of 24 bytes"),
        (CENTRAL, 46, b"A", 3, "must have an entry archive/data/0 of 24 bytes, got none"),
        (CENTRAL, 59, b"1", 3, "duplicate zip entries"),
        (CENTRAL, 6, U16(99), 3, "zip directory"),
        (CENTRAL, 0, b"PK\x01\x03", 3, "zip directory"),
        (CENTRAL, 42, U32(1), 3, "is not at the offset"),
        (CENTRAL, 42, U32(0xFFFFFFF0), 3, "is not at the offset"),
        (CENTRAL, 42, U32(0), 3, "is not at the offset"),
        (CENTRAL, 24, U32(0xFFFFFFF0), 0, "must have at most"),
        (CENTRAL, 16, U32(5), 0, "its checksum differs"),
        (CENTRAL, 16, U32(5), 1, "its checksum differs"),
        (LOCAL, 0, b"PK\x03\x05", 3, "is not at the offset"),
        (LOCAL, 26, U16(13), 3, "is not at the offset"),
        (LOCAL, 28, U16(0xFFFF), 3, "is not at the offset"),
        (LOCAL, 30, b"b", 3, "is not at the offset"),
        (END, 16, U32(0xFFFFFF00), 0, "is not at the offset"),
        (END, 12, U32(0xFFFFFF00), 0, "zip directory"),
    ],
)
def test_open_file_refuses_a_wrong_directory(tmp_path, find, at, value, which, expected):
    path = small_zip(tmp_path / "model.bin")
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist()[3] == "archive/data/0"
    assert expected in error_of(edited(path, find, at, value, which=which))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_open_file_refuses_entries_with_one_name(tmp_path):
    path = small_zip(tmp_path / "model.bin")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(24))
    assert "duplicate zip entries" in error_of(path)


def test_open_file_refuses_zip_files_of_others(tmp_path):
    path = tmp_path / "model.bin"
    for names in (["a.npy"], ["data.pkl"], ["a/b/data.pkl"], ["a/data.pkl", "b/data.pkl"]):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, pickled())
        assert "must contain one data.pkl" in error_of(path)


def test_open_file_refuses_another_byte_order(tmp_path):
    for order in (b"big", b"", b"little\n"):
        assert "little-endian" in error_of(small_zip(tmp_path / "model.bin", byteorder=order))
    changes = [{"little_endian": False}, {"little_endian": 1}, {}, [], None]
    for system in changes:
        assert "little-endian" in error_of(small_legacy(tmp_path / "model.bin", system=system))


@pytest.mark.parametrize("name", ["../../0", "/etc/passwd", "..", ""])
def test_open_file_reads_nothing_outside_the_file(tmp_path, name):
    of = torch_pickles.storage(name, 6)
    bad = torch_pickles.tensor(of, sizes(6), sizes(1))
    message = error_of(small_zip(tmp_path / "model.bin", pickled(bad=bad)))
    assert f"must have an entry archive/data/{name} of 24 bytes, got none" in message


# The legacy container.


def test_open_file_refuses_another_version(tmp_path):
    for changes in ({"magic": 5}, {"magic": [torch_pickles.MAGIC]}, {"protocol": 1002}):
        assert "another pickle" in error_of(small_legacy(tmp_path / "model.bin", **changes))


HASHED_FOREVER = b")" + b"q\0h\0\x86" * 200


@pytest.mark.parametrize(
    "keys",
    [
        [],
        ["0"],
        ["0", "1", "1"],
        ["0", "1", "2"],
        ["0", 1],
        ("0", "1"),
        {"0": 1, "1": 2},
        PROTO + b"N.",
        PROTO + b"](" + text("0") + HASHED_FOREVER + b"e.",
        PROTO + HASHED_FOREVER + b".",
    ],
)
def test_open_file_refuses_another_list_of_storages(tmp_path, keys):
    message = error_of(small_legacy(tmp_path / "model.bin", keys=keys))
    assert "must list its storages" in message or "keys of its dicts" in message


def test_open_file_refuses_storages_of_other_sizes(tmp_path):
    path = tmp_path / "model.bin"
    for count in (1, 3, -2, 1 << 62):
        storages = LEGACY | {"1": (count, COUNTS.tobytes())}
        assert "contain each in full" in error_of(small_legacy(path, storages=storages))
    storages = LEGACY | {"0": (6, VALUES.tobytes()[:-1])}
    assert "contain each in full" in error_of(small_legacy(path, storages=storages))
    floats = torch_pickles.storage("0", (1 << 63) - 1, legacy=True)
    state = torch_pickles.state_dict({"a": torch_pickles.tensor(floats, sizes(6), sizes(1))})
    assert "contain each in full" in error_of(
        small_legacy(path, state, {"0": ((1 << 63) - 1, b"")})
    )


def test_open_file_refuses_a_part_of_a_storage(tmp_path):
    part = items(text("base"), b"K\0", b"K\6")
    of = torch_pickles.storage("0", 6, legacy=True).replace(b"NtQ", part + b"tQ")
    state = torch_pickles.state_dict({"a": torch_pickles.tensor(of, sizes(6), sizes(1))})
    assert "damaged" in error_of(small_legacy(tmp_path / "model.bin", state))


# Fuzzing.


def small(path, container):
    return small_zip(path) if container == "zip" else small_legacy(path)


def outcome(path) -> str:
    """Whether a file is read or refused, as it should be."""
    try:
        found = open_pytorch(path)
    except ValueError:
        error_of(path)
        return "refused"
    size = path.stat().st_size
    for array in found.values():
        ((offset, num_bytes),) = array.segments
        assert 0 <= offset <= offset + num_bytes <= size
        assert read_array(array).shape == array.shape
    return "read"


@pytest.mark.parametrize("container", CONTAINERS)
def test_open_file_refuses_a_file_cut_anywhere(tmp_path, container):
    path = small(tmp_path / "model.bin", container)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        error_of(path)


@pytest.mark.parametrize("container", CONTAINERS)
def test_open_file_reads_or_refuses_disturbed_files(tmp_path, container):
    path = small(tmp_path / "model.bin", container)
    content = path.read_bytes()
    rng = random.Random(0)
    outcomes = set()
    for _ in range(500):
        changed = bytearray(content)
        for _ in range(rng.choice([1, 1, 2, 4])):
            at = rng.randrange(len(changed))
            kind = rng.randrange(3)
            if kind == 0:
                changed[at] = rng.randrange(256)
            elif kind == 1:
                del changed[at : at + rng.randrange(1, 9)]
            else:
                start = rng.randrange(len(changed))
                changed[at:at] = changed[start : start + rng.randrange(1, 30)]
        path.write_bytes(changed)
        outcomes.add(outcome(path))
    assert outcomes == {"read", "refused"}


def test_open_file_notices_changed_bytes_that_matter_in_a_zip_file(tmp_path):
    path = small_zip(tmp_path / "model.bin")
    content = path.read_bytes()
    data = {content.index(value) + i for value in ZIPPED.values() for i in range(len(value))}
    # A local header's own length of its extra field has nothing to be compared with.
    extra = {m.start() + i for m in re.finditer(LOCAL, content) for i in (28, 29)}
    for at in sorted(set(range(len(content))) - data - extra)[::2]:
        changed = bytearray(content)
        changed[at] ^= 0x04
        path.write_bytes(changed)
        if outcome(path) == "read":
            assert_small(path)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("start", [LOCAL, b"\x80\x02", b""])
def test_open_file_refuses_garbage(tmp_path, start):
    rng = np.random.default_rng(0)
    path = tmp_path / "model.bin"
    for size in range(0, 3000, 50):
        path.write_bytes(start + rng.bytes(size))
        error_of(path)
    end = END + bytes(4) + U16(1) * 2 + U32(46) + U32(0) + U16(0)
    path.write_bytes(LOCAL + CENTRAL + bytes(42) + end)
    error_of(path)
