"""TensorFlow bundles against what TensorFlow wrote, and against indexes assembled by hand.

`data/mesh_tf/make.py` wrote the genuine ones, with the values they must have beside them; `table`
below writes LevelDB's table format from its description, to be wrong in every way.
"""

import random
import re
import shutil
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from t5jax.pretrained.formats import tf_bundle
from t5jax.pretrained.formats.lazy_array import read_array
from t5jax.pretrained.formats.tf_bundle import _Table, newest_prefix, open_tf_bundle

DATA = Path(__file__).parents[2] / "fixtures"
MESH = DATA / "mesh_tf" / "model.ckpt-1000"
SHARDED = DATA / "mesh_tf_sharded" / "model.ckpt-7"
PARTITIONED = DATA / "mesh_tf_partitioned" / "model.ckpt-0"
MAGIC = bytes.fromhex("57fb808b247547db")
FLOAT32 = 1
HEADER = b"\x08\x01"


def read_all(prefix):
    return {name: read_array(x) for name, x in open_tf_bundle(prefix).items()}


def expected_of(prefix, bfloat16=()):
    with np.load(prefix.with_name("expected.npz")) as file:
        return {
            name: file[name].view(ml_dtypes.bfloat16) if name in bfloat16 else file[name]
            for name in file.files
        }


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name


def error_of(action, prefix) -> str:
    """The message with which something is refused: one sentence that begins with a file's name."""
    with pytest.raises(ValueError, match=re.escape(str(prefix))) as caught:
        action()
    assert type(caught.value) is ValueError
    message = str(caught.value)
    assert message.startswith(str(prefix))
    assert "\n" not in message
    assert len(message.replace(str(prefix.parent), "")) < 400
    return message


# Tables by hand.


def varint(value: int) -> bytes:
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    return bytes([*result, value])


