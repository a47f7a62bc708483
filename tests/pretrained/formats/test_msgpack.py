"""Flax's msgpack files against Flax itself, and against the python msgpack library."""

import math
import os
import random
import re
import struct
import tracemalloc

import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import serialization, traverse_util
from hypothesis import HealthCheck, given, settings, strategies as st

from t5jax.pretrained.formats import msgpack as msgpack_module
from t5jax.pretrained.formats.lazy_array import FileRegion, read_array
from t5jax.pretrained.formats.msgpack import open_msgpack_tree

DTYPES = ["float32", "float16", "bfloat16", "float64", "bool"]
DTYPES += [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
pack = msgpack.packb
DAMAGED = "the file is damaged or incomplete. Download it again."

BYTES = st.integers(0, 255)
fuzzing = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "flax_model.msgpack"


def values_of(leaf):
    """A leaf as Flax returns it: arrays read, also within lists and specs."""
    if isinstance(leaf, FileRegion):
        return read_array(leaf)
    if isinstance(leaf, list):
        return [values_of(value) for value in leaf]
    return leaf


def read(path, content=None):
    if content is not None:
        path.write_bytes(content)
    return {name: values_of(leaf) for name, leaf in open_msgpack_tree(path).items()}


def expected_of(content):
    """What Flax reads, by '/'-joined keys."""
    tree = serialization.msgpack_restore(content)

    def is_spec(_, node):
        return {"driver", "kvstore"} <= node.keys()

    flat = traverse_util.flatten_dict(tree, is_leaf=is_spec)
    return {
        "/".join(key.decode() if isinstance(key, bytes) else str(key) for key in keys): value
        for keys, value in flat.items()
    }


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert_same_value(found[name], value, name)


def assert_same_value(found, value, name):
    if isinstance(value, np.ndarray | np.generic):
        assert found.dtype == value.dtype, name
        assert found.shape == value.shape, name
        assert found.tobytes() == value.tobytes(), name
    elif isinstance(value, list):
        assert len(found) == len(value), name
        for one, other in zip(found, value, strict=True):
            assert_same_value(one, other, name)
    else:
        assert type(found) is type(value), name
        assert found == value or (math.isnan(found) and math.isnan(value)), name


def error_of(path, content=None) -> str:
    """The message with which a file is refused: one sentence that names it."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        open_msgpack_tree(path)
    return checked(caught, path)


def checked(caught, path) -> str:
    assert type(caught.value) is ValueError
    message = str(caught.value)
    assert message.startswith(f"{path}")
    assert message.isprintable()
    assert len(message.replace(str(path), "")) < 400
    return message


def extension(shape, dtype, data, code=1):
    """An array as Flax packs it."""
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, data)))


def random_array(dtype, shape, seed=0):
    bits = np.random.default_rng(seed).bytes(math.prod(shape) * np.dtype(dtype).itemsize)
    if dtype == "bool":
        bits = bytes(byte & 1 for byte in bits)
    return np.frombuffer(bits, np.dtype(dtype)).reshape(shape)


# Trees that Flax writes.


@pytest.mark.parametrize("dtype", DTYPES)
def test_read_tree_returns_what_flax_wrote_in_every_type(file, dtype):
    shapes = {
        "matrix": (3, 5),
        "row": (7,),
        "scalar": (),
        "empty": (0, 4),
        "flat": (4, 0),
        "d": (2,) * 7,
    }
    tree = {"encoder": {name: random_array(dtype, shape) for name, shape in shapes.items()}}
    tree["step"] = random_array(dtype, (1,))[0]
    content = serialization.to_bytes(tree)
    found = read(file, content)
    assert_same(found, expected_of(content))
    assert all(value.dtype == dtype for value in found.values())


def test_read_tree_returns_jax_arrays(file):
    tree = {"a": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3), "b": jnp.float32(1.5)}
    content = serialization.to_bytes(tree)
    assert_same(read(file, content), expected_of(content))
    assert read(file)["a"].dtype == ml_dtypes.bfloat16


def test_read_tree_returns_plain_values(file):
    tree = {
        "s": "ünï",
        "i": -7,
        "f": 0.1,
        "n": None,
        "t": True,
        "l": [1, [2.5, "x"], {}],
        "b": b"\xff",
    }
    tree["deep"] = {"er": {"nan": math.nan, "big": 2**64 - 1, "small": -(2**63)}, "empty": {}}
    content = serialization.msgpack_serialize(tree)
    found = read(file, content)
    assert_same(found, expected_of(content))
    assert "deep/empty" not in found


def test_read_tree_returns_a_list_of_arrays(file):
    content = serialization.msgpack_serialize({"l": [np.arange(3), np.float32(2)]})
    assert_same(read(file, content), expected_of(content))


def test_read_tree_keeps_specs_whole(file):
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "gfile", "path": "a/"},
        "metadata": {"shape": [3]},
    }
    found = read(file, serialization.msgpack_serialize({"target": {"kernel": spec}, "driver": "x"}))
    assert found == {"target/kernel": spec, "driver": "x"}


@pytest.mark.parametrize("limit", [1, 8, 12, 100])
def test_read_tree_joins_the_chunks_of_large_arrays(file, monkeypatch, limit):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", limit)
    tree = {
        "a": {
            "bits": random_array("bfloat16", (5, 2, 3)),
            "matrix": random_array("float32", (7, 6)),
        },
        "row": np.arange(13),
        "scalar": np.array(3.5),
    }
    content = serialization.msgpack_serialize(tree)
    assert b"__msgpack_chunked_array__" in content
    assert_same(read(file, content), traverse_util.flatten_dict(tree, sep="/"))
    found = open_msgpack_tree(file)["a/matrix"]
    assert len(found.segments) == -(-7 * 6 * 4 // max(limit // 4 * 4, 4))
    # Part of it, within and across chunks.
    for where, block in found.blocks((slice(2, 5), slice(1, 4))):
        assert block.tobytes() == tree["a"]["matrix"][where].tobytes()


@pytest.mark.parametrize("name", ["V2", "void16"])
def test_read_tree_knows_bfloat16_by_numpys_name(file, name):
    values = random_array("bfloat16", (3,))
    found = read(file, pack({"a": extension([3], name, values.tobytes())}))
    assert_same(found, {"a": values})


def test_read_tree_takes_numbers_and_bytes_as_keys(file):
    found = read(file, pack({"layers": {0: 1, -5: 2, 2**40: 3, b"x": 4, "": 5}, b"y": 6}))
    assert found == {
        **{"layers/0": 1, "layers/-5": 2, f"layers/{2**40}": 3, "layers/x": 4, "layers/": 5},
        "y": 6,
    }


names = st.text(max_size=3) | st.sampled_from(["kernel", "scale", "0", "embedding"])
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
leaves = (
    st.builds(random_array, st.sampled_from(DTYPES), shapes)
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.none()
    | st.booleans()
)
trees = st.dictionaries(
    names, st.recursive(leaves, lambda x: st.dictionaries(names, x), max_leaves=9)
)


@given(tree=trees)
@fuzzing
def test_read_tree_returns_what_flax_wrote(file, tree):
    content = serialization.msgpack_serialize(tree)
    flat = traverse_util.flatten_dict(serialization.msgpack_restore(content))
    if len({"/".join(keys) for keys in flat}) < len(flat):
        assert "is duplicated" in error_of(file, content)
    else:
        assert_same(read(file, content), expected_of(content))


# Every format of msgpack.


@pytest.mark.parametrize("power", [0, 4, 5, 7, 8, 15, 16, 31, 32, 63, 64])
def test_read_tree_reads_numbers_of_every_width(file, power):
    numbers = [n for n in range(2**power - 2, 2**power + 3) if n < 2**64]
    numbers += [-n for n in numbers if n <= 2**63]
    content = pack({"a": numbers})
    assert read(file, content) == {"a": numbers}


@pytest.mark.parametrize(("code", "sign"), [("BHIQ", 0xCC), ("bhiq", 0xD0)])
def test_read_tree_reads_numbers_wider_than_needed(file, code, sign):
    for i, width in enumerate(code):
        number = struct.pack(f">{width}", 5)
        assert read(file, b"\x81\xa1a" + bytes([sign + i]) + number) == {"a": 5}


def test_read_tree_reads_floats_of_both_widths(file):
    values = [1.5, -0.0, math.inf, -1e30]
    for single in (False, True):
        content = msgpack.packb({"a": values}, use_single_float=single)
        assert repr(read(file, content)["a"]) == repr(msgpack.unpackb(content)["a"])


@pytest.mark.parametrize("length", [0, 1, 31, 32, 255, 256, 65535, 65536, 1 << 20])
def test_read_tree_reads_strings_of_every_width(file, length):
    tree = {"text": "x" * length, "bytes": b"\xfe" * length, "end": 1}
    assert read(file, pack(tree)) == tree
    old = msgpack.packb({"a": "x" * length}, use_bin_type=False)
    assert read(file, old) == {"a": "x" * length}


@pytest.mark.parametrize("length", [0, 1, 15, 16, 1000])
def test_read_tree_reads_lists_and_maps_of_every_width(file, length):
    tree = {"list": [None] * length, "map": {str(i): i for i in range(length)}, "end": 1}
    found = read(file, pack(tree))
    assert found == {"list": tree["list"], **{f"map/{i}": i for i in range(length)}, "end": 1}


def test_read_tree_reads_a_list_of_the_largest_width(file):
    content = pack({"a": [None] * 65536})
    assert content[3] == 0xDD
    assert read(file, content) == {"a": [None] * 65536}


def test_read_tree_reads_lengths_wider_than_needed(file):
    two = struct.pack(">I", 2)
    content = b"\xdf" + two + b"\xdb" + two + b"ab\xdd" + two + b"\1\2\xa1c\xc6" + two + b"xy"
    assert msgpack.unpackb(content) == {"ab": [1, 2], "c": b"xy"}
    assert read(file, content) == {"ab": [1, 2], "c": b"xy"}


@pytest.mark.parametrize("length", [1, 60, 255, 256, 65535, 65536, 1 << 20])
def test_read_tree_reads_arrays_of_every_width(file, length):
    content = serialization.msgpack_serialize({"a": random_array("uint8", (length,)), "end": 1})
    assert_same(read(file, content), expected_of(content))


def test_read_tree_reads_an_array_in_an_extension_of_fixed_length(file):
    content = serialization.msgpack_serialize({"a": np.float32(2.5)})
    assert content[3] == 0xD8
    assert_same(read(file, content), {"a": np.array(2.5, np.float32)})


# Genuine files.


def test_read_tree_reads_t5x_with_arrays_inside(shared_data):
    path = shared_data / "t5x_testdata" / "test_t5_tiny.checkpoint_0"
    expected = expected_of(path.read_bytes())
    assert len(expected) > 100
    assert_same(read(path), expected)


@pytest.mark.parametrize("name", ["tiny_t5/checkpoint_1/checkpoint", "tiny_orbax/1/checkpoint"])
def test_read_tree_reads_t5x_with_arrays_beside_it(shared_data, name):
    path = shared_data / "t5x_testdata" / name
    found = read(path)
    assert_same(found, expected_of(path.read_bytes()))
    bias = found[next(key for key in found if key.endswith("param_states/bias"))]
    if "orbax" in name:
        assert bias == "PLACEHOLDER://_optimizer.state.param_states.bias"
    else:
        assert bias["kvstore"] == {"driver": "gfile", "path": "state.param_states.bias/"}


# Bounds.


def write_sparse(path, num_arrays, data_bytes):
    """A file with holes for data, so that it takes no room on the disk."""
    head = msgpack.packb([data_bytes])[1:]
    payload = b"\x93\x91" + head + b"\xa5uint8\xc6" + struct.pack(">I", data_bytes)
    with path.open("wb") as file:
        file.write(b"\xde" + struct.pack(">H", num_arrays))
        for i in range(num_arrays):
            file.write(
                msgpack.packb(str(i)) + b"\xc9" + struct.pack(">I", len(payload) + data_bytes)
            )
            file.write(b"\x01" + payload)
            file.seek(data_bytes, 1)
        file.truncate(file.tell())


def test_read_tree_does_not_read_the_arrays(file):
    write_sparse(file, 50, (1 << 32) - 100)
    tracemalloc.start()
    try:
        found = open_msgpack_tree(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    assert [leaf.shape for leaf in found.values()] == [((1 << 32) - 100,)] * 50
    offset, size = found["49"].segments[0]
    assert offset + size == file.stat().st_size


def nested(depth, inner=b"\x01"):
    return b"\x81\xa1a" * depth + inner


def test_read_tree_bounds_nesting(file):
    assert read(file, nested(64)) == {"/".join("a" * 64): 1}
    for content in (nested(65), nested(10_000), nested(1, b"\x91" * 10_000 + b"\x01")):
        assert "is nested deeper than 64 levels; the file is damaged" in error_of(file, content)


def test_read_tree_does_not_recurse_into_extensions(file):
    content = b"\x01"
    for _ in range(2000):
        content = msgpack.packb(msgpack.ExtType(1, b"\x93" + content))
    assert "must have a shape" in error_of(file, b"\x81\xa1a" + content)


def test_read_tree_bounds_the_number_of_values(file, monkeypatch):
    monkeypatch.setattr(msgpack_module, "_MAX_VALUES", 100)
    assert read(file, pack({"a": [None] * 98})) == {"a": [None] * 98}
    assert "'a/98' is preceded by more than 100 values" in error_of(file, pack({"a": [None] * 99}))


def test_read_tree_bounds_names_and_texts(file):
    assert read(file, pack({"x" * 510: {"y": 1}})) == {"x" * 510 + "/y": 1}
    message = error_of(file, pack({"x" * 511: {"y": 1}}))
    assert "has a name of more than 512 characters" in message
    for long in ("x" * ((1 << 20) + 1), b"x" * ((1 << 20) + 1)):
        assert "'a' must have at most 1048576 bytes of text, got 1048577" in error_of(
            file, pack({"a": long})
        )


@pytest.mark.parametrize(
    "start",
    [b"\xdb", b"\xc6", b"\xc9", b"\xdd", b"\xdf", b"\xd9", b"\xc4", b"\xc7", b"\xda", b"\xde"],
)
def test_read_tree_refuses_lengths_beyond_the_file(file, start):
    message = error_of(file, b"\x81\xa1a" + start + b"\xff" * 4 + bytes(3))
    assert "'a' needs " in message
    assert DAMAGED in message


# What is refused.


@pytest.mark.parametrize(
    "content",
    [
        b"\x90",
        b"\x01",
        b"\xc0",
        b"\xa1a",
        pack(extension([], "bool", b"\1")),
        b"model_checkpoint_path",
    ],
    ids=["list", "number", "nil", "text", "array", "TensorFlow"],
)
def test_read_tree_refuses_other_than_a_map(file, content):
    assert "its tree must map names to arrays" in error_of(file, content)


def test_read_tree_refuses_a_single_array_in_chunks(file, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 4)
    content = serialization.msgpack_serialize(np.arange(9))
    assert "its tree must map names to arrays" in error_of(file, content)


def test_read_tree_refuses_what_follows_the_tree(file):
    assert "is followed by 2 unexpected bytes" in error_of(file, pack({"a": 1}) + b"\0\0")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x82\xa1a\x01\xa1a\x02", "its tree has the key 'a' twice"),
        (b"\x82\xa11\x01\x01\x02", "its tree has the key '1' twice"),
        (b"\x81\xa1b\x82\xa1a\x01\xc4\x01a\x02", "'b' has the key 'a' twice"),
        (pack({"a": {"b": 1}, "a/b": 2}), "'a/b' is duplicated"),
    ],
)
def test_read_tree_refuses_duplicates(file, content, message):
    assert message in error_of(file, content)


@pytest.mark.parametrize("key", [b"\xc0", b"\xc3", b"\xca" + bytes(4), b"\x90", b"\x80"])
def test_read_tree_refuses_keys_that_are_no_names(file, key):
    assert "its tree has a key that is not a name" in error_of(file, b"\x81" + key + b"\x01")


@pytest.mark.parametrize("text", [b"\xa2\xc3\x28", b"\xa1\xff", b"\xa3\xed\xa0\x80"])
def test_read_tree_refuses_text_that_is_not_utf8(file, text):
    assert "'a' has text that is not UTF-8" in error_of(file, b"\x81\xa1a" + text)
    assert "its tree has text that is not UTF-8" in error_of(file, b"\x81" + text + b"\x01")


def test_read_tree_refuses_the_byte_that_msgpack_does_not_have(file):
    assert "'a' starts with byte 0xc1" in error_of(file, b"\x81\xa1a\xc1")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (msgpack.ExtType(2, pack((1.0, 2.0))), "must be real, got a complex number"),
        (msgpack.ExtType(4, b"abc"), "must be an array, got msgpack extension type 4"),
        (msgpack.ExtType(0, b"a"), "must be an array, got msgpack extension type 0"),
        (msgpack.Timestamp(1), "must be an array, got msgpack extension type -1"),
        (msgpack.ExtType(1, b""), "needs 1 more bytes, but 0 are left"),
        (msgpack.ExtType(1, b"\x92\x90\xa4"), "must have a shape, a type and content"),
        (extension([2], "complex64", bytes(16)), "has elements of type 'complex64'"),
        (extension([2], "object", bytes(16)), "has elements of type 'object'"),
        (extension([2], "", bytes(16)), "has elements of type ''"),
        (extension([2], 7, bytes(16)), "must name the type of its elements"),
        (extension([2], "float32", "x" * 8), "must have its content as bytes"),
        (extension([2], "float32", bytes(7)), "must have the size of float32[2], got 7 bytes"),
        (extension([], "float32", b""), "must have the size of float32[], got 0 bytes"),
        (extension([1], "float32", bytes(4), 3), "must be a scalar, got shape (1,)"),
        (extension([2.0], "float32", bytes(8)), "must have a shape of non-negative integers"),
        (extension([True], "float32", bytes(4)), "must have a shape of non-negative integers"),
        (extension([-1, -1], "float32", bytes(4)), "must have a shape of non-negative integers"),
        (extension([[1]], "float32", bytes(4)), "must have a shape of non-negative integers"),
        (extension([1] * 33, "float32", bytes(4)), "must have a shape of at most 32 axes"),
        (extension(1, "float32", bytes(4)), "must have a shape of at most 32 axes"),
        (extension([2**63] * 32, "float32", bytes(4)), "must have the size of float32["),
        (extension([2**63, 0], "float32", b""), "must have elements, got shape ("),
        (
            msgpack.ExtType(1, pack(([1], "bool", b"\1")) + b"\0"),
            "is followed by 1 unexpected bytes",
        ),
    ],
)
def test_read_tree_refuses_what_is_no_array(file, value, message):
    assert f"'x/y' {message}" in error_of(file, pack({"x": {"y": value}, "z": "z" * 300}))


def chunked(**changes):
    piece = extension([2], "float32", bytes(8))
    tree = {"shape": {"0": 4}, "chunks": {"0": piece, "1": piece}, **changes}
    return {"__msgpack_chunked_array__": True, **tree}


def test_read_tree_takes_chunks_by_number(file):
    pieces = {str(i): extension([1], "int32", struct.pack("<i", i)) for i in range(12)}
    value = chunked(shape={"1": 6, "0": 2}, chunks=dict(sorted(pieces.items(), reverse=True)))
    found = read(file, pack({"a": value}))
    assert_same(found, {"a": np.arange(12, dtype=np.int32).reshape(2, 6)})


PIECE = extension([2], "float32", bytes(8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": None}, "must have numbered sizes and chunks"),
        ({"shape": [4]}, "must have numbered sizes and chunks"),
        ({"shape": {"1": 4}}, "must have numbered sizes and chunks"),
        ({"chunks": {"0": PIECE, "2": PIECE}}, "must have numbered sizes and chunks"),
        ({"chunks": {"0": PIECE, "01": PIECE}}, "must have numbered sizes and chunks"),
        ({"chunks": [PIECE, PIECE]}, "must have numbered sizes and chunks"),
        ({"shape": {"0": -4}}, "must have a shape of non-negative integers"),
        ({"shape": {"0": True}}, "must have a shape of non-negative integers"),
        ({"shape": {"0": "4"}}, "must have a shape of non-negative integers"),
        ({"shape": {str(i): 1 for i in range(33)}}, "must have a shape of non-negative integers"),
        ({"chunks": {}}, "must consist of flat arrays of one type"),
        ({"chunks": {"0": PIECE, "1": 3}}, "must consist of flat arrays of one type"),
        (
            {"chunks": {"0": PIECE, "1": extension([2], "int32", bytes(8))}},
            "must consist of flat arrays of one type",
        ),
        (
            {"chunks": {"0": PIECE, "1": extension([2, 1], "float32", bytes(8))}},
            "must consist of flat arrays of one type",
        ),
        ({"shape": {"0": 5}}, "must have the size of float32[5], got 16 bytes"),
        ({"chunks": {"0": PIECE}}, "must have the size of float32[4], got 8 bytes"),
        (
            {"chunks": {str(i): PIECE for i in range(4097)}, "shape": {"0": 2 * 4097}},
            "must have at most 4096 chunks, got 4097",
        ),
    ],
)
def test_read_tree_refuses_chunks_that_make_no_array(file, changes, message):
    assert f"'x/y' {message}" in error_of(file, pack({"x": {"y": chunked(**changes)}}))


def test_read_tree_shortens_names_in_messages(file):
    error_of(file, pack({"a\n" * 5000: {"b\r\x1b": {"c": msgpack.ExtType(9, b"")}}}))
    error_of(file, pack({"\u2028é" * 5000: msgpack.ExtType(9, b"")}))
    error_of(file, pack({"a": extension([1], "\n" * 5000, b"")}))


def test_read_tree_names_a_file_that_cannot_be_read(tmp_path):
    assert "must be a file; it is missing or not a file" in error_of(tmp_path / "absent")
    assert "must be a file; it is missing or not a file" in error_of(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "must be a file; it is missing or not a file" in error_of(tmp_path / "pipe")
    assert "must be a readable file (File name too long)" in error_of(tmp_path / ("x" * 300))


# Damage.


@pytest.fixture(scope="module")
def sample():
    """All kinds of values in few bytes."""
    limit, serialization.MAX_CHUNK_SIZE = serialization.MAX_CHUNK_SIZE, 24
    try:
        return serialization.msgpack_serialize(
            {
                "target": {"kernel": random_array("float32", (2, 3)), "bias": np.arange(5)},
                "bits": random_array("bfloat16", (3,)),
                "step": np.int32(3),
                "spec": {"driver": "zarr", "kvstore": {"path": "a/"}, "shape": [3, 4]},
                "plain": ["x" * 40, 300, -70_000, 2.5, None, True, b"\xff"],
            }
        )
    finally:
        serialization.MAX_CHUNK_SIZE = limit


def test_read_tree_refuses_files_cut_anywhere(file, sample):
    assert_same(read(file, sample), expected_of(sample))
    for length in range(len(sample)):
        assert DAMAGED in error_of(file, sample[:length])


def assert_refused_or_as_flax_reads_it(file, content):
    file.write_bytes(content)
    try:
        found = read(file)
    except ValueError:
        error_of(file)
    else:
        assert_same(found, expected_of(content))


def test_read_tree_refuses_changed_bytes_or_reads_them_as_flax_does(file, sample):
    rng = random.Random(0)
    for at in range(len(sample)):
        content = bytearray(sample)
        content[at] = rng.choice([sample[at] ^ 1 << rng.randrange(8), rng.randrange(256)])
        assert_refused_or_as_flax_reads_it(file, bytes(content))


@given(content=st.binary(max_size=60) | st.lists(BYTES.map(lambda x: x % 7 | 0x80)).map(bytes))
@fuzzing
def test_read_tree_refuses_garbage_or_reads_it_as_flax_does(file, content):
    assert_refused_or_as_flax_reads_it(file, content)
    assert_refused_or_as_flax_reads_it(file, b"\x82\xa1a" + content)
