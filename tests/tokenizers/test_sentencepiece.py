"""Oracles: Google's own T5 vocabulary where it is at hand, and SentencePiece."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from helpers.vocabularies import GENUINE, LINES, MULTILINGUAL

from t5jax.tokenizers.byte import ByteTokenizer
from t5jax.tokenizers.load import load_tokenizer
from t5jax.tokenizers.sentencepiece import SentencePieceTokenizer, train_tokenizer


def spm_model(**options):
    model = io.BytesIO()
    defaults = {"vocab_size": 70, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, minloglevel=2, **(defaults | options)
    )
    return model.getvalue()


def pieces(tok, ids):
    """Spelling of ids by SentencePiece, sentinels as their number from the top."""
    plain = sentencepiece.SentencePieceProcessor(model_proto=tok.model)
    return [plain.id_to_piece(i) if i < len(plain) else tok.vocab_size - 1 - i for i in ids]


# Google's vocabulary.


def test_genuine_ids_are_the_published_ones(genuine):
    english = "translate English to German: That is good."
    assert genuine.encode(english) == [13959, 1566, 12, 2968, 10, 466, 19, 207, 5]
    assert genuine.encode("Das ist gut.") == [644, 229, 1806, 5]
    assert genuine.decode([644, 229, 1806, 5, 1]) == "Das ist gut."


def test_genuine_sizes_and_special_ids(genuine):
    assert genuine.vocab_size == 32100
    assert genuine.num_sentinels == 100
    assert (genuine.pad_id, genuine.eos_id, genuine.unk_id) == (0, 1, 2)
    assert (genuine.sentinel_id(0), genuine.sentinel_id(99)) == (32099, 32000)


def test_genuine_sentinel_absorbs_the_space_before_it_only(genuine):
    assert genuine.encode("<extra_id_0>. Hello") == [32099, 5, 8774]
    assert genuine.encode("Hello <extra_id_0> world.") == [8774, 32099, 296, 5]
    # The denoising example of the T5 paper, figure 2.
    ids = genuine.encode("Thank you <extra_id_0> me to your party <extra_id_1> week.")
    assert ids == [1562, 25, 32099, 140, 12, 39, 1088, 32098, 471, 5]
    assert genuine.decode(ids) == "Thank you <extra_id_0> me to your party <extra_id_1> week."


def test_genuine_characters_without_a_piece_are_unknown(genuine):
    assert genuine.encode("{") == [3, genuine.unk_id]
    assert genuine.decode([644, 2, 229]) == "Das ⁇  ist"


@pytest.mark.parametrize("line", MULTILINGUAL)
def test_genuine_ids_equal_those_of_the_tokenizers_library(genuine, line):
    tokenizers = pytest.importorskip("tokenizers")
    other = tokenizers.Tokenizer.from_file(str(GENUINE / "tokenizer.json"))
    assert [*genuine.encode(line), 1] == other.encode(line).ids


# SentencePiece models in general.


def test_sentinels_follow_the_pieces_in_descending_order(tiny):
    assert tiny.vocab_size == 70 + 20
    assert [tiny.sentinel_id(k) for k in range(20)] == list(range(89, 69, -1))
    for k in range(20):
        assert tiny.encode(f"<extra_id_{k}>") == [89 - k]
        assert tiny.decode([89 - k]) == f"<extra_id_{k}>"


def test_plain_text_has_the_ids_of_sentencepiece(tiny):
    plain = sentencepiece.SentencePieceProcessor(model_proto=tiny.model)
    for line in [*LINES, *MULTILINGUAL]:
        assert tiny.encode(line) == plain.encode(line)


@pytest.mark.parametrize("gap", ["", " ", "  ", "\n"])
def test_sentinel_is_found_after_any_or_no_space(tiny, gap):
    ids = tiny.encode(f"dog{gap}<extra_id_0>{gap}<extra_id_19>")
    assert ids[-2:] == [89, 70]
    assert ids[:-2] == tiny.encode("dog")


def test_text_right_after_a_sentinel_starts_no_new_word(tiny):
    assert pieces(tiny, tiny.encode("<extra_id_0>."))[:2] == [0, "."]
    assert pieces(tiny, tiny.encode("<extra_id_0> ."))[:2] == [0, "▁"]


@pytest.mark.parametrize(
    "text", ["<extra_id_20>", "x<extra_id_20>", "<extra_id_00>", "<extra_id_>"]
)
def test_sentinel_that_does_not_exist_is_plain_text(tiny, text):
    plain = sentencepiece.SentencePieceProcessor(model_proto=tiny.model)
    assert tiny.encode(text) == plain.encode(text)


def test_special_pieces_cannot_be_written_in_text(tiny):
    assert not {tiny.pad_id, tiny.eos_id} & set(tiny.encode("</s> a <pad> b </s>"))


def test_encode_reads_half_a_surrogate_pair_as_a_question_mark(tiny):
    assert tiny.encode("fox \ud83d dog") == tiny.encode("fox ? dog")


def test_decode_stops_at_the_first_end_and_drops_padding(tiny):
    fox, dog = tiny.encode("fox"), tiny.encode("dog")
    assert tiny.decode([0, 0, *fox, 0, 1, *dog, 1]) == "fox"
    assert tiny.decode(np.array([*fox, *dog, 0, 0], np.int32)) == "fox dog"
    assert tiny.decode([]) == ""
    assert tiny.decode(np.zeros(0, np.int64)) == ""


@pytest.mark.parametrize("foreign", [-1, -100, 90, 32127])
def test_decode_reads_ids_outside_the_vocabulary_as_unknown(tiny, foreign):
    fox = tiny.encode("fox")
    assert tiny.decode([*fox, foreign]) == tiny.decode([*fox, tiny.unk_id]) == "fox ⁇ "


@pytest.mark.parametrize("ids", [np.array([[3, 4], [5, 6]]), np.array([3.0, 4.0]), np.array(3)])
def test_decode_refuses_what_is_not_one_row_of_integers(tiny, ids):
    with pytest.raises(ValueError, match="ids must be a 1D"):
        tiny.decode(ids)


@pytest.mark.parametrize("k", [-1, 20])
def test_sentinel_outside_the_range_is_an_error(tiny, k):
    with pytest.raises(ValueError, match=rf"must be in \[0, 20\), got {k};"):
        tiny.sentinel_id(k)


@pytest.mark.parametrize("spelling", ["▁<extra_id_{}>", "<extra_id_{}>"])
def test_sentinels_in_the_model_are_used_where_they_are(spelling, tmp_path):
    symbols = [spelling.format(k) for k in (2, 1, 0)]
    model = spm_model(user_defined_symbols=symbols)
    held = SentencePieceTokenizer(model, num_sentinels=100)
    assert held.vocab_size == 70
    assert [held.sentinel_id(k) for k in range(held.num_sentinels)] == [5, 4, 3]
    assert held.encode("<extra_id_2>")[-1] == 3
    assert held.encode("dog <extra_id_0>")[-1] == 5
    held.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["extra_ids"] == 0
    loaded = load_tokenizer(tmp_path)
    assert loaded is not None
    assert (loaded.vocab_size, loaded.num_sentinels) == (70, 3)


def test_special_ids_are_those_of_the_model():
    other = SentencePieceTokenizer(spm_model(pad_id=3, eos_id=2, unk_id=0, bos_id=1))
    assert (other.pad_id, other.eos_id, other.unk_id) == (3, 2, 0)
    assert other.decode([*other.encode("fox"), 3, 2, *other.encode("dog")]) == "fox"


def test_model_without_padding_pads_with_0_as_seqio_does():
    other = SentencePieceTokenizer(spm_model(pad_id=-1, eos_id=2, unk_id=0))
    assert other.pad_id == 0
    assert other.decode([*other.encode("fox"), 0, 0]) == "fox"


def test_model_without_end_is_refused():
    with pytest.raises(ValueError, match="EOS piece"):
        SentencePieceTokenizer(spm_model(eos_id=-1))


def check_pieces(tok, rows):
    """Pieces spell out what is decoded; only spaces at the very beginning may be left out."""
    pieces = tok.pieces()
    assert len(pieces) == tok.vocab_size
    assert pieces[tok.pad_id] == pieces[tok.eos_id] == b""
    for row in rows:
        kept = [i for i in row if i != tok.eos_id]
        text = b"".join(pieces[i] for i in kept).decode("utf-8", "replace")
        assert text.lstrip(" ") == tok.decode(kept).lstrip(" ")


def random_rows(tok, count):
    rng = np.random.default_rng(0)
    return [rng.integers(0, tok.vocab_size, rng.integers(1, 12)).tolist() for _ in range(count)]


@pytest.mark.parametrize("kind", ["tiny", "genuine"])
def test_pieces_spell_out_what_is_decoded(kind, request):
    tok = request.getfixturevalue(kind)
    texts = [*LINES, *MULTILINGUAL, "a <extra_id_0> b<extra_id_3>", "  two  spaces"]
    check_pieces(tok, [*map(tok.encode, texts), *random_rows(tok, 500)])


def test_genuine_pieces_are_bytes_of_text_that_goes_on(genuine):
    pieces = genuine.pieces()
    hello, comma = genuine.encode("Hello,")
    assert (pieces[hello], pieces[comma], pieces[3]) == (b" Hello", b",", b" ")
    assert pieces[genuine.unk_id] == " ⁇ ".encode()
    assert pieces[genuine.sentinel_id(0)] == b" <extra_id_0>"
    assert "ß".encode() in pieces


@pytest.mark.parametrize(
    "options",
    [
        {"bos_id": 3, "control_symbols": ["<c>"], "user_defined_symbols": ["▁▁", "o▁w"]},
        {"unk_id": 0, "eos_id": 2, "pad_id": -1, "unk_surface": "<?>"},
        {"remove_extra_whitespaces": False},
        {"add_dummy_prefix": False},
    ],
)
def test_pieces_spell_out_what_is_decoded_by_other_models(options):
    tok = SentencePieceTokenizer(spm_model(**options), num_sentinels=5)
    check_pieces(tok, [*map(tok.encode, [*LINES, *MULTILINGUAL]), *random_rows(tok, 200)])


def test_pieces_of_a_model_with_bytes_may_be_parts_of_characters():
    model = spm_model(byte_fallback=True, vocab_size=330, hard_vocab_limit=False)
    tok = SentencePieceTokenizer(model)
    pieces, ids = tok.pieces(), tok.encode("ж\n🙂")
    assert b"".join(pieces[i] for i in ids) == " ж 🙂".encode()  # a line's end is a space
    assert pieces[ids[-1]] == b"\x82"
    assert {bytes([byte]) for byte in range(256)} <= set(pieces)
    check_pieces(tok, map(tok.encode, [*LINES, *MULTILINGUAL]))


def test_number_of_sentinels_must_be_a_count(tiny):
    with pytest.raises(ValueError, match="num_sentinels must be at least 0, got -1;"):
        SentencePieceTokenizer(tiny.model, num_sentinels=-1)


def test_no_sentinels_are_possible(tiny):
    bare = SentencePieceTokenizer(tiny.model, num_sentinels=0)
    assert (bare.vocab_size, bare.num_sentinels) == (70, 0)
    with pytest.raises(ValueError, match="fewer, longer spans"):
        bare.sentinel_id(0)


def test_fingerprint_tells_apart_what_gives_other_ids(tiny):
    same = SentencePieceTokenizer(tiny.model, num_sentinels=20)
    fewer = SentencePieceTokenizer(tiny.model, num_sentinels=19)
    other = SentencePieceTokenizer(spm_model(vocab_size=60), num_sentinels=20)
    assert same.fingerprint == tiny.fingerprint
    prints = [t.fingerprint for t in (tiny, fewer, other, ByteTokenizer())]
    assert len(set(prints)) == 4


def test_tokenizer_works_in_forked_workers_that_inherit_it(tiny, tmp_path):
    tiny.save(tmp_path)
    program = (
        "import multiprocessing, sys; from t5jax.tokenizers import load_tokenizer\n"
        "tok = load_tokenizer(sys.argv[1]); tok.encode('fox')\n"
        "def work(text): return tok.encode(text)\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "    print(pool.map(work, ['fox', 'lazy dog'] * 10))\n"
    )
    root = Path(__file__).parents[2]
    output = subprocess.check_output(
        [sys.executable, "-c", program, tmp_path], cwd=root, text=True, timeout=60
    )
    assert json.loads(output) == [tiny.encode("fox"), tiny.encode("lazy dog")] * 10


# Files.


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (b"", "copy the file again"),
        (b"<!DOCTYPE html><html>not found</html>", "copy the file again"),
        (b'{"model": {"type": "Unigram"}}', "copy the file again"),
        (b"\x0a", "copy the file again"),
        (bytes(1000), "copy the file again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:d60a\nsize 791656\n", "lfs pull"),
    ],
)
def test_file_that_is_no_model_is_named_with_the_remedy(tmp_path, content, remedy):
    path = tmp_path / "spiece.model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=remedy) as caught:
        load_tokenizer(tmp_path)
    assert str(path) in str(caught.value)


def test_model_cut_short_anywhere_is_refused(tiny):
    model = tiny.model
    cuts = [*range(1, 1200), *range(2000, len(model), 4999), *range(len(model) - 20, len(model))]
    loads = 0
    for cut in cuts:
        try:
            sentencepiece.SentencePieceProcessor(model_proto=model[:cut])
            loads += 1
        except RuntimeError:
            pass
        # An empty rest, the denormalizer, is all that may be missing without loss.
        if model[cut:] not in (b"", b"\x2a\x00"):
            with pytest.raises(ValueError, match="complete SentencePiece model"):
                SentencePieceTokenizer(model[:cut])
    assert loads > 10, "SentencePiece itself takes a file cut between pieces; this must test some"


# Training.


def test_train_is_deterministic_and_makes_t5_ids(tiny):
    again = train_tokenizer(iter(LINES), vocab_size=70, num_sentinels=20)
    assert again.model == tiny.model
    assert (again.pad_id, again.eos_id, again.unk_id) == (0, 1, 2)
    assert sentencepiece.SentencePieceProcessor(model_proto=again.model).bos_id() == -1


def test_train_normalises_as_t5_does(tiny):
    assert tiny.encode("\uff46\uff4f\uff58\n \ufb01") == tiny.encode("fox fi")


def test_train_reads_the_whole_of_a_long_line():
    line = "fox dog owl " * 2000 + "ж " * 20 + "fox dog owl " * 2000
    assert len(line.encode()) > 4192
    trained = train_tokenizer([line], vocab_size=14)
    assert trained.unk_id not in trained.encode("fox dog ж")


def test_train_takes_evenly_spaced_lines_of_too_many():
    words = ["fox", "dog", "owl", "eel", "brown", "quick", "lazy", "jumps", "over", "the"]
    lines = [f"{words[n % 10]} {words[n * n % 7]}s {n * 37 % 100}" for n in range(100)]
    thinned = train_tokenizer(["\n\n".join(lines)], vocab_size=42, max_lines=50)
    assert thinned.model == train_tokenizer(lines[::2], vocab_size=42).model
    assert thinned.model != train_tokenizer(lines, vocab_size=42).model
    odd = train_tokenizer(lines, vocab_size=42, max_lines=33)
    assert odd.model == train_tokenizer(lines[::4], vocab_size=42).model


def test_train_keeps_characters_that_t5_lost():
    text = ["a plain sentence of letters"] * 400 + ["{"]
    assert train_tokenizer(text, vocab_size=19).encode("{")[-1] != 2
    assert train_tokenizer(text, vocab_size=18, character_coverage=0.9995).encode("{")[-1] == 2


@pytest.mark.parametrize("texts", [[], [""], ["  \n\t ", "\n"]])
def test_train_needs_text(texts):
    with pytest.raises(ValueError, match=r"texts must .* got none"):
        train_tokenizer(texts, vocab_size=100)


@pytest.mark.parametrize("vocab_size", [3, 0, -1])
def test_train_needs_room_for_pieces(vocab_size):
    with pytest.raises(ValueError, match=f"must exceed 3 .*got {vocab_size};"):
        train_tokenizer(LINES, vocab_size=vocab_size)


def test_train_says_the_largest_vocabulary_that_the_text_allows():
    with pytest.raises(ValueError, match=r"got 5000; .*value <= (\d+)") as caught:
        train_tokenizer(LINES, vocab_size=5000)
    largest = int(str(caught.value).rstrip(".").rpartition(" ")[2])
    assert train_tokenizer(LINES, vocab_size=largest, num_sentinels=0).vocab_size == largest
    with pytest.raises(ValueError, match=f"<= {largest}"):
        train_tokenizer(LINES, vocab_size=largest + 1)


def test_train_says_when_the_vocabulary_is_too_small_for_the_characters():
    with pytest.raises(ValueError, match=r"got 10; .*Increase vocab_size"):
        train_tokenizer(LINES, vocab_size=10)


def test_train_is_quiet(capfd):
    train_tokenizer(LINES, vocab_size=70)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
