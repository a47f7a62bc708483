"""Arrays in files against numpy: every part of them, in every layout, and damaged files."""

import itertools
import re

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from t5jax.pretrained.formats import lazy_array
from t5jax.pretrained.formats.lazy_array import (
    FileRegion,
    InMemoryArray,
    LazyArray,
    MergedAxesArray,
    arrays_equal,
    full_index,
    read_array,
    relative_index,
)

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
JUNK = b"\xa5\x5a\xc3"
SEVERAL_CUTS = [(5,), (1, 2, 3), (8, 8, 17), (0, 0, 30)]


@pytest.fixture(params=[1, 16, 1 << 20])
def block_bytes(request, monkeypatch):
    """From less than an element at once to everything."""
    monkeypatch.setattr(lazy_array, "BLOCK_BYTES", request.param)
    return request.param


def some(*shape: int, dtype: npt.DTypeLike = np.float32, seed: int = 0) -> np.ndarray:
    """Any bits, so that there are NaN, infinities and negative zeros too."""
    rng = np.random.default_rng(seed)
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype).reshape(
        shape
    )


def region(path, values, *, cuts=(), transposed=False):
    """Writes an array, cut at some bytes, its pieces in opposite order with junk around them."""
    content = (values.T if transposed else values).tobytes()
    bounds = [0, *cuts, len(content)]
    pieces = [content[a:b] for a, b in itertools.pairwise(bounds)]
    file, segments = JUNK, []
    for piece in reversed(pieces):
        segments.append((len(file), len(piece)))
        file += piece + JUNK
    path.write_bytes(file)
    return FileRegion(
        file=path,
        segments=tuple(reversed(segments)),
        shape=values.shape,
        dtype=values.dtype,
        transposed=transposed,
    )


def indices(shape):
    """Every index, also those of nothing."""
    axes = [[slice(a, b) for a in range(n + 1) for b in range(a, n + 1)] for n in shape]
    return itertools.product(*axes)


def part_of(array, index):
    """What `blocks` yields, put together; every element must come exactly once."""
    shape = [s.stop - s.start for s in index]
    values, count = np.zeros(shape, array.dtype), np.zeros(shape, int)
    for where, block in array.blocks(index):
        assert block.dtype == array.dtype
        assert block.shape == tuple(s.stop - s.start for s in where)
        for inner, outer in zip(where, index, strict=True):
            assert outer.start <= inner.start <= inner.stop <= outer.stop
        inside = relative_index(where, index)
        values[inside] = block
        count[inside] += 1
    assert (count == 1).all()
    return values


def assert_same_bits(found, expected):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()


def assert_every_part(array, expected):
    for index in indices(expected.shape):
        assert_same_bits(part_of(array, index), expected[index])


def assert_parts(array, expected, count):
    """As `assert_every_part`, of some, among which are the whole, nothing and the last."""
    rng = np.random.default_rng(1)
    chosen = [
        tuple(slice(0, n) for n in expected.shape),
        tuple(slice(0, 0) for n in expected.shape),
        tuple(slice(n, n) for n in expected.shape),
        tuple(slice(n - 1, n) for n in expected.shape),
    ]
    for _ in range(count):
        pairs = [sorted(rng.integers(0, n + 1, 2).tolist()) for n in expected.shape]
        chosen.append(tuple(slice(*pair) for pair in pairs))
    for index in chosen:
        assert_same_bits(part_of(array, index), expected[index])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 2, 3)])
def test_region_yields_every_part(tmp_path, block_bytes, shape, transposed):
    values = some(*shape)
    assert_every_part(region(tmp_path / "x", values, transposed=transposed), values)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("cuts", SEVERAL_CUTS)
def test_region_may_be_cut_anywhere(tmp_path, block_bytes, cuts, transposed):
    values = some(4, 5, dtype=np.float16)
    assert_every_part(region(tmp_path / "x", values, cuts=cuts, transposed=transposed), values)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16, np.float64, np.int8, np.bool_])
