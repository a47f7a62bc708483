"""safetensors files against the library of that name, and headers assembled by hand."""

import itertools
import json
import random
import re
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from helpers.trees import assert_same_bits
from safetensors import deserialize, safe_open
from safetensors.numpy import load_file, save_file

from t5jax.pretrained.formats.lazy_array import read_array
from t5jax.pretrained.formats.safetensors import SafetensorsWriter, open_safetensors

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
NAMES = ["float32", "float16", "float64", "bool"]
NAMES += [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
DTYPES = [*map(np.dtype, NAMES), BFLOAT16]
DTYPES += [np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)]
SPELLINGS = {
    **{"bool": "BOOL", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.safetensors"


def some(shape, dtype, seed=0):
    """Any bits, so that there are NaN too."""
    raw = np.random.default_rng(seed).bytes(int(np.prod(shape)) * dtype.itemsize)
    if dtype == np.bool_:
        return (np.frombuffer(raw, np.uint8) % 2).astype(np.bool_).reshape(shape)
    return np.frombuffer(raw, dtype).reshape(shape)


def read(path):
    return {name: read_array(array) for name, array in open_safetensors(path).items()}


def assembled(header, data=b"", *, length=None):
    """A file by the format's description: the header's length, the header, the data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape, start, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def error_of(path, content=None) -> str:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        ValueError, match=f"^{re.escape(str(path))} must be a safetensors"
    ) as caught:
        open_safetensors(path)
    assert type(caught.value) is ValueError
    message = str(caught.value)
    assert message.endswith("). Download it again.")
    assert "\n" not in message
    assert len(message.replace(str(path), "")) < 400
    return message


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_open_file_reads_every_type(file, dtype):
    tensors = {
        "matrix": some((3, 5), dtype),
        "scalar": some((), dtype, 1),
        "empty": some((0, 4), dtype),
        "deep": some((2, 1, 3, 1, 2), dtype, 2),
    }
    save_file(tensors, file)
    assert_same_bits(read(file), tensors)


def test_open_file_reads_files_of_many_types(file):
    tensors = {f"{i}.{dtype.name}": some((i, 3), dtype, i) for i, dtype in enumerate(DTYPES)}
    save_file(tensors, file, metadata={"format": "pt", "note": "Übung \U0001f600 \n"})
    assert_same_bits(read(file), tensors)
    found = open_safetensors(file)
    assert {array.file for array in found.values()} == {file}
    assert all(len(array.segments) == 1 for array in found.values())


@pytest.mark.parametrize("names", ["abc", "acb", "bac", "bca", "cab", "cba"])
def test_open_file_takes_offsets_and_not_the_order_of_the_header(file, names):
    """Arrays lie in the order a, b, c; the header may list them in any."""
    entries = {"a": entry([2], 0, 8), "b": entry([1, 3], 8, 20), "c": entry([], 20, 24)}
    values = np.arange(6, dtype=np.float32)
    header = {name: entries[name] for name in names}
    file.write_bytes(assembled(header, values.tobytes()))
    found = read(file)
    assert list(open_safetensors(file)) == list(names)
    assert_same_bits(found, {"a": values[:2], "b": values[None, 2:5], "c": values[5].reshape(())})
    assert_same_bits(found, load_file(file))


@pytest.mark.parametrize(
    "name", ["", " ", "a\nb", 'a"b\\', "Ü\U0001f600", "metadata", "a" * 10_000]
)
def test_open_file_takes_any_name(file, name):
    tensors = {name: some((2,), BFLOAT16)}
    save_file(tensors, file)
    assert_same_bits(read(file), tensors)


def test_open_file_of_no_arrays(file):
    file.write_bytes(assembled({}))
    assert open_safetensors(file) == {}
    file.write_bytes(assembled({"__metadata__": {"format": "pt"}}))
    assert open_safetensors(file) == {}


def test_open_file_takes_spaces_after_the_header(file):
    header = json.dumps({"x": entry([1], 0, 4)}).encode() + b" " * 1001
    file.write_bytes(assembled(header, b"abcd"))
    assert read(file)["x"].tobytes() == b"abcd"


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [("C64", [2], 16), ("F8_E8M0", [3], 3), ("F4", [4], 2), ("F6_E2M3", [4], 3)],
)
def test_open_file_gives_types_that_numpy_lacks_as_bytes(file, dtype, shape, size):
    data = bytes(range(4 + size))
    header = {"y": entry([1], 0, 4), "x": entry(shape, 4, 4 + size, dtype)}
    file.write_bytes(assembled(header, data))
    found = read(file)
    assert_same_bits({"x": found["x"]}, {"x": np.frombuffer(data[4:], np.uint8)})
    assert found["y"].tobytes() == data[:4]


def test_open_file_reads_no_values(file):
    """A file of a gigabyte, none of it on the disk or in memory."""
    size = 1 << 30
    with file.open("wb") as out:
        out.write(assembled({"x": entry([size // 4], 0, size)}))
        out.truncate(out.tell() + size)
    tracemalloc.start()
    array = open_safetensors(file)["x"]
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()
    ((_, values),) = array.blocks((slice(size // 4 - 7, size // 4),))
    assert values.tobytes() == bytes(28)


def test_open_file_names_a_missing_file(file):
    assert "(" in error_of(file)
    file.mkdir()
    error_of(file)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        assembled(b""),
        assembled(b" "),
        assembled(b"{"),
        assembled(b"[]"),
        assembled(b"null"),
        assembled(b"3"),
        assembled(b'"x"'),
        assembled(b'{"x": 1}'),
        assembled(b'{"x": []}'),
        assembled(b'{"x": {}}'),
        assembled(b"{}, {}"),
        assembled(b"\xef\xbb\xbf{}"),
        assembled('{"x": {}}'.encode("utf-16")),
        assembled(b'{"\xff": {}}'),
        assembled(b'{"\\ud800": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}', bytes(4)),
        assembled(b'{"x": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', bytes(4)),
        assembled({"__metadata__": {"n": 1}}),
        assembled({"__metadata__": [1]}),
        assembled(b"[" * 100_000),
        assembled(b'{"__metadata__":' * 50_000 + b"}" * 50_000),
        assembled(b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        assembled(b'{"x": {"shape": [' + b"9" * 5000 + b"]}}"),
        b"PK\x03\x04" + bytes(100),
        b"\x80\x02" + bytes(100),
        bytes(1000),
        b"\xff" * 1000,
    ],
)
def test_open_file_refuses_what_is_no_header(file, content):
    error_of(file, content)


@pytest.mark.parametrize("length", [3, 1 << 20, 100_000_001, 1 << 31, 1 << 62, (1 << 64) - 1])
def test_open_file_refuses_lengths_that_the_file_does_not_have(file, length):
    content = assembled({"x": entry([1], 0, 4)}, b"abcd", length=length)
    tracemalloc.start()
    error_of(file, content)
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F33"},
        {"dtype": "f32"},
        {"dtype": None},
        {"dtype": "F16"},
        {"dtype": "F64"},
        {"dtype": ["F32"]},
        {"shape": [3]},
        {"shape": [1]},
        {"shape": [-2]},
        {"shape": [2.0]},
        {"shape": ["2"]},
        {"shape": [True, 2]},
        {"shape": 2},
        {"shape": None},
        {"shape": []},
        {"shape": [1 << 63, 2]},
        {"shape": [1 << 62, 4, 2]},
        {"shape": [1 << 64]},
        {"shape": [[2]]},
        {"data_offsets": [0, 4]},
        {"data_offsets": [4, 12]},
        {"data_offsets": [8, 0]},
        {"data_offsets": [-8, 0]},
        {"data_offsets": [0, 9]},
        {"data_offsets": [0, 8, 16]},
        {"data_offsets": [0]},
        {"data_offsets": 8},
        {"data_offsets": [0, 8.0]},
        {"data_offsets": [(1 << 64) - 8, (1 << 64) - 1]},
        {"data_offsets": [1 << 64, (1 << 64) + 8]},
    ],
)
def test_open_file_refuses_entries_that_lie(file, change):
    right = entry([2], 0, 8)
    file.write_bytes(assembled({"x": right}, bytes(8)))
    open_safetensors(file)
    error_of(file, assembled({"x": {**right, **change}}, bytes(8)))


@pytest.mark.parametrize(
    "entries",
    [
        {"x": entry([2], 0, 8), "y": entry([2], 0, 8)},
        {"x": entry([2], 0, 8), "y": entry([2], 4, 12)},
        {"x": entry([2], 0, 8), "y": entry([1], 12, 16)},
        {"x": entry([2], 4, 12), "y": entry([1], 12, 16)},
        {"x": entry([2], 0, 8)},
        {"x": entry([2], 0, 8), "y": entry([3], 8, 20)},
        {},
    ],
    ids=["same", "overlap", "hole", "hole first", "rest", "beyond", "nothing"],
)
def test_open_file_refuses_bytes_that_belong_to_none_or_two(file, entries):
    error_of(file, assembled(entries, bytes(16)))


def test_open_file_reads_a_name_that_is_there_twice_as_the_library_does(file):
    first, last = json.dumps(entry([2], 0, 8)), json.dumps(entry([4], 0, 8, "F16"))
    for one, other in ((first, last), (last, first), (first, first)):
        text = f'{{"x": {one}, "x": {other}}}'.encode()
        file.write_bytes(assembled(text, bytes(range(8))))
        assert_as_the_library(file)
    for key in ("dtype", "shape", "data_offsets"):
        twice = first.replace("{", f'{{"{key}": {json.dumps(entry([2], 0, 8)[key])}, ', 1)
        error_of(file, assembled(f'{{"x": {twice}}}'.encode(), bytes(8)))


def assert_as_the_library(file):
    """The same arrays, or refused by both; the library has no types of its own for some."""
    try:
        expected = load_file(file)
    except Exception:
        expected = None
    try:
        found = open_safetensors(file)
    except ValueError:
        error_of(file)
        assert expected is None
        return
    # Empty arrays may have any size along the other axes, more than numpy's.
    found = {name: array for name, array in found.items() if 0 not in array.shape}
    values = {name: read_array(array) for name, array in found.items()}
    if expected is not None:
        full = {name: value for name, value in expected.items() if value.size}
        assert_same_bits(values, full)


@pytest.fixture
def content(file):
    tensors = {
        "encoder.w": some((2, 3), np.dtype(np.float32)),
        "b": some((5,), BFLOAT16),
        "n": some((), np.dtype(np.int8)),
    }
    save_file(tensors, file, metadata={"format": "pt"})
    return file.read_bytes()


def test_open_file_refuses_files_cut_or_extended_anywhere(file, content):
    for length in range(len(content)):
        error_of(file, content[:length])
    error_of(file, content + b"\0")


def test_open_file_of_flipped_headers_is_as_the_library(file, content):
    length = 8 + int.from_bytes(content[:8], "little")
    rng = random.Random(0)
    for position in range(length):
        for value in (content[position] ^ 1 << rng.randrange(8), rng.randrange(256)):
            changed = bytearray(content)
            changed[position] = value
            file.write_bytes(changed)
            assert_as_the_library(file)


def test_open_file_of_shuffled_headers_is_as_the_library(file, content):
    start = 8 + int.from_bytes(content[:8], "little")
    header, data = content[8:start], content[start:]
    rng = random.Random(1)
    pieces = [
        b"0",
        b"99",
        b"-1",
        b"1e3",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b'"',
        b"F16",
        b"null",
        b"\0",
    ]
    for _ in range(400):
        changed = bytearray(header)
        for _ in range(rng.randint(1, 3)):
            a, b = sorted(rng.randrange(len(changed) + 1) for _ in range(2))
            b = min(b, a + rng.randrange(8))
            changed[a:b] = rng.choice(pieces)
        file.write_bytes(assembled(bytes(changed), data))
        assert_as_the_library(file)


def test_open_file_of_garbage_is_an_error(file):
    rng = random.Random(2)
    for _ in range(200):
        garbage = rng.randbytes(rng.randrange(200))
        error_of(file, struct.pack("<Q", rng.randrange(200)) + b"{" + garbage)
        error_of(file, garbage)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_writer_writes_every_type_in_any_order(file, dtype):
    tensors = {
        "matrix": some((3, 5), dtype),
        "scalar": some((), dtype, 1),
        "empty": some((0, 4), dtype),
        "vector": some((7,), dtype, 2),
    }
    contents = set()
    for order in itertools.permutations(tensors):
        write(file, tensors, order)
        contents.add(file.read_bytes())
    (content,) = contents
    # Not `load_file`, which lacks some types.
    stored = dict(deserialize(content))
    assert stored.keys() == tensors.keys()
    for name, value in tensors.items():
        assert stored[name]["dtype"] == SPELLINGS[dtype.name]
        assert stored[name]["shape"] == list(value.shape)
        assert bytes(stored[name]["data"]) == value.tobytes()
    assert_same_bits(read(file), tensors)


def write(file, tensors, order):
    writer = SafetensorsWriter(
        file, {name: (value.shape, value.dtype) for name, value in tensors.items()}
    )
    for name in order:
        writer.write(name, tensors[name])
    writer.close()


def test_writer_files_say_that_they_are_of_torch(file):
    tensors = {"Ü\n": some((3,), BFLOAT16), "x": some((1, 2), np.dtype(np.float32))}
    write(file, tensors, tensors)
    with safe_open(file, framework="numpy") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert set(opened.keys()) == set(tensors)
        assert opened.get_slice("x").get_shape() == [1, 2]
    # Data start where every type may be mapped into memory.
    assert int.from_bytes(file.read_bytes()[:8], "little") % 8 == 0


def test_writer_takes_values_in_any_memory_order(file):
    values = some((3, 4), np.dtype(np.float32))
    tensors = {
        "transposed": values.T,
        "fortran": np.asfortranarray(values),
        "every other": values[::2, 1::2],
        "backwards": values[::-1],
        "broadcast": np.broadcast_to(values[:1], (5, 4)),
    }
    write(file, tensors, tensors)
    assert_same_bits(load_file(file), tensors)


def test_writer_of_no_arrays(file):
    write(file, {}, [])
    assert load_file(file) == {}
    assert open_safetensors(file) == {}


def test_writer_makes_the_whole_file_at_once(file):
    writer = SafetensorsWriter(
        file, {"x": ((1 << 28,), BFLOAT16), "y": ((2,), np.dtype(np.float32))}
    )
    writer.write("y", np.array([1, 2], np.float32))
    writer.close()
    assert file.stat().st_size > 1 << 29
    found = open_safetensors(file)
    assert read_array(found["y"]).tolist() == [1, 2]
    ((_, values),) = found["x"].blocks((slice(0, 9),))
    assert values.tobytes() == bytes(18)