def crc32c(data: bytes) -> int:
    """Bit by bit, by the polynomial of RFC 3720."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
    return crc ^ 0xFFFFFFFF


def with_trailer(block: bytes, kind: int = 0) -> bytes:
    crc = crc32c(block + bytes([kind]))
    masked = ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32
    return block + bytes([kind]) + struct.pack("<I", masked)


def block_of(entries, restart_interval=16) -> bytes:
    result, restarts, previous = b"", [], b""
    for i, (key, value) in enumerate(entries):
        shared = 0
        if i % restart_interval == 0:
            restarts.append(len(result))
        else:
            while key[: shared + 1] == previous[: shared + 1] and shared < len(key):
                shared += 1
        result += varint(shared) + varint(len(key) - shared) + varint(len(value))
        result += key[shared:] + value
        previous = key
    restarts = restarts or [0]
    return result + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def join(blocks) -> bytes:
    """A table of blocks that each are (content as stored, compression)."""
    result, index = b"", []
    for i, (block, kind) in enumerate(blocks):
        index.append((b"%08d" % i, varint(len(result)) + varint(len(block))))
        result += with_trailer(block, kind)
    return finish(result, index)


def finish(content: bytes, index) -> bytes:
    """Adds the block of handles, and the footer."""
    handles = b""
    for block in (block_of([]), block_of(index, 1)):
        handles += varint(len(content)) + varint(len(block))
        content += with_trailer(block)
    return content + handles.ljust(40, b"\0") + MAGIC


def table(entries, per_block=100, restart_interval=16) -> bytes:
    entries = list(entries)
    groups = [entries[i : i + per_block] for i in range(0, len(entries), per_block)]
    return join([(block_of(group, restart_interval), 0) for group in groups])


def entry(dtype=FLOAT32, shape=(2, 3), shard=0, offset=0, size=24, more=b"") -> bytes:
    dims = b"".join(field(2, field(1, n)) for n in shape)
    fields = field(1, dtype) + field(2, dims) + field(3, shard) + field(4, offset) + field(5, size)
    return fields + b"\x35abcd" + more


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


@pytest.fixture
def prefix(tmp_path):
    """Of a bundle with data for six float32, and no index yet."""
    (tmp_path / "m.data-00000-of-00001").write_bytes(np.arange(6, dtype="<f4").tobytes())
    return tmp_path / "m"


def write_index(prefix, content: bytes):
    prefix.with_name(f"{prefix.name}.index").write_bytes(content)
    return lambda: read_all(prefix)


def write_entry(prefix, value: bytes, header=HEADER):
    return write_index(prefix, table([(b"", header), (b"x", value)]))


def copy(source, folder):
    for path in source.parent.glob(f"{source.name}.*"):
        shutil.copy(path, folder)
    return folder / source.name


# What TensorFlow wrote.


def test_open_bundle_finds_mesh_tensorflow_s_variables_bit_for_bit():
    found = read_all(MESH)
    assert_same_bits(found, expected_of(MESH, bfloat16=["encoder/rms_norm/scale_slot_m"]))
    assert len(found) == 43
    assert found["decoder/logits/kernel"].shape == (8, 48)
    assert found["global_step"] == 1000


def test_open_bundle_reads_every_type_from_several_data_files():
    found = read_all(SHARDED)
    assert_same_bits(found, expected_of(SHARDED, bfloat16=["bfloat16"]))
    assert {x.file.name[-14:] for x in open_tf_bundle(SHARDED).values()} == {
        "00000-of-00003",
        "00001-of-00003",
        "00002-of-00003",
    }


def test_open_bundle_leaves_strings_out():
    assert b"strings" in SHARDED.with_name("model.ckpt-7.index").read_bytes()
    assert "strings" not in open_tf_bundle(SHARDED)


def test_open_bundle_refuses_partitioned_variables_by_name():
    message = error_of(lambda: open_tf_bundle(PARTITIONED), PARTITIONED)
    assert "'shared/embedding'" in message
    assert "partitioned" in message


def test_open_bundle_lists_what_a_t5_of_mesh_tensorflow_has(shared_data):
    """Its index is compressed; its data are not there."""
    folder = shared_data / "t5x_testdata" / "mtf_tiny_t5"
    prefix = folder / "model.ckpt-0"
    assert newest_prefix(folder) == prefix
    found = {name: x.shape for name, x in open_tf_bundle(prefix).items()}
    text = (folder / "model-info.txt").read_text()
    lines = re.findall(r"^Variable (\S+) .*Shape\[(.*?)\]", text, re.MULTILINE)
    expected = {name: tuple(map(int, re.findall(r"=(\d+)", shape))) for name, shape in lines}
    assert len(expected) == 52
    # The optimizer has as many values for each as the variable.
    expected |= {f"{name}_slot_v": shape for name, shape in expected.items()}
    assert found == expected | {"global_step": ()}


@pytest.mark.parametrize("gone", range(3))
def test_open_bundle_needs_no_data_file_that_is_not_read(tmp_path, gone):
    prefix = copy(SHARDED, tmp_path)
    missing = tmp_path / f"model.ckpt-7.data-{gone:05d}-of-00003"
    missing.unlink()
    found, expected = open_tf_bundle(prefix), expected_of(SHARDED, bfloat16=["bfloat16"])
    assert {name: x.shape for name, x in found.items()} == {
        name: x.shape for name, x in expected.items()
    }
    lost = [name for name, x in found.items() if x.file == missing]
    assert lost
    for name, tensor in found.items():
        if name in lost and tensor.shape != (0, 4):
            assert "is missing" in error_of(lambda x=tensor: read_array(x), missing)
        else:
            assert read_array(tensor).tobytes() == expected[name].tobytes()


def test_open_bundle_refuses_data_files_that_are_cut(tmp_path):
    prefix = copy(MESH, tmp_path)
    data = tmp_path / "model.ckpt-1000.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1])
    message = error_of(lambda: open_tf_bundle(prefix), prefix)
    assert data.name in message
    assert "12855" in message


def test_genuine_files_are_small_enough_to_ship():
    files = [path for path in DATA.glob("mesh_tf*/*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 60_000


# Tables as LevelDB may write them.


def test_crc32c_of_the_digits_is_the_standard_s():
    assert crc32c(b"123456789") == 0xE3069283


def genuine_entries():
    """Those of the index that TensorFlow wrote, to lay them out anew."""
    content = MESH.with_name("model.ckpt-1000.index").read_bytes()
    return list(_Table(content).entries())


@pytest.mark.parametrize("per_block", [1, 2, 7, 1000])
@pytest.mark.parametrize("restart_interval", [1, 3, 1000])
def test_open_bundle_reads_many_blocks_and_restarts(tmp_path, per_block, restart_interval):
    prefix = copy(MESH, tmp_path)
    write_index(prefix, table(genuine_entries(), per_block, restart_interval))
    expected = expected_of(MESH, bfloat16=["encoder/rms_norm/scale_slot_m"])
    assert_same_bits(read_all(prefix), expected)


def test_open_bundle_reads_compressed_blocks(tmp_path):
    codec = pytest.importorskip("pyarrow").Codec("snappy")
    prefix = copy(MESH, tmp_path)
    entries = genuine_entries()
    blocks = [block_of(entries[:30]), block_of(entries[30:])]
    compressed = [codec.compress(block, asbytes=True) for block in blocks]
    assert len(compressed[0]) < 0.9 * len(blocks[0])
    write_index(prefix, join([(block, 1) for block in compressed]))
    expected = expected_of(MESH, bfloat16=["encoder/rms_norm/scale_slot_m"])
    assert_same_bits(read_all(prefix), expected)


@pytest.mark.parametrize(
    "stream",
    [
        "03 08 6162",  # ends within a literal
        "03 f0",  # ends within a length
        "03 08 616263 09",  # ends within a copy
        "05 00 61 09 00",  # copies from nowhere
        "05 00 61 09 02",  # from before the beginning
        "08 00 61 0f ffffffff",
        "02 08 616263",  # longer than said
        "04 08 616263",  # shorter
        "ffffffff0f 08 616263",
        "ffffffffffffffffffff01 08 616263",
        "",
    ],
)
def test_open_bundle_refuses_compressed_blocks_that_are_damaged(prefix, stream):
    error_of(write_index(prefix, join([(bytes.fromhex(stream), 1)])), prefix)


def test_open_bundle_refuses_other_compressions(prefix):
    block = block_of([(b"", HEADER)])
    assert "compression 0 or 1, got 2" in error_of(write_index(prefix, join([(block, 2)])), prefix)


# Entries.


def test_open_bundle_reads_an_entry_by_hand(prefix):
    assert write_entry(prefix, entry())()["x"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_open_bundle_takes_absent_fields_for_zero(prefix):
    """As protocol buffers leave them out; and skips fields it does not know."""
    value = field(1, 1) + field(5, 4) + field(99, b"later") + b"\x91\x06" + bytes(8)
    assert write_entry(prefix, value)()["x"].tolist() == 0


@pytest.mark.parametrize("dtype", [0, 5, 7, 8, 20, 21, 2**40])
def test_open_bundle_leaves_types_out_that_are_no_plain_numbers(prefix, dtype):
    assert write_entry(prefix, entry(dtype=dtype))() == {}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (entry(size=23), "24 bytes"),
        (entry(size=2**64 - 1), "24 bytes"),
        (entry(offset=1), "ends at byte 25"),
        (entry(offset=2**64 - 24), "ends at byte"),
        (entry(shape=(2**30, 2**30), size=2**62), "ends at byte"),
        (entry(shape=(2**64 - 1, 3)), "axes shorter"),
        (entry(shape=(2**62, 0), size=0), "axes shorter"),
        (entry(shape=(1,) * 33, size=4), "at most 32 axes"),
        (entry(more=field(2, field(3, 1))), "at most 32 axes"),
        (entry(shard=1), "one of 1 data files"),
        (entry(shard=2**64 - 1), "one of 1 data files"),
        (entry(more=field(7, b"")), "partitioned"),
        (entry(more=field(5, b"")), "wrong type"),
        (entry(more=field(1, b"x")), "wrong type"),
        (entry(more=b"\x0b"), "unknown type 3"),
        (entry(more=b"\x28" + b"\xff" * 10 + b"\1"), "64 bits"),
        (entry(more=b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f"), "ends within"),
        (entry(more=b"\x35abc"), "ends within"),
        (entry(more=b"\x12\x01\x12"), "ends within"),
    ],
)
def test_open_bundle_refuses_entries_that_lie(prefix, value, said):
    message = error_of(write_entry(prefix, value), prefix)
    assert said in message
    assert "'x'" in message


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (field(1, 1) + field(2, 1), "big-endian"),
        (field(1, 0), "at least 1 data file"),
        (b"", "at least 1 data file"),
        (field(1, 2**64 - 1), "at least 1 data file"),
        (field(1, 1) + field(3, field(2, 2)), "version 2"),
        (field(1, b"1"), "wrong type"),
        (b"\x08", "ends within"),
    ],
)
def test_open_bundle_refuses_headers_it_cannot_follow(prefix, header, said):
    assert said in error_of(write_entry(prefix, entry(), header=header), prefix)


def test_open_bundle_names_the_data_file_among_as_many_as_the_header_counts(prefix):
    action = write_entry(prefix, entry(shard=2**31 - 2), header=field(1, 2**31 - 1))
    missing = prefix.with_name("m.data-2147483646-of-2147483647")
    assert "is missing" in error_of(action, missing)


def test_open_bundle_refuses_a_folder_in_place_of_data(prefix):
    data = prefix.with_name("m.data-00000-of-00001")
    data.unlink()
    data.mkdir()
    assert data.name in error_of(write_entry(prefix, entry()), prefix)


def test_open_bundle_refuses_a_missing_index(prefix):
    assert "is missing" in error_of(lambda: open_tf_bundle(prefix), prefix)


def test_open_bundle_refuses_tables_that_are_no_checkpoint(prefix):
    for entries in ([], [(b"x", entry())]):
        assert "no header" in error_of(write_index(prefix, table(entries)), prefix)


def test_open_bundle_refuses_names_that_are_no_text(prefix):
    content = table([(b"", HEADER), (b"\xff\n", entry())])
    assert "UTF-8" in error_of(write_index(prefix, content), prefix)


def test_open_bundle_says_long_names_shortly(prefix):
    name = "\n\0\u2028" * 5000
    content = table([(b"", HEADER), (name.encode(), entry(size=1))])
    error_of(write_index(prefix, content), prefix)


@pytest.mark.parametrize("names", [(b"b", b"a"), (b"a", b"a")])
@pytest.mark.parametrize("per_block", [1, 3])
def test_open_bundle_refuses_names_out_of_order(prefix, names, per_block):
    content = table([(b"", HEADER), *((name, entry()) for name in names)], per_block)
    assert "sorted" in error_of(write_index(prefix, content), prefix)


# Tables that would take all memory, or forever.


def test_open_bundle_refuses_one_block_listed_many_times(prefix):
    block = block_of([(b"", HEADER), (b"x", entry())])
    handle = varint(0) + varint(len(block))
    content = finish(with_trailer(block), [(b"%d" % i, handle) for i in range(500)])
    assert "overlap" in error_of(write_index(prefix, content), prefix)


def test_open_bundle_refuses_names_that_unfold_to_more_than_they_may(prefix, monkeypatch):
    monkeypatch.setattr(tf_bundle, "_MAX_BYTES", 1 << 16)
    entries = [(b"", HEADER)] + [(b"n" * 1000 + b"%08d" % i, entry()) for i in range(100)]
    content = table(entries, restart_interval=1000)
    assert len(content) < 1 << 16
    assert "names" in error_of(write_index(prefix, content), prefix)


def test_open_bundle_refuses_blocks_that_unfold_to_more_than_they_may(prefix):
    length = (8 << 20) + 1
    block = varint(length) + b"\0\0" + b"\xfe\1\0" * (length // 64)
    assert len(block) < 1 << 20
    # Without a checksum of a megabyte bit by bit.
    assert "8 MiB" in error_of(write_index(prefix, join([(block[:1000], 1)])), prefix)


def test_open_bundle_refuses_a_large_file_unread(prefix):
    index = prefix.with_name("m.index")
    with index.open("wb") as file:
        file.truncate(1 << 40)
    assert "smaller than 8 MiB" in error_of(lambda: open_tf_bundle(prefix), prefix)


# Damage anywhere.


def test_open_bundle_refuses_an_index_cut_anywhere(tmp_path):
    prefix = copy(MESH, tmp_path)
    content = prefix.with_name("model.ckpt-1000.index").read_bytes()
    for end in range(len(content)):
        error_of(write_index(prefix, content[:end]), prefix)


def test_open_bundle_notices_every_flipped_byte(tmp_path):
    """Of blocks by their checksum; other bytes of the footer are padding or lead nowhere."""
    prefix = copy(SHARDED, tmp_path)
    index = prefix.with_name("model.ckpt-7.index")
    content, expected = index.read_bytes(), read_all(prefix)
    rng = random.Random(0)
    unnoticed = []
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= rng.randrange(1, 256)
        action = write_index(prefix, bytes(flipped))
        try:
            assert_same_bits(action(), expected)
            unnoticed.append(position)
        except ValueError:
            error_of(action, prefix)
    # LevelDB's block of metadata, which TensorFlow leaves empty, is the only one nobody reads.
    empty = content.index(b"\0\0\0\0\1\0\0\0\0\xc0\xf2\xa1\xb0")
    footer = range(len(content) - 48, len(content) - 8)
    assert set(unnoticed) <= {*range(empty, empty + 13), *footer}


def test_open_bundle_refuses_or_reads_damage_that_checksums_do_not_see(prefix):
    """Nothing but ValueError, and never more than the data file has."""
    entries = [(b"", HEADER), (b"x", entry()), (b"x/y", entry(shape=(3,), offset=8, size=12))]
    block = block_of(entries)
    rng = random.Random(1)
    values = [0, 1, 127, 128, 255]
    for _ in range(1500):
        damaged = bytearray(block)
        for _ in range(rng.choice([1, 1, 2, 5])):
            damaged[rng.randrange(len(damaged))] = rng.choice([*values, rng.randrange(256)])
        if rng.random() < 0.2:
            del damaged[rng.randrange(len(damaged)) :]
        action = write_index(prefix, join([(bytes(damaged), 0)]))
        try:
            found = open_tf_bundle(prefix)
        except ValueError:
            error_of(action, prefix)
            continue
        for tensor in found.values():
            if not tensor.file.exists():
                error_of(lambda x=tensor: read_array(x), tensor.file)
            else:
                assert read_array(tensor).nbytes <= 24


def test_open_bundle_refuses_garbage(prefix):
    rng = random.Random(2)
    for length in [0, 1, 7, 8, 39, 40, 47, 48, 49, 100, 1000] * 10:
        garbage = rng.randbytes(length)
        error_of(write_index(prefix, garbage), prefix)
        error_of(write_index(prefix, garbage + MAGIC), prefix)
        footer = varint(0) * 2 + varint(rng.randrange(200)) + varint(rng.randrange(200))
        error_of(write_index(prefix, garbage + footer.ljust(40, b"\0") + MAGIC), prefix)


# Which checkpoint of a folder.


@pytest.fixture
def folder(tmp_path):
    for name in ("model.ckpt-900", "model.ckpt-1000", "model.ckpt-200", "other"):
        (tmp_path / f"{name}.index").touch()
    return tmp_path


def test_newest_prefix_is_what_tensorflow_says_of_its_own():
    assert newest_prefix(MESH.parent) == MESH


@pytest.mark.parametrize(
    ("state", "name"),
    [
        ('model_checkpoint_path: "model.ckpt-900"\n', "model.ckpt-900"),
        ('model_checkpoint_path: "other"', "other"),
        ('\n  model_checkpoint_path:"model.ckpt-200"\r\n', "model.ckpt-200"),
        ('all_model_checkpoint_paths: "x"\nmodel_checkpoint_path: "other"', "other"),
        ('model_checkpoint_path: "/home/me/run/model.ckpt-900"', "model.ckpt-900"),
        ('model_checkpoint_path: "gs://bucket/run/model.ckpt-900"', "model.ckpt-900"),
        # All others are not followed: the highest step.
        ('all_model_checkpoint_paths: "model.ckpt-900"', "model.ckpt-1000"),
        ('model_checkpoint_path: "model.ckpt-901"', "model.ckpt-1000"),
        ('model_checkpoint_path: "../model.ckpt-900"', "model.ckpt-1000"),
        ('model_checkpoint_path: "below/model.ckpt-900"', "model.ckpt-1000"),
        ('model_checkpoint_path: "/home/me/.."', "model.ckpt-1000"),
        ('model_checkpoint_path: "/"', "model.ckpt-1000"),
        ('model_checkpoint_path: ""', "model.ckpt-1000"),
        ('model_checkpoint_path: "model.ckpt-900', "model.ckpt-1000"),
        ("model_checkpoint_path: \0\udcff", "model.ckpt-1000"),
        ("", "model.ckpt-1000"),
        (None, "model.ckpt-1000"),
    ],
)
def test_newest_prefix_follows_plain_names_only(folder, state, name):
    if state is not None:
        (folder / "checkpoint").write_bytes(state.encode("utf-8", "surrogateescape"))
    assert newest_prefix(folder) == folder / name


def test_newest_prefix_ignores_what_is_no_index(tmp_path):
    (tmp_path / "model.safetensors.index.json").touch()
    (tmp_path / "._model.ckpt-5.index").touch()
    (tmp_path / "model.ckpt-5.index").mkdir()
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-5"')
    assert newest_prefix(tmp_path) is None
    assert newest_prefix(tmp_path / "none") is None


def test_newest_prefix_without_steps_is_the_last_name(tmp_path):
    for name in ("a", "b-c", "b", "b-²"):
        (tmp_path / f"{name}.index").touch()
    assert newest_prefix(tmp_path) == tmp_path / "b-²"
    (tmp_path / "a-0.index").touch()
    assert newest_prefix(tmp_path) == tmp_path / "a-0"