def test_region_has_any_type(tmp_path, block_bytes, dtype, transposed):
    values = (some(3, 4, dtype=np.uint8) % 2).astype(dtype) if dtype is np.bool_ else some(3, 4)
    values = values.view(dtype) if values.dtype != np.bool_ else values
    array = region(tmp_path / "x", values, transposed=transposed)
    assert_same_bits(read_array(array), values)


@pytest.mark.parametrize("transposed", [False, True])
def test_region_without_axes_is_one_element(tmp_path, block_bytes, transposed):
    values = some()
    array = region(tmp_path / "x", values, cuts=(3,), transposed=transposed)
    ((where, found),) = array.blocks(())
    assert where == ()
    assert_same_bits(np.array(found), values)
    assert_same_bits(read_array(array), values)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3), (0, 0)])
def test_region_without_elements_yields_nothing_and_needs_no_file(tmp_path, shape, transposed):
    array = FileRegion(
        file=tmp_path / "missing",
        segments=(),
        shape=shape,
        dtype=np.dtype(np.float32),
        transposed=transposed,
    )
    assert_every_part(array, np.zeros(shape, np.float32))
    assert read_array(array).shape == shape
    assert arrays_equal(
        array, FileRegion(file=tmp_path, segments=((3, 0),), shape=shape, dtype=array.dtype)
    )


def test_region_reads_at_most_a_block_or_a_row_at_once(tmp_path, block_bytes):
    values = some(50, 2, 2)
    pieces = [
        block.nbytes for _, block in region(tmp_path / "x", values).blocks(full_index((50, 2, 2)))
    ]
    assert sum(pieces) == values.nbytes
    assert max(pieces) <= max(block_bytes, 16)
    # Nor is it in smaller pieces than that.
    assert len(pieces) == -(-50 // max(1, block_bytes // 16))


def test_region_reads_nothing_before_it_must(tmp_path):
    values = some(4, 3)
    array = region(tmp_path / "x", values)
    blocks = array.blocks(full_index((4, 3)))
    (tmp_path / "x").unlink()
    with pytest.raises(ValueError, match="is missing"):
        next(blocks)


@pytest.mark.parametrize("segments", [(), ((0, 47),), ((0, 49),), ((0, 24), (30, 23)), ((5, 0),)])
def test_region_refuses_another_number_of_bytes(tmp_path, segments):
    file = tmp_path / "x"
    found = sum(size for _, size in segments)
    message = re.escape(f"{file}: an array of float32[4, 3] must have 48 bytes, got {found}.")
    with pytest.raises(ValueError, match=f"^{message}$"):
        FileRegion(file=file, segments=segments, shape=(4, 3), dtype=np.dtype(np.float32))


@pytest.mark.parametrize("transposed", [False, True])
def test_region_of_a_missing_file_names_it(tmp_path, transposed):
    array = region(tmp_path / "x", some(4, 3), transposed=transposed)
    (tmp_path / "x").unlink()
    message = f"^{tmp_path / 'x'} is missing .*download it too.$"
    with pytest.raises(ValueError, match=message):
        read_array(array)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("cuts", [(), (20,)])
def test_region_of_a_file_cut_anywhere_names_it(tmp_path, block_bytes, cuts, transposed):
    file = tmp_path / "x"
    values = some(4, 3)
    array = region(file, values, cuts=cuts, transposed=transposed)
    content = file.read_bytes()
    for length in range(len(content) - len(JUNK)):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match=f"^{file} ends within its data at byte {length}; it"):
            read_array(array)
    file.write_bytes(content[: -len(JUNK)])
    assert_same_bits(read_array(array), values)


def test_region_reads_rows_that_are_left_of_a_cut_file(tmp_path):
    values = some(4, 3)
    array = region(tmp_path / "x", values)
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[: len(JUNK) + 25])
    assert_same_bits(part_of(array, (slice(0, 2), slice(0, 3))), values[:2])


@pytest.mark.parametrize("shape", [(), (4,), (4, 3), (3, 2, 3)])
def test_in_memory_is_what_was_read(tmp_path, shape):
    values = some(*shape)
    array = InMemoryArray(tmp_path / "x", values.T)
    assert (array.file, array.shape, array.dtype) == (tmp_path / "x", shape[::-1], values.dtype)
    assert_every_part(array, values.T)
    assert_same_bits(read_array(array), values.T)


