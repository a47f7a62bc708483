"""Folders of Zarr arrays against what TensorStore and Orbax write, and every way to be damaged."""

import contextlib
import gzip
import json
import random
import re
import zlib

import ml_dtypes
import numpy as np
import pytest
import tensorstore
from helpers import t5x_folders

from t5jax.pretrained.formats import zarr as zarr_module
from t5jax.pretrained.formats.lazy_array import read_array
from t5jax.pretrained.formats.zarr import open_zarr_array, open_zarr_folder

ZSTD = {"id": "zstd", "level": 1}
GZIP = {"id": "gzip", "level": 1}


def draw(shape=(7, 5), dtype=np.float32, seed=0):
    return np.asarray(np.random.default_rng(seed).normal(size=shape)).astype(dtype)


def zarr(value, *, chunks=None, compressor=ZSTD, **more):
    """A specification of version 2."""
    dtype = t5x_folders.TYPES.get(value.dtype.name, value.dtype.name)
    metadata = {"shape": list(value.shape), "chunks": list(chunks or value.shape), "dtype": dtype}
    return {"driver": "zarr", "metadata": {**metadata, "compressor": compressor, **more}}


def zarr3(value, *, chunks=None, codecs=None):
    metadata = {
        "shape": list(value.shape),
        "data_type": value.dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": list(chunks or value.shape)},
        },
    }
    return {"driver": "zarr3", "metadata": {**metadata, **({"codecs": codecs} if codecs else {})}}


def write(folder, value, spec, name="target.a"):
    t5x_folders.put_zarr(folder / name, value, spec)
    return folder / name


def read_all(folder):
    return {name: read_array(array) for name, array in open_zarr_folder(folder).items()}


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name


def error_of(folder, action=read_all) -> str:
    """The message with which something is refused: one sentence that begins with a file's name."""
    with pytest.raises(ValueError, match=re.escape(str(folder))) as caught:
        action(folder)
    assert type(caught.value) is ValueError
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert "\n" not in message
    assert len(message.replace(str(folder), "")) < 400
    return message


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("make", [zarr, zarr3])
@pytest.mark.parametrize("chunks", [None, (3, 2), (7, 1), (1, 5)])
def test_open_folder_finds_what_tensorstore_wrote(tmp_path, dtype, make, chunks):
    value = draw(dtype=dtype)
    value.reshape(-1).view(np.uint8)[:8] = [0, 128, 255, 255, 1, 0, 0, 0]  # -0.0, NaN
    write(tmp_path, value, make(value, chunks=chunks), "target.a.b")
    found = open_zarr_folder(tmp_path)
    assert found["target/a/b"].file == tmp_path / "target.a.b"
    assert_same_bits(read_all(tmp_path), {"target/a/b": value})


@pytest.mark.parametrize(
    "more",
    [
        {"compressor": GZIP},
        {"compressor": {"id": "zlib", "level": 9}},
        {"compressor": None},
        {"order": "F"},
        {"dimension_separator": "/"},
        {"dtype": ">f4"},
        {"fill_value": 7.0},
    ],
    ids=str,
)
def test_open_folder_reads_every_form_of_version_2(tmp_path, more):
    value = draw((7, 5, 3))
    write(tmp_path, value, zarr(value, chunks=(3, 2, 3), **more))
    assert_same_bits(read_all(tmp_path), {"target/a": value})


def test_open_folder_reads_shards_of_version_3(tmp_path):
    value = draw((8, 6))
    inner = [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 1}}, {"name": "crc32c"}]
    sharding = {
        "name": "sharding_indexed",
        "configuration": {"chunk_shape": [2, 3], "codecs": inner},
    }
    write(tmp_path, value, zarr3(value, chunks=(4, 6), codecs=[sharding]))
    assert_same_bits(read_all(tmp_path), {"target/a": value})


@pytest.mark.parametrize("make", [zarr, zarr3])
def test_open_folder_reads_scalars_and_empty_arrays(tmp_path, make):
    scalar, empty = np.float32(3), np.zeros((0, 4), np.float32)
    write(tmp_path, scalar, make(scalar), "scalar")
    write(tmp_path, empty, make(empty, chunks=(1, 4)), "empty")
    assert_same_bits(read_all(tmp_path), {"scalar": np.asarray(scalar), "empty": empty})


