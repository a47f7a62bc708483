"""ByT5's ids against UTF-8 itself."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from t5jax.tokenizers.byte import ByteTokenizer


def test_byte_ids_are_bytes_plus_three():
    tok = ByteTokenizer()
    assert tok.vocab_size == 259
    assert (tok.pad_id, tok.eos_id, tok.unk_id) == (0, 1, 2)
    # "h" is 68, "é" is C3 A9 and the smiling face F0 9F 99 82, in hexadecimal.
    assert tok.encode("hé🙂") == [107, 198, 172, 243, 162, 156, 133]
    assert tok.decode([107, 198, 172, 243, 162, 156, 133]) == "hé🙂"
    assert tok.encode("") == []


@given(st.text().filter(lambda text: "<extra_id_" not in text))
@settings(deadline=None)
def test_byte_round_trip_is_exact(text):
    tok = ByteTokenizer()
    ids = tok.encode(text)
    assert ids == [byte + 3 for byte in text.encode()]
    assert tok.decode(ids) == text


def test_byte_sentinels_descend_from_the_last_id():
    tok = ByteTokenizer()
    assert [tok.sentinel_id(k) for k in (0, 1, 124)] == [258, 257, 134]
    assert tok.encode("a <extra_id_0> é<extra_id_124>") == [100, 35, 258, 35, 198, 172, 134]
    assert tok.encode("<extra_id_12><extra_id_9>") == [246, 249]
    with pytest.raises(ValueError, match=r"\[0, 125\), got 125"):
        tok.sentinel_id(125)


@pytest.mark.parametrize("text", ["<extra_id_125>", "<extra_id_00>", "<extra_id_1234>"])
def test_byte_sentinel_that_does_not_exist_is_plain_text(text):
    assert ByteTokenizer().encode(text) == [byte + 3 for byte in text.encode()]


def test_byte_sentinels_are_spelled_out_exactly_where_utf8_has_no_such_byte():
    tok = ByteTokenizer()
    # UTF-8 as RFC 3629 defines it ends at U+10FFFF, whose first byte is the highest of all.
    highest = chr(0x10FFFF).encode()[0]
    for k in range(tok.num_sentinels):
        text = tok.decode([100, tok.sentinel_id(k), 101])
        assert text == (f"a<extra_id_{k}>b" if 255 - k > highest else "ab")


def test_byte_decode_drops_what_is_no_text():
    tok = ByteTokenizer()
    assert tok.decode([0, 107, 2, 198, 107, 300, -100, 0, 1, 107]) == "hh"
    assert tok.decode(np.array([107, 172], np.int32)) == "h"
    assert tok.encode("\ud83d") == [ord("?") + 3]


@given(st.lists(st.integers(0, 258), max_size=31))
@settings(deadline=None)
def test_byte_pieces_spell_out_what_is_decoded(ids):
    tok = ByteTokenizer()
    kept = [i for i in ids if i != tok.eos_id]
    text = b"".join(tok.pieces()[i] for i in kept)
    assert text.decode("utf-8", "ignore") == tok.decode(kept)


def test_byte_pieces_are_single_bytes_and_sentinels():
    pieces = ByteTokenizer().pieces()
    assert len(pieces) == 259
    assert pieces[:3] == [b"", b"", b""]
    assert pieces[3 : 3 + 0xF5] == [bytes([byte]) for byte in range(0xF5)]
    assert pieces[-11:] == [f"<extra_id_{k}>".encode() for k in reversed(range(11))]