# Query, key and value [D, H, K] and out [H, K, D]; with scanned layers L is the second axis.
JOINED = {
    "query": ((4, 3, 5), 1, 2),
    "out": ((3, 5, 4), 0, 1),
    "scanned query": ((3, 2, 3, 4), 2, 3),
    "scanned out": ((3, 2, 4, 3), 0, 2),
    "one head": ((4, 1, 5), 1, 2),
    "narrow heads": ((3, 5, 1, 2), 1, 2),
}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("shape", "outer", "inner"), JOINED.values(), ids=JOINED.keys())
def test_joined_is_moveaxis_and_reshape(tmp_path, block_bytes, shape, outer, inner, transposed):
    values = some(*shape)
    array = MergedAxesArray(region(tmp_path / "x", values, transposed=transposed), outer, inner)
    moved = np.moveaxis(values, inner, outer + 1)
    expected = moved.reshape(*moved.shape[:outer], -1, *moved.shape[outer + 2 :])
    assert (array.file, array.shape, array.dtype) == (tmp_path / "x", expected.shape, values.dtype)
    assert_same_bits(read_array(array), expected)
    assert_parts(array, expected, 100)


@pytest.mark.parametrize(("shape", "outer", "inner"), JOINED.values(), ids=JOINED.keys())
def test_joined_heads_are_cut_anywhere(tmp_path, block_bytes, shape, outer, inner):
    values = some(*shape, dtype=np.int8)
    array = MergedAxesArray(region(tmp_path / "x", values), outer, inner)
    moved = np.moveaxis(values, inner, outer + 1)
    expected = moved.reshape(*moved.shape[:outer], -1, *moved.shape[outer + 2 :])
    size = expected.shape[outer]
    for start, stop in itertools.combinations_with_replacement(range(size + 1), 2):
        index = list(full_index(expected.shape))
        index[outer] = slice(start, stop)
        assert_same_bits(part_of(array, tuple(index)), expected[tuple(index)])


@pytest.mark.parametrize("shape", [(0, 3, 5), (4, 0, 5), (4, 3, 0)])
def test_joined_without_elements_yields_nothing(tmp_path, shape):
    empty = FileRegion(file=tmp_path / "x", segments=(), shape=shape, dtype=BFLOAT16)
    array = MergedAxesArray(empty, 1, 2)
    expected = (shape[0], shape[1] * shape[2])
    assert array.shape == expected
    assert read_array(array).shape == expected
    assert_every_part(array, np.zeros(expected, BFLOAT16))


def test_joined_reads_only_the_heads_it_must(tmp_path):
    requests = []

    class Recorded(FileRegion):
        def blocks(self, index):
            requests.append(index)
            return super().blocks(index)

    (tmp_path / "x").write_bytes(some(6, 5, 4).tobytes())
    array = Recorded(
        file=tmp_path / "x", segments=((0, 480),), shape=(6, 5, 4), dtype=np.dtype(np.float32)
    )
    list(MergedAxesArray(array, 0, 1).blocks((slice(7, 14), slice(1, 3))))
    assert requests == [(slice(1, 3), slice(0, 5), slice(1, 3))]


def test_every_kind_is_an_array(tmp_path):
    array = region(tmp_path / "x", some(4, 3))
    assert all(
        isinstance(x, LazyArray)
        for x in (array, InMemoryArray(array.file, some(2)), MergedAxesArray(array, 0, 1))
    )
    assert not isinstance(some(4, 3), LazyArray)


def test_whole_is_all_and_relative_is_within():
    values = some(5, 4, 3)
    np.testing.assert_array_equal(
        values[full_index(values.shape)].view(np.int32), values.view(np.int32)
    )
    assert full_index(()) == relative_index((), ()) == ()
    outer = (slice(1, 5), slice(0, 4), slice(2, 3))
    index = (slice(2, 4), slice(3, 3), slice(2, 3))
    assert relative_index(index, outer) == (slice(1, 3), slice(3, 3), slice(0, 1))
    assert_same_bits(values[outer][relative_index(index, outer)], values[index])


