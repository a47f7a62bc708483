"""Snappy's decoder against pyarrow's encoder, and against blocks from the format's description."""

import random

import pytest

from t5jax.pretrained.formats.snappy import decompress_snappy, snappy_length


@pytest.mark.parametrize("period", [1, 2, 3, 60, 61, 255, 256, 257, 3000, 70000, 100000])
def test_decompress_inverts_the_library(period):
    """Periods for each kind of copy, and literals of each length of length."""
    codec = pytest.importorskip("pyarrow").Codec("snappy")
    unit = random.Random(period).randbytes(period)
    data = (unit * (140_000 // period + 1))[:140_000]
    block = codec.compress(data, asbytes=True)
    assert snappy_length(block) == len(data)
    assert decompress_snappy(block) == data


@pytest.mark.parametrize(
    ("elements", "content"),
    [  # each kind of element, by the format's description
        ("", b""),
        ("08 616263", b"abc"),
        ("f002 616263", b"abc"),
        ("f40200 616263", b"abc"),
        ("f8020000 616263", b"abc"),
        ("fc02000000 616263", b"abc"),
        ("08 616263 01 02", b"abcbcbc"),
        ("08 616263 0e 0200", b"abcbcbc"),
        ("08 616263 0f 02000000", b"abcbcbc"),
        ("08 616263 00 64 0a 0300", b"abcdbcd"),
    ],
)
def test_decompress_knows_every_element(elements, content):
    assert decompress_snappy(bytes([len(content)]) + bytes.fromhex(elements)) == content


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("03 08 6162", "ends within"),  # a literal
        ("03 f0", "ends within"),  # the length of a literal
        ("03 08 616263 09", "ends within"),  # a copy
        ("80", "ends within"),  # its own length
        ("", "ends within"),
        ("05 00 61 09 00", "must copy"),  # from nowhere
        ("05 00 61 09 02", "must copy"),  # from before the beginning
        ("08 00 61 0f ffffffff", "must copy"),
        ("02 08 616263", "2 bytes, got 3"),
        ("04 08 616263", "4 bytes, got 3"),
        ("ffffffff0f 08 616263", "4294967295 bytes, got 3"),
        ("ffffffffff01 08 616263", "32 bits"),
    ],
)
def test_decompress_refuses_damaged_blocks(block, reason):
    with pytest.raises(ValueError, match=reason):
        decompress_snappy(bytes.fromhex(block))


def test_decompress_stops_where_a_block_grows_beyond_its_length():
    """A copy of 64 bytes takes three; a million of them would be 64 MB."""
    bomb = bytes.fromhex("01 00 61") + bytes.fromhex("fe 0100") * 1_000_000
    with pytest.raises(ValueError, match="1 bytes, got 65"):
        decompress_snappy(bomb)
