"""Pieces of text: joined they are the whole, in any script and any vocabulary, and final."""

import numpy as np
import pytest
from helpers import scripts_of_languages

from t5jax.generation.detokenizer import StreamingDetokenizer, detokenize
from t5jax.tokenizers.byte import ByteTokenizer
from t5jax.tokenizers.huggingface import HuggingFaceTokenizer
from t5jax.tokenizers.load import load_tokenizer

KINDS = ["bytes", "trained", "with_bytes", "byte_level", "metaspace"]
# One within a word, one across two, one of several bytes, and one whose beginning is another.
STOPS = ("quick br", "o ", "日本", "é", "ab", "abc", "🙂 ")
TEXTS = scripts_of_languages.texts(500)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    return scripts_of_languages.every_kind(tmp_path_factory.mktemp("kinds"))


def pieces_of(found, ids, **options):
    """What comes out when ids come in one at a time."""
    pieces = StreamingDetokenizer(found, **options)
    grown = [pieces.grow(ids[:end], ended=False) for end in range(1, len(ids) + 1)]
    return [*grown, pieces.grow(ids, ended=True)]


def check(found, sequences, **options):
    """How many sequences have pieces before the last: streaming that is none would pass too."""
    early = 0
    for ids in sequences:
        whole = detokenize(found, ids, stop_strings=options.get("stop_strings", ()), prefix_len=0)
        pieces = pieces_of(found, ids, **options)
        assert "".join(pieces) == whole
        if "\ufffd" not in whole:
            assert not any("\ufffd" in piece for piece in pieces)
        early += any(pieces[:-1])
    return early


@pytest.mark.parametrize("stop_strings", [(), STOPS])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_joined_are_the_text_in_every_script(kinds, kind, stop_strings):
    found = kinds[kind]
    texts = TEXTS[:200] if stop_strings else TEXTS
    early = check(found, [found.encode(text) for text in texts], stop_strings=stop_strings)
    assert early > 0.6 * len(texts)


def test_texts_are_of_every_script_and_come_back(kinds):
    assert len(TEXTS) == 500
    letters = set("".join(TEXTS))
    assert set("日ب🙂ि👍𓀀\u200d\u0301\ufeff") <= letters
    for kind in ("bytes", "with_bytes", "byte_level"):
        assert all(kinds[kind].decode(kinds[kind].encode(text)) == text for text in TEXTS)
    # Characters lie in several ids, or nothing waits for any.
    for kind in ("bytes", "with_bytes", "byte_level", "metaspace"):
        assert len(kinds[kind].encode("🙂")) > 1


@pytest.mark.parametrize("stop_strings", [(), STOPS])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_joined_are_the_text_of_any_ids(kinds, kind, stop_strings):
    """Padding, ends, sentinels, foreign ids and broken characters among them."""
    found = kinds[kind]
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, found.vocab_size + 3, rng.integers(0, 30)) for _ in range(150)]
    check(found, [ids.tolist() for ids in sequences], stop_strings=stop_strings)


@pytest.mark.parametrize("kind", ["bytes", "with_bytes", "byte_level", "metaspace"])
def test_pieces_of_an_answer_that_ends_within_a_character(kinds, kind):
    found = kinds[kind]
    ids = found.encode("the 日本語🙂")
    sequences = [ids[:end] for end in range(len(ids) + 1)]
    check(found, sequences)


@pytest.mark.parametrize("stop_strings", [(), STOPS])
@pytest.mark.parametrize("file", ["spiece.model", "tokenizer.json"])
def test_pieces_of_the_genuine_vocabulary(shared_data, file, stop_strings):
    folder = shared_data / "t5_tokenizer"
    genuine = file == "spiece.model"
    found = load_tokenizer(folder) if genuine else HuggingFaceTokenizer.from_folder(folder)
    rng = np.random.default_rng(0)
    random = [rng.integers(0, found.vocab_size, 20).tolist() for _ in range(100)]
    check(found, [*map(found.encode, TEXTS), *random], stop_strings=stop_strings)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_wait_for_what_may_begin_a_stop_string(kinds, kind):
    found = kinds[kind]
    text = "the quick brown fox"
    ids = found.encode(text)
    pieces = pieces_of(found, ids, stop_strings=["k brown"])
    assert "".join(pieces) == "the quic"
    # What only looked like one comes out in the end.
    assert "".join(pieces_of(found, ids, stop_strings=["fox!"])) == text
    assert "".join(pieces_of(found, ids, stop_strings=["the", "k brown"])) == ""


def test_pieces_come_out_as_soon_as_they_are_certain():
    found = ByteTokenizer()
    pieces = pieces_of(found, found.encode("aé b"))
    # The bytes of é are two; a space may be the last, and then it waits.
    assert pieces == ["a", "", "é", "", " b", ""]
    pieces = pieces_of(found, found.encode("xyxz"), stop_strings=["xz!"])
    assert pieces == ["", "xy", "", "", "xz"]


def test_pieces_do_not_look_for_stop_strings_in_the_prefix():
    found = ByteTokenizer()
    ids = found.encode("stop, go, stop, on")
    prefix_len = len("stop, go")
    pieces = pieces_of(found, ids, stop_strings=["stop"], prefix_len=prefix_len)
    assert "".join(pieces) == "stop, go, "


# The whole.


@pytest.mark.parametrize("kind", ["bytes", "with_bytes", "byte_level"])
def test_cut_ends_before_the_first_stop_string(kinds, kind):
    found = kinds[kind]
    for text in TEXTS[:100]:
        whole = detokenize(found, found.encode(text), stop_strings=STOPS, prefix_len=0)
        places = [text.find(string) for string in STOPS if string in text]
        assert whole == text[: min(places, default=len(text))]


@pytest.mark.parametrize("kind", KINDS)
def test_cut_leaves_a_prefix_whole(kinds, kind):
    found = kinds[kind]
    prefix, answer = found.encode("the quick"), found.encode("brown fox, quick")
    whole = detokenize(found, [*prefix, *answer], stop_strings=["quick"], prefix_len=len(prefix))
    expected = found.decode([*prefix, *answer])
    assert whole == expected[: expected.rindex("quick")]
    assert whole.startswith("the quick")


def test_cut_without_ids_is_empty():
    assert detokenize(ByteTokenizer(), [], stop_strings=["a"], prefix_len=0) == ""
    assert detokenize(ByteTokenizer(), [], stop_strings=[], prefix_len=3) == ""