def test_relative_refuses_another_number_of_axes():
    with pytest.raises(ValueError, match="argument"):
        relative_index((slice(0, 1),), (slice(0, 1), slice(0, 1)))


def test_read_returns_memory_of_its_own(tmp_path):
    array = region(tmp_path / "x", some(4, 3, dtype=np.int32))
    first = read_array(array)
    expected = first.copy()
    first[...] = 0
    assert_same_bits(read_array(array), expected)
    assert first.flags.c_contiguous


def special(dtype):
    """Values that compare unequal to themselves, or equal to others."""
    return np.array([[np.nan, -0.0, 0.0], [np.inf, 1.0, -np.nan]], dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16])
@pytest.mark.parametrize("transposed", [False, True])
def test_equal_compares_bits(tmp_path, block_bytes, dtype, transposed):
    values = special(dtype)
    one = region(tmp_path / "one", values)
    other = region(tmp_path / "other", values, cuts=(3,), transposed=transposed)
    assert arrays_equal(one, other)
    content = bytearray((tmp_path / "other").read_bytes())
    data = [offset + i for offset, size in other.segments for i in range(size)]
    for position in range(len(content)):
        content[position] ^= 1 << position % 8
        (tmp_path / "other").write_bytes(content)
        assert arrays_equal(one, other) == (position not in data)
        content[position] ^= 1 << position % 8


def test_equal_tells_zeros_and_nans_apart(tmp_path):
    zero = region(tmp_path / "zero", np.zeros(3, np.float32))
    negative = region(tmp_path / "negative", -np.zeros(3, np.float32))
    assert not arrays_equal(zero, negative)
    quiet = region(tmp_path / "quiet", np.array([0x7FC00000], np.uint32).view(np.float32))
    other = region(tmp_path / "other", np.array([0x7FC00001], np.uint32).view(np.float32))
    assert not arrays_equal(quiet, other)


def test_equal_compares_layouts(tmp_path, block_bytes):
    """The same values, as they lie in files of several formats."""
    values = some(3, 2, 5)
    flat = values.reshape(3, 10)
    layouts = [
        region(tmp_path / "a", flat),
        region(tmp_path / "b", flat, transposed=True),
        InMemoryArray(tmp_path / "c", np.ascontiguousarray(flat.T).T),
        MergedAxesArray(region(tmp_path / "d", values), 1, 2),
        MergedAxesArray(region(tmp_path / "e", values, transposed=True), 1, 2),
        MergedAxesArray(
            region(tmp_path / "f", np.ascontiguousarray(values.transpose(0, 2, 1))), 2, 1
        ),
    ]
    for one, other in itertools.product(layouts[:5], repeat=2):
        assert arrays_equal(one, other)
    changed = flat.copy()
    changed.view(np.uint8)[2, 39] ^= 1
    last = region(tmp_path / "g", changed)
    for one in layouts[:5]:
        assert not arrays_equal(one, last)
        assert not arrays_equal(last, one)


def test_equal_tells_types_and_shapes_apart(tmp_path):
    zeros = np.zeros((2, 3), np.float16)
    one = region(tmp_path / "one", zeros)
    for other in (
        zeros.view(BFLOAT16),
        zeros.view(np.int16),
        zeros.T,
        zeros.reshape(6),
        zeros[None],
    ):
        assert not arrays_equal(one, region(tmp_path / "other", np.ascontiguousarray(other)))


def test_equal_needs_no_file_for_the_same_place(tmp_path):
    array = region(tmp_path / "x", some(2, 3))
    (tmp_path / "x").unlink()
    assert arrays_equal(array, region(tmp_path / "x", some(2, 3)))


@pytest.mark.parametrize("damaged", ["one", "other"])
def test_equal_names_the_damaged_file(tmp_path, damaged):
    found = [region(tmp_path / name, some(2, 3)) for name in ("one", "other")]
    (tmp_path / damaged).write_bytes((tmp_path / damaged).read_bytes()[:10])
    with pytest.raises(ValueError, match=f"^{tmp_path / damaged} ends within its data at byte 10"):
        arrays_equal(*found)