@pytest.mark.parametrize("options", [{"use_ocdbt": False}, {}, {"use_zarr3": True}], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_open_folder_finds_what_orbax_wrote(tmp_path, options, dtype):
    """And zeros, which a Zarr need not store, but Orbax does."""
    values = {"a/b": draw(dtype=dtype), "a/zero": np.zeros((3, 4), dtype), "one": draw((9,), dtype)}
    folder = t5x_folders.write_orbax(tmp_path / "x", values, **options)
    found = read_all(folder)
    assert found.pop("step") == 1000
    assert_same_bits(found, {f"target/{name}": value for name, value in values.items()})


def test_open_folder_passes_by_what_is_no_array(tmp_path):
    value = draw()
    write(tmp_path, value, zarr(value))
    (tmp_path / "empty").mkdir()
    (tmp_path / "checkpoint").write_bytes(b"?")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_bytes(b"?")
    assert list(open_zarr_folder(tmp_path)) == ["target/a"]


@pytest.mark.parametrize("make", [zarr, zarr3])
@pytest.mark.parametrize("seed", range(4))
def test_blocks_of_any_part_are_that_part(tmp_path, monkeypatch, make, seed):
    rng = random.Random(seed)
    shape = tuple(rng.randint(1, 9) for _ in range(rng.randint(1, 3)))
    value = draw(shape)
    folder = write(tmp_path, value, make(value, chunks=[rng.randint(1, n) for n in shape]))
    array = open_zarr_folder(tmp_path)["target/a"]
    monkeypatch.setattr(zarr_module, "_READ_BYTES", rng.choice([1, 40, 1 << 20]))
    for _ in range(8):
        bounds = [sorted(rng.sample(range(n + 1), 2)) for n in shape]
        index = tuple(slice(*b) for b in bounds)
        out = np.full(shape, np.nan, np.float32)
        for where, values in array.blocks(index):
            assert np.isnan(out[where]).all(), "twice"
            out[where] = values
        wanted = np.full(shape, np.nan, np.float32)
        wanted[index] = value[index]
        np.testing.assert_array_equal(out, wanted)
    assert folder.is_dir()


# What is missing or damaged.  TensorStore reads a missing chunk as zeros unless it is told not to.


@pytest.mark.parametrize("make", [zarr, zarr3])
@pytest.mark.parametrize("replaced", [False, True], ids=["lacking", "another file instead"])
def test_missing_chunk_is_an_error_not_zeros(tmp_path, make, replaced):
    value = draw()
    folder = write(tmp_path, value, make(value, chunks=(3, 2)))
    chunk = folder / ("1.2" if make is zarr else "c/1/2")
    if replaced:
        chunk.rename(folder / "notes.txt")
        assert "missing" in error_of(tmp_path)
    else:
        chunk.unlink()
        message = error_of(tmp_path, open_zarr_folder)
        assert message == (
            f"{folder} must have all chunks of an array of [7, 5], got 8; it is incomplete. "
            "Copy it again."
        )


@pytest.mark.parametrize("options", [{"use_ocdbt": False}, {}, {"use_zarr3": True}], ids=str)
def test_missing_chunk_of_orbax_is_an_error_not_zeros(tmp_path, options):
    folder = t5x_folders.write_orbax(tmp_path / "x", {"a": draw()}, **options)
    key = b"target.a/c/0/0" if options.get("use_zarr3") else b"target.a/0.0"
    if (folder / "manifest.ocdbt").exists():
        store = tensorstore.KvStore.open(
            {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
        ).result()
        assert key in store.list().result()
        store.delete_range(tensorstore.KvStore.KeyRange(key, key + b"\0")).result()
    else:
        (folder / key.decode()).unlink()
    assert "must have all chunks of an array of [7, 5], got 0" in error_of(folder)


def test_missing_data_of_a_database_are_an_error(tmp_path):
    folder = t5x_folders.write_orbax(tmp_path / "x", {"a": draw((40, 30))})
    for file in folder.glob("**/d/*"):
        file.unlink()
    assert "is damaged" in error_of(folder)


def test_damaged_database_is_an_error_or_right(tmp_path):
    value = draw((40, 30))
    folder = t5x_folders.write_orbax(tmp_path / "x", {"a": value})
    files = [f for f in folder.rglob("*") if f.is_file() and ("/d/" in str(f) or "ocdbt" in f.name)]
    rng = random.Random(0)
    refused = 0
    for file in files:
        original = file.read_bytes()
        for _ in range(6):
            content = bytearray(original)
            flipped = rng.random() < 0.5
            if flipped:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            else:
                del content[rng.randrange(len(content)) :]
            file.write_bytes(content)
            # Orbax stores no checksum of the values.
            refused += refuses(folder, {"target/a": value}, but="step", changed=flipped)
        file.write_bytes(original)
    assert refused > 6


def refuses(folder, expected, *, but=None, changed=False) -> bool:
    """Whether the folder is refused, which else must be right, unless bits may have `changed`."""
    found = None
    with contextlib.suppress(ValueError):
        found = read_all(folder)
    if found is None:
        error_of(folder)
        return True
    found.pop(but, None)
    if not changed:
        assert_same_bits(found, expected)
    return False


@pytest.mark.parametrize("compressor", [GZIP, ZSTD, {"id": "zlib", "level": 1}], ids=str)
def test_chunk_cut_off_anywhere_is_an_error_or_right(tmp_path, compressor):
    """It is right where no more than the checksum is cut off."""
    value = draw()
    chunk = write(tmp_path, value, zarr(value, compressor=compressor)) / "0.0"
    original = chunk.read_bytes()
    for size in range(len(original)):
        chunk.write_bytes(original[:size])
        assert refuses(tmp_path, {"target/a": value}) or size > len(original) - 9


def test_chunk_cut_off_uncompressed_is_an_error(tmp_path):
    value = draw()
    chunk = write(tmp_path, value, zarr(value, compressor=None)) / "0.0"
    for content in (b"", chunk.read_bytes()[:-1], chunk.read_bytes() + b"\0"):
        chunk.write_bytes(content)
        error_of(tmp_path)


def test_flipped_bit_of_a_gzip_chunk_is_an_error(tmp_path):
    """Its checksum is that of the values; the header says nothing of them."""
    value = draw()
    chunk = write(tmp_path, value, zarr(value, compressor=GZIP)) / "0.0"
    original = chunk.read_bytes()
    for position in range(len(original)):
        content = bytearray(original)
        content[position] ^= 1 << position % 8
        chunk.write_bytes(content)
        assert refuses(tmp_path, {"target/a": value}) or position < 10


def test_another_arrays_chunk_is_an_error(tmp_path):
    value = draw()
    chunk = write(tmp_path, value, zarr(value, compressor=GZIP)) / "0.0"
    for size in (0, 1, value.nbytes - 1, value.nbytes + 1, 2 * value.nbytes):
        chunk.write_bytes(gzip.compress(bytes(size)))
        assert f"{tmp_path / 'target.a'} is damaged" in error_of(tmp_path)


def zeros_by_gzip(num_bytes):
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(num_bytes >> 20))


def zeros_by_zstandard(num_bytes):
    """A frame of blocks of 128 KiB, each of one byte that is repeated (RFC 8878)."""
    header = bytes.fromhex("28b52ffd 00 38")
    block = ((128 << 10) << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    return header + block * (num_bytes >> 17)


@pytest.mark.parametrize(
    ("compressor", "zeros"),
    [(GZIP, zeros_by_gzip), (ZSTD, zeros_by_zstandard)],
    ids=["gzip", "zstd"],
)
def test_chunk_of_far_too_many_values_takes_no_memory(tmp_path, compressor, zeros):
    resource = pytest.importorskip("resource")
    value = draw()
    chunk = write(tmp_path, value, zarr(value, compressor=compressor)) / "0.0"
    chunk.write_bytes(zeros(500 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "is damaged" in error_of(tmp_path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # In KiB on Linux; in bytes on a Mac, where this proves nothing.
    assert grown < 100 << 10


def test_blosc_is_refused(tmp_path):
    """It takes memory by what a chunk's header claims."""
    value = draw()
    blosc = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}
    folder = write(tmp_path, value, zarr(value, compressor=blosc))
    assert error_of(tmp_path) == (
        f"{folder} must be uncompressed or use gzip or zstd, as T5X and Orbax do, got 'blosc'; "
        "write it again."
    )
    shard = [{"name": "blosc", "configuration": {"cname": "lz4", "clevel": 5}}]
    sharding = {
        "name": "sharding_indexed",
        "configuration": {"chunk_shape": [7, 5], "codecs": [{"name": "bytes"}, *shard]},
    }
    write(tmp_path / "3", value, zarr3(value, codecs=[sharding]))
    assert "'blosc'" in error_of(tmp_path / "3")


# Metadata.

GOOD = {
    "shape": [7, 5],
    "chunks": [7, 5],
    "dtype": "<f4",
    "compressor": GZIP,
    "fill_value": None,
    "filters": None,
    "order": "C",
    "zarr_format": 2,
}
BAD = {
    "no shape": {"shape": None},
    "text for a shape": {"shape": "75"},
    "other shape": {"shape": [5, 7]},
    "negative": {"shape": [-7, 5]},
    "infinite": {"shape": [float("inf"), 5]},
    "no number": {"shape": [float("nan"), 5]},
    "nested": {"shape": [[7], 5]},
    "huge": {"shape": [1 << 62, 1 << 62], "chunks": [1, 1]},
    "huge chunk": {"shape": [1 << 40, 5], "chunks": [1 << 40, 5]},
    "beyond 64 bits": {"shape": [1 << 90, 5], "chunks": [1 << 90, 5]},
    "too large for its bytes": {"shape": [1 << 20, 1 << 10], "chunks": [1 << 20, 1 << 10]},
    "many axes": {"shape": [1 << 62] * 500, "chunks": [1] * 500},
    "no chunks": {"chunks": []},
    "chunks of nothing": {"chunks": [0, 5]},
    "objects": {"dtype": "|O"},
    "text": {"dtype": "<U5"},
    "records": {"dtype": [["a", "<f4"]]},
    "unknown type": {"dtype": "float5"},
    "times": {"dtype": "<M8[s]"},
    "complex": {"dtype": "<c8"},
    "unknown compressor": {"compressor": {"id": "pickle"}},
    "odd compressor": {"compressor": [[{"id": ["gzip"]}]]},
    "filters": {"filters": [{"id": "delta"}]},
    "version": {"zarr_format": 4},
    "order": {"order": "?"},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD.keys())
def test_metadata_that_fit_no_array_are_an_error(tmp_path, change):
    value = draw()
    folder = write(tmp_path, value, zarr(value, compressor=GZIP))
    (folder / ".zarray").write_text(json.dumps({**GOOD, **change}))
    error_of(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b"{}", b'{"shape": 1}']
)
@pytest.mark.parametrize("name", [".zarray", "zarr.json"])
def test_metadata_that_are_no_json_object_are_an_error(tmp_path, content, name):
    (tmp_path / "target.a").mkdir()
    (tmp_path / "target.a" / name).write_bytes(content)
    assert "target.a" in error_of(tmp_path)


def test_metadata_of_any_damage_are_an_error_or_right(tmp_path):
    value = draw()
    for make in (zarr, zarr3):
        root = tmp_path / make.__name__
        folder = write(root, value, make(value))
        file = folder / (".zarray" if make is zarr else "zarr.json")
        original = file.read_bytes()
        rng = random.Random(1)
        refused = 0
        for _ in range(150):
            content = bytearray(original)
            for _ in range(rng.randint(1, 3)):
                content[rng.randrange(len(content))] = rng.choice(b'0123456789{}[]",:.-efCF<>\xff')
            file.write_bytes(content)
            # An order or type of the same size is as good; the values are others then.
            refused += refuses(root, {"target/a": value}, changed=True)
        assert refused > 100


@pytest.mark.parametrize("name", ["../a", "/etc", "a/b", "..", "", "a\\b", "C:a", "a\n"])
def test_open_array_stays_in_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match="must be in a direct subfolder"):
        open_zarr_array(tmp_path, name, GOOD, stored=False)


def test_open_array_needs_no_metadata_file(tmp_path):
    value = draw()
    folder = write(tmp_path, value, zarr(value, compressor=GZIP))
    (folder / ".zarray").unlink()
    array = open_zarr_array(tmp_path, "target.a", GOOD, stored=False)
    np.testing.assert_array_equal(read_array(array), value)


def test_open_array_takes_bfloat16_from_its_bits(tmp_path):
    value = draw(dtype=ml_dtypes.bfloat16)
    bits = value.view(np.uint16)
    write(tmp_path, bits, zarr(bits, compressor=GZIP))
    metadata = {**GOOD, "dtype": "<u2"}
    for stored in (False, True):
        array = open_zarr_array(tmp_path, "target.a", metadata, stored=stored, bits=True)
        assert array.dtype == ml_dtypes.bfloat16
        assert_same_bits({"": read_array(array)}, {"": value})


@pytest.mark.parametrize("change", [{"shape": [5, 5], "chunks": [5, 5]}, {"dtype": "<f2"}], ids=str)
def test_open_array_refuses_another_array_than_was_said(tmp_path, change):
    value = draw()
    write(tmp_path, value, zarr(value, compressor=GZIP))
    array = open_zarr_array(tmp_path, "target.a", {**GOOD, **change}, stored=True)
    with pytest.raises(ValueError, match="differs from the checkpoint"):
        read_array(array)


def test_open_array_refuses_metadata_that_are_not_json(tmp_path):
    value = draw()
    write(tmp_path, value, zarr(value, compressor=GZIP))
    with pytest.raises(ValueError, match="metadata in JSON"):
        open_zarr_array(tmp_path, "target.a", {**GOOD, "order": b"C"}, stored=False)
