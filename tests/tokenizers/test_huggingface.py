"""Oracles: the tokenizers library, transformers on the same files, and Google's SentencePiece."""

import base64
import gzip
import json
import pickle
import random
import re
import shutil

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from t5jax.tokenizers import huggingface
from t5jax.tokenizers.base import Tokenizer
from t5jax.tokenizers.byte import ByteTokenizer
from t5jax.tokenizers.huggingface import HuggingFaceTokenizer
from t5jax.tokenizers.load import load_tokenizer
from t5jax.tokenizers.sentencepiece import SentencePieceTokenizer, train_tokenizer

CODE = [
    "def add(left, right):",
    "    return left + right  # the sum",
    "for name in names:\n    print(name, end='')",
    "class Tokenizer: pass",
    "if not texts: raise ValueError('texts must hold some text')",
]
TEXTS = [
    *CODE,
    "",
    " ",
    "\t  two  spaces\n\n",
    "é 🙂 日本語 ½ ﬁ",
    "def <extra_id_0>(x): <extra_id_99>",
    "a<extra_id_1><extra_id_100>",
    "a <mask> b<mask>",
    "<s> x </s> <pad> <unk>",
    "ends with </s>",
]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
PAIR = ("vocab.json", "merges.txt")
NUM_PIECES = 320


@pytest.fixture(scope="module")
def code_bpe():
    """A byte-level BPE as CodeT5's, still without sentinels and template."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_PIECES,
        show_progress=False,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    library.train_from_iterator(CODE, trainer)
    assert library.get_vocab_size() == NUM_PIECES
    return library


@pytest.fixture(scope="module")
def code_library(code_bpe):
    """The whole of it, sentinels from the last one on."""
    library = tokenizers.Tokenizer.from_str(code_bpe.to_str())
    library.add_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    library.add_tokens([AddedToken(f"<extra_id_{k}>", special=True) for k in reversed(range(100))])
    library.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    return library


def flagged(content, **flags):
    defaults = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    return {"content": content, **defaults, **flags}


def special_tokens_map():
    named = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>"}
    named |= {"cls": "<s>"}
    tokens = {f"{role}_token": flagged(content) for role, content in named.items()}
    return tokens | {"mask_token": flagged("<mask>", lstrip=True)}


def write_json(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def pair_folder(code_bpe, tmp_path):
    """A folder as an old version of transformers left it."""
    folder = tmp_path / "pair"
    folder.mkdir()
    code_bpe.model.save(str(folder))
    write_json(
        folder / "added_tokens.json",
        {f"<extra_id_{k}>": NUM_PIECES + 99 - k for k in range(100)},
    )
    sentinels = [f"<extra_id_{k}>" for k in reversed(range(100))]
    special = special_tokens_map() | {"additional_special_tokens": sentinels}
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer"})
    return folder


@pytest.fixture
def json_folder(code_library, tmp_path):
    """A folder with a `tokenizer.json`."""
    folder = tmp_path / "json"
    folder.mkdir()
    code_library.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"bos_token": "<s>"})
    return folder


@pytest.fixture
def code(json_folder):
    return HuggingFaceTokenizer.from_folder(json_folder)


def edited(folder, **changes):
    """The folder's tokenizer with other parts."""
    path = folder / "tokenizer.json"
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)
    return HuggingFaceTokenizer.from_folder(folder)


def check_message(error, folder):
    message = str(error.value)
    assert type(error.value) is ValueError
    assert "\n" not in message
    assert len(message.replace(str(folder), "")) < 400


# Google's vocabulary.


@pytest.fixture(scope="module")
def lines(shared_data):
    found = []
    for name in ("val.en", "val.de", "test_2016_flickr.en", "test_2017_mscoco.de"):
        with gzip.open(shared_data / "multi30k" / "raw" / f"{name}.gz", "rt", "utf-8") as file:
            found += [line.rstrip("\n") for line in file][:150]
    assert len(found) == 600
    return found


@pytest.fixture(scope="module", params=["", "hf_t5_small", "transformers 5"])
def t5(request, shared_data, tmp_path_factory):
    source = shared_data / "t5_tokenizer"
    folder = tmp_path_factory.mktemp("t5") / "folder"
    if request.param == "transformers 5":
        transformers = pytest.importorskip("transformers")
        transformers.T5Tokenizer.from_pretrained(source).save_pretrained(folder)
    else:
        ignored = shutil.ignore_patterns("spiece.model", "hf_t5_small")
        shutil.copytree(source / request.param, folder, ignore=ignored)
    assert not (folder / "spiece.model").exists()
    found = load_tokenizer(folder)
    assert isinstance(found, HuggingFaceTokenizer)
    return found


@pytest.fixture(scope="module")
def google(shared_data):
    model = shared_data / "t5_tokenizer" / "spiece.model"
    return SentencePieceTokenizer.from_file(model)


def test_t5_ids_and_text_equal_those_of_sentencepiece(t5, google, lines):
    for line in lines:
        ids = google.encode(line)
        assert t5.encode(line) == ids
        if google.unk_id not in ids:
            assert t5.decode([*ids, 1]) == google.decode(ids)


def test_t5_attributes_equal_those_of_sentencepiece(t5, google):
    for name in ("vocab_size", "pad_id", "eos_id", "unk_id", "num_sentinels"):
        assert getattr(t5, name) == getattr(google, name)
    sentinels = [t5.sentinel_id(k) for k in range(100)]
    assert sentinels == [google.sentinel_id(k) for k in range(100)] == [*range(32099, 31999, -1)]


def test_t5_sentinels_are_found_and_spelled_out(t5):
    # The denoising example of the T5 paper, figure 2.
    ids = t5.encode("Thank you <extra_id_0> me to your party <extra_id_1> week.")
    assert ids == [1562, 25, 32099, 140, 12, 39, 1088, 32098, 471, 5]
    assert re.findall(r"<extra_id_\d+>", t5.decode(ids)) == ["<extra_id_0>", "<extra_id_1>"]


# CodeT5: byte-level BPE.


def test_code_ids_are_the_library_s_without_the_end(code, code_library):
    for text in TEXTS:
        *ids, last = code_library.encode(text).ids
        assert (ids[0], last) == (1, 2)
        assert code.encode(text) == ids


def test_code_attributes_are_those_of_the_vocabulary(code):
    assert code.vocab_size == NUM_PIECES + 100
    assert (code.pad_id, code.eos_id, code.unk_id, code.num_sentinels) == (0, 2, 3, 100)
    sentinels = [code.sentinel_id(k) for k in range(100)]
    assert sentinels == [*range(NUM_PIECES + 99, NUM_PIECES - 1, -1)]
    assert isinstance(code, Tokenizer)


def test_code_round_trip_is_exact(code):
    for text in (*CODE, " é 🙂\n\t日本語 "):
        assert code.decode(code.encode(text)) == text


@pytest.mark.parametrize("k", [-1, 100])
def test_sentinel_outside_the_range_is_an_error(code, k):
    with pytest.raises(ValueError, match=rf"must be in \[0, 100\), got {k};"):
        code.sentinel_id(k)


def test_vocab_and_merges_give_the_ids_of_the_library(pair_folder, code_library):
    found = HuggingFaceTokenizer.from_folder(pair_folder)
    assert found.vocab_size == NUM_PIECES + 100
    assert (found.pad_id, found.eos_id, found.unk_id, found.num_sentinels) == (0, 2, 3, 100)
    for text in TEXTS:
        assert [*found.encode(text), 2] == code_library.encode(text).ids
    assert found.decode(found.encode(CODE[1])) == CODE[1]


def test_vocab_and_merges_equal_transformers(pair_folder):
    transformers = pytest.importorskip("transformers")
    other = transformers.RobertaTokenizer.from_pretrained(pair_folder)
    found = HuggingFaceTokenizer.from_folder(pair_folder)
    assert len(other) == found.vocab_size
    for text in TEXTS:
        assert [*found.encode(text), 2] == other(text).input_ids
    content = other("for name in <extra_id_7> names").input_ids[1:-1]
    assert found.decode(content) == other.decode(content, skip_special_tokens=False)


def test_vocab_and_merges_alone_are_enough_in_either_library(code_bpe, tmp_path):
    code_bpe.model.save(str(tmp_path))
    found = HuggingFaceTokenizer.from_folder(tmp_path)
    assert (found.vocab_size, found.num_sentinels) == (NUM_PIECES, 0)
    transformers = pytest.importorskip("transformers")
    other = transformers.RobertaTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert [*found.encode(text), 2] == other(text).input_ids


def test_special_tokens_that_a_vocabulary_lacks_are_appended_as_in_transformers(code_bpe, tmp_path):
    code_bpe.model.save(str(tmp_path))
    special = special_tokens_map() | {"additional_special_tokens": ["<extra_id_0>"]}
    write_json(tmp_path / "special_tokens_map.json", special | {"mask_token": "<hidden>"})
    found = HuggingFaceTokenizer.from_folder(tmp_path)
    assert found.vocab_size == NUM_PIECES + 2
    assert found.sentinel_id(0) == NUM_PIECES + 1
    transformers = pytest.importorskip("transformers")
    other = transformers.RobertaTokenizer.from_pretrained(tmp_path)
    text = "a <hidden> b <extra_id_0>"
    assert [*found.encode(text), 2] == other(text).input_ids


def test_added_tokens_keep_the_flags_that_files_give_them(pair_folder, code_library):
    sentinels = [flagged(f"<extra_id_{k}>", lstrip=True) for k in reversed(range(100))]
    special = special_tokens_map() | {"additional_special_tokens": sentinels}
    write_json(pair_folder / "special_tokens_map.json", special)
    found = HuggingFaceTokenizer.from_folder(pair_folder)
    plain = code_library.encode("def <extra_id_0>").ids[:-1]
    space = code_library.encode(" ").ids[1]
    assert plain[-2] == space
    assert found.encode("def <extra_id_0>") == [*plain[:-2], plain[-1]]
    # Later versions put them, by their ids, into the config.
    (pair_folder / "added_tokens.json").unlink()
    (pair_folder / "special_tokens_map.json").unlink()
    detailed = {NUM_PIECES + i: token for i, token in enumerate(sentinels)}
    write_json(pair_folder / "tokenizer_config.json", {"added_tokens_decoder": detailed})
    again = HuggingFaceTokenizer.from_folder(pair_folder)
    assert again.encode("def <extra_id_0>") == found.encode("def <extra_id_0>")
    assert [again.sentinel_id(k) for k in (0, 99)] == [NUM_PIECES + 99, NUM_PIECES]


def test_prefix_space_is_as_the_config_says(pair_folder, code_library):
    write_json(pair_folder / "tokenizer_config.json", {"add_prefix_space": True})
    found = HuggingFaceTokenizer.from_folder(pair_folder)
    assert [*found.encode("left"), 2] == code_library.encode(" left").ids


def test_windows_line_ends_in_merges_change_nothing(pair_folder):
    before = HuggingFaceTokenizer.from_folder(pair_folder)
    path = pair_folder / "merges.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    after = HuggingFaceTokenizer.from_folder(pair_folder)
    assert all(after.encode(text) == before.encode(text) for text in TEXTS)


# What a file may switch on, and what a text may spell.


def test_truncation_padding_and_dropout_are_switched_off(json_folder, code_library):
    saved = tokenizers.Tokenizer.from_str(code_library.to_str())
    saved.enable_truncation(4)
    saved.enable_padding(length=64, pad_id=0, pad_token="<pad>")
    saved.model.dropout = 0.9
    saved.save(str(json_folder / "tokenizer.json"))
    assert len(saved.encode(CODE[1]).ids) == 64
    found = HuggingFaceTokenizer.from_folder(json_folder)
    for text in TEXTS * 3:
        assert [*found.encode(text), 2] == code_library.encode(text).ids


def test_end_that_the_text_spells_is_kept(code, json_folder):
    assert code.encode("</s>") == [1, 2]
    assert code.encode("pass</s></s>")[-2:] == [2, 2]
    bare = edited(json_folder, post_processor=None)
    assert bare.encode("</s>") == [2]
    assert bare.encode("pass") == code.encode("pass")[1:]


def test_encode_reads_half_a_surrogate_pair_as_a_question_mark(code):
    assert code.encode("a \ud83d b") == code.encode("a ? b")


def test_decode_stops_at_the_first_end_without_padding_and_start(code):
    ids = code.encode("return left")
    assert ids[0] == 1
    assert code.decode([0, *ids, 0, 2, *ids]) == "return left"
    assert code.decode(np.array([*ids, 0, 0], np.int32)) == "return left"
    assert code.decode([*ids, code.sentinel_id(3)]) == "return left<extra_id_3>"
    assert code.decode([]) == code.decode(np.zeros(0, np.int64)) == ""


def test_decode_drops_the_start_that_the_config_names(json_folder, code):
    ids = code.encode("return")
    bare = edited(json_folder, post_processor=None)
    assert bare.decode(ids) == "return"
    write_json(json_folder / "tokenizer_config.json", {})
    assert HuggingFaceTokenizer.from_folder(json_folder).decode(ids) == "<s>return"


@pytest.mark.parametrize("foreign", [-1, -100, NUM_PIECES + 100, 1 << 31, 1 << 40])
def test_decode_reads_ids_outside_the_vocabulary_as_unknown(code, foreign):
    ids = code.encode("return")
    assert code.decode([*ids, foreign]) == code.decode([*ids, code.unk_id]) == "return<unk>"


@pytest.mark.parametrize("ids", [np.array([[3, 4], [5, 6]]), np.array([3.0, 4.0]), np.array(3)])
def test_decode_refuses_what_is_not_one_row_of_integers(code, ids):
    with pytest.raises(ValueError, match="ids must be a 1D"):
        code.decode(ids)


# Special ids.


def unigram(*pieces, unk_id=0):
    library = tokenizers.Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    return library


def load_unigram(folder, *pieces, config=None, special=None, unk_id=0):
    unigram(*pieces, unk_id=unk_id).save(str(folder / "tokenizer.json"))
    for name, content in (("tokenizer_config", config), ("special_tokens_map", special)):
        if content is not None:
            write_json(folder / f"{name}.json", content)
    return HuggingFaceTokenizer.from_folder(folder)


def test_special_ids_have_usual_names_where_no_file_gives_them(tmp_path):
    found = load_unigram(tmp_path, "<unk>", "a", "</s>", "<pad>")
    assert (found.unk_id, found.eos_id, found.pad_id) == (0, 2, 3)


def test_special_ids_are_by_name_the_config_s_then_the_map_s(tmp_path):
    pieces = ("[U]", "a", "[E]", "[P]", "</s>", "<pad>")
    config = {"eos_token": "[E]", "pad_token": None}
    special = {"eos_token": "a", "pad_token": flagged("[P]"), "unk_token": "[U]"}
    found = load_unigram(tmp_path, *pieces, config=config, special=special)
    assert (found.unk_id, found.eos_id, found.pad_id) == (0, 2, 3)
    config = {"eos_token": {"__type": "AddedToken", **flagged("[P]")}}
    assert load_unigram(tmp_path, *pieces, config=config).eos_id == 3


def test_padding_falls_back_to_0_and_unknown_to_padding(tmp_path):
    found = load_unigram(tmp_path, "a", "b", "</s>")
    assert (found.pad_id, found.unk_id) == (0, 0)
    assert found.decode([1, 7, 0, 1]) == "bb"


def test_vocabulary_without_an_end_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.json must have an EOS id") as error:
        load_unigram(tmp_path, "<unk>", "a")
    check_message(error, tmp_path)
    with pytest.raises(ValueError, match=r"got none for '\[E\]'; set eos_token"):
        load_unigram(tmp_path, "<unk>", "a", "</s>", config={"eos_token": "[E]"})


@pytest.mark.parametrize("token", [5, ["</s>"], {"content": 5}, {"text": "</s>"}])
def test_special_token_that_is_no_text_is_refused(tmp_path, token):
    with pytest.raises(ValueError, match=r"must define eos_token .*got a ") as error:
        load_unigram(tmp_path, "<unk>", "</s>", config={"eos_token": token})
    check_message(error, tmp_path)


def test_sentinels_that_are_pieces_with_a_space_are_used_where_they_are(tmp_path):
    pieces = [f"▁<extra_id_{k}>" for k in (2, 1, 0, 4)]
    found = load_unigram(tmp_path, "<unk>", "</s>", "a", *pieces)
    assert [found.sentinel_id(k) for k in range(found.num_sentinels)] == [5, 4, 3]
    assert found.encode("a <extra_id_2>") == [0, 2, 3]
    assert found.decode([2, 3]) == "a <extra_id_2>"


def check_pieces(found, rows):
    """Pieces spell out what is decoded; only spaces at the very beginning may be left out."""
    pieces = found.pieces()
    assert len(pieces) == found.vocab_size
    assert pieces[found.pad_id] == pieces[found.eos_id] == b""
    for row in rows:
        kept = [i for i in row if i != found.eos_id]
        text = b"".join(pieces[i] for i in kept).decode("utf-8", "replace")
        assert text.lstrip(" ") == found.decode(kept).lstrip(" ")
    return pieces


def random_rows(found, count):
    rng = np.random.default_rng(0)
    return [rng.integers(0, found.vocab_size, rng.integers(1, 12)).tolist() for _ in range(count)]


def test_t5_pieces_spell_out_what_is_decoded(t5, google, lines):
    rows = [*map(t5.encode, [*lines[::7], *TEXTS]), *random_rows(t5, 300)]
    assert check_pieces(t5, rows)[3:32000] == google.pieces()[3:32000]


@pytest.mark.parametrize("kind", ["pair_folder", "json_folder"])
def test_code_pieces_spell_out_what_is_decoded(kind, request):
    found = HuggingFaceTokenizer.from_folder(request.getfixturevalue(kind))
    pieces = check_pieces(found, [*map(found.encode, TEXTS), *random_rows(found, 500)])
    assert {bytes([byte]) for byte in range(256)} <= set(pieces)
    assert [pieces[i] for i in found.encode("é")] == [b"", b"\xc3", b"\xa9"]
    assert pieces[found.sentinel_id(7)] == b"<extra_id_7>"
    assert pieces[found.unk_id] == b"<unk>"


def test_pieces_of_added_tokens_that_are_no_spelling_of_bytes(json_folder, code_library):
    library = tokenizers.Tokenizer.from_str(code_library.to_str())
    library.add_tokens(["two words", "日本"])
    library.save(str(json_folder / "tokenizer.json"))
    found = HuggingFaceTokenizer.from_folder(json_folder)
    assert found.pieces()[-2:] == [b"two words", "日本".encode()]
    check_pieces(found, random_rows(found, 200))


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        decoders.Metaspace(),
        decoders.Metaspace(prepend_scheme="never"),
        decoders.WordPiece(prefix="##", cleanup=False),
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    ],
    ids=lambda decoder: repr(decoder)[:40],
)
def test_pieces_spell_out_what_any_decoder_decodes(decoder, tmp_path):
    library = unigram("<pad>", "</s>", "<unk>", "▁", "▁a", "b", "##c", "é", ".", "<x>")
    library.decoder = decoder
    library.save(str(tmp_path / "tokenizer.json"))
    found = HuggingFaceTokenizer.from_folder(tmp_path)
    # The first piece of a text may look otherwise.
    rows = [[5, *row] for row in random_rows(found, 200)]
    check_pieces(found, rows)


def test_pieces_may_be_single_bytes(tmp_path):
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    library = unigram("<pad>", "</s>", "<unk>", "▁a", "b", *bytes_)
    library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    library.save(str(tmp_path / "tokenizer.json"))
    found = HuggingFaceTokenizer.from_folder(tmp_path)
    assert found.pieces()[5:] == [bytes([byte]) for byte in range(256)]
    check_pieces(found, [[4, *(5 + byte for byte in text.encode()), 3] for text in TEXTS])
    library.decoder = decoders.Metaspace()
    library.save(str(tmp_path / "tokenizer.json"))
    assert HuggingFaceTokenizer.from_folder(tmp_path).pieces()[5:] == [
        name.encode() for name in bytes_
    ]


def test_pieces_of_a_vocabulary_with_holes_are_those_of_the_unknown(tmp_path):
    library = tokenizers.Tokenizer(models.BPE({"a": 0, "<pad>": 1, "</s>": 5, "<unk>": 7}, []))
    library.save(str(tmp_path / "tokenizer.json"))
    found = HuggingFaceTokenizer.from_folder(tmp_path)
    pieces = check_pieces(found, [[0, *row] for row in random_rows(found, 99)])
    assert len(pieces) == 8
    assert pieces[1] == pieces[5] == b""
    assert pieces[2] == pieces[3] == pieces[7] != b""


def test_vocabulary_with_holes_has_a_size_beyond_its_highest_id(tmp_path):
    library = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "</s>": 9}, []))
    library.save(str(tmp_path / "tokenizer.json"))
    found = HuggingFaceTokenizer.from_folder(tmp_path)
    assert found.vocab_size == 10
    assert found.encode("ab") == [0, 1]
    assert found.decode([1, 5]) == "b"


# Files.


def test_load_takes_bytes_then_sentencepiece_then_either_kind_of_file(
    pair_folder, json_folder, tmp_path
):
    found = load_tokenizer(pair_folder)
    assert isinstance(found, HuggingFaceTokenizer)
    shutil.copy(json_folder / "tokenizer.json", pair_folder)
    (pair_folder / "merges.txt").write_text("damaged, and unused")
    found = load_tokenizer(pair_folder)
    assert isinstance(found, HuggingFaceTokenizer)
    assert found.encode("def") == HuggingFaceTokenizer.from_folder(json_folder).encode("def")
    model = train_tokenizer(CODE, vocab_size=40).model
    (pair_folder / "spiece.model").write_bytes(model)
    # Which lacks the tokens that were added.
    assert isinstance(load_tokenizer(pair_folder), HuggingFaceTokenizer)
    (pair_folder / "added_tokens.json").unlink()
    assert isinstance(load_tokenizer(pair_folder), SentencePieceTokenizer)
    write_json(pair_folder / "tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer"})
    assert isinstance(load_tokenizer(pair_folder), ByteTokenizer)


@pytest.mark.parametrize("kind", ["added_tokens.json", "tokenizer_config.json"])
def test_load_says_which_added_tokens_are_not_known(tmp_path, kind):
    """ProstT5's <fold2AA> and its like."""
    (tmp_path / "spiece.model").write_bytes(train_tokenizer(CODE, vocab_size=40).model)
    listed = {"<fold2AA>": 140, "<extra_id_0>": 139}
    if kind == "tokenizer_config.json":
        listed = {"added_tokens_decoder": {str(i): {"content": t} for t, i in listed.items()}}
    write_json(tmp_path / kind, listed)
    with pytest.warns(UserWarning, match="ignoring 1 tokens .* such as '<fold2AA>'"):
        found = load_tokenizer(tmp_path)
    assert isinstance(found, SentencePieceTokenizer)


@pytest.mark.parametrize("content", ["[", "[1]", '{"a": "b"}'])
def test_load_refuses_a_damaged_list_of_added_tokens(tmp_path, content):
    (tmp_path / "spiece.model").write_bytes(train_tokenizer(CODE, vocab_size=40).model)
    (tmp_path / "added_tokens.json").write_text(content)
    with pytest.raises(ValueError, match=r"added_tokens\.json must"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", PAIR)
def test_half_a_pair_of_files_is_no_tokenizer(pair_folder, name):
    (pair_folder / name).unlink()
    assert load_tokenizer(pair_folder) is None
    with pytest.raises(ValueError, match=r"must contain tokenizer\.json, or vocab\.json"):
        HuggingFaceTokenizer.from_folder(pair_folder)


@pytest.mark.parametrize("kind", ["pair_folder", "json_folder"])
def test_save_writes_the_very_files_and_load_reads_them(kind, request, tmp_path):
    folder = request.getfixturevalue(kind)
    found = HuggingFaceTokenizer.from_folder(folder)
    (folder / "pytorch_model.bin").write_bytes(b"not a tokenizer's")
    found.save(tmp_path / "new" / "folder")
    (folder / "pytorch_model.bin").unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    after = {path.name: path.read_bytes() for path in (tmp_path / "new" / "folder").iterdir()}
    assert after == before
    again = load_tokenizer(tmp_path / "new" / "folder")
    assert again is not None
    assert again.fingerprint == found.fingerprint
    assert all(again.encode(text) == found.encode(text) for text in TEXTS)


@pytest.mark.parametrize("kind", ["pair_folder", "json_folder"])
def test_tokenizers_survive_pickling(kind, request):
    found = HuggingFaceTokenizer.from_folder(request.getfixturevalue(kind))
    copy = pickle.loads(pickle.dumps(found))
    for text in TEXTS:
        assert copy.encode(text) == found.encode(text)
        assert copy.decode(copy.encode(text)) == found.decode(found.encode(text))
    for attribute in ("vocab_size", "pad_id", "eos_id", "unk_id", "num_sentinels", "fingerprint"):
        assert getattr(copy, attribute) == getattr(found, attribute)


def test_fingerprint_tells_apart_what_gives_other_ids(json_folder, pair_folder):
    prints = [HuggingFaceTokenizer.from_folder(json_folder).fingerprint]
    write_json(json_folder / "tokenizer_config.json", {"bos_token": "<s>", "model_max_length": 9})
    assert HuggingFaceTokenizer.from_folder(json_folder).fingerprint == prints[0]
    write_json(json_folder / "tokenizer_config.json", {"eos_token": "<mask>"})
    prints.append(HuggingFaceTokenizer.from_folder(json_folder).fingerprint)
    prints.append(HuggingFaceTokenizer.from_folder(pair_folder).fingerprint)
    merges = (pair_folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    (pair_folder / "merges.txt").write_text("\n".join(merges[:-1]), encoding="utf-8")
    prints.append(HuggingFaceTokenizer.from_folder(pair_folder).fingerprint)
    assert len(set(prints)) == 4


# Damaged and hostile files.


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (b"", "download it again"),
        (b"{}", "download it again"),
        (b"null", "download it again"),
        (b"\xff\xfe", "download it again"),
        (b"<!DOCTYPE html>\n<html>not found</html>", "download it again"),
        (b'{"normalizer": ' * 100_000, "download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:d60a\nsize 7\n", "git lfs pull"),
    ],
)
def test_file_that_is_no_tokenizer_is_named_with_the_remedy(tmp_path, content, remedy):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=remedy) as error:
        load_tokenizer(tmp_path)
    assert str(path) in str(error.value)
    check_message(error, tmp_path)


@pytest.mark.parametrize("name", ["vocab.json", "added_tokens.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", ["{", "", "[1, 2]", "null", "[" * 100_000, "\udcff"])
def test_file_that_is_no_json_object_is_named(pair_folder, name, content):
    (pair_folder / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=f"{name} must be (JSON|a JSON object)") as error:
        load_tokenizer(pair_folder)
    check_message(error, pair_folder)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"extra_ids": Infinity}', "{"])
def test_load_names_a_config_that_is_no_json_object(json_folder, content):
    (json_folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json(:| must be)"):
        load_tokenizer(json_folder)


@pytest.mark.parametrize(
    "change",
    [
        {"vocab.json": '{"<pad>": "zero"}'},
        {"vocab.json": '{"<pad>": -1}'},
        {"vocab.json": '{"<pad>": 1e99}'},
        {"vocab.json": "{}"},
        {"merges.txt": ""},
        {"merges.txt": "#version: 0.2\nd e f\n"},
        {"merges.txt": "#version: 0.2\nd nothing\n"},
        {"merges.txt": "#version: 0.2\nd  e\n"},
    ],
)
def test_vocabulary_and_merges_that_do_not_fit_are_named(pair_folder, change):
    for name, content in change.items():
        (pair_folder / name).write_text(content)
    expected = r"vocab\.json must .*merges\.txt must .*got"
    with pytest.raises(ValueError, match=expected) as error:
        HuggingFaceTokenizer.from_folder(pair_folder)
    check_message(error, pair_folder)


@pytest.mark.parametrize(
    "added",
    [{"<x>": NUM_PIECES + 1}, {"<x>": -1}, {"e": 5}, {"e": 10**30}],
)
def test_added_tokens_with_other_ids_than_they_get_are_refused(pair_folder, added):
    write_json(pair_folder / "added_tokens.json", added)
    (pair_folder / "special_tokens_map.json").unlink()
    with pytest.raises(ValueError, match=r"added_tokens\.json must .*got") as error:
        HuggingFaceTokenizer.from_folder(pair_folder)
    check_message(error, pair_folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("added_tokens.json", {"<x>": None}),
        ("added_tokens.json", {"<x>": "second"}),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "<x>"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"320": {"content": None}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"320": "<x>"}}),
        ("tokenizer_config.json", {"additional_special_tokens": 5}),
        ("special_tokens_map.json", {"additional_special_tokens": [["<x>"]]}),
        ("special_tokens_map.json", {"x": {"content": []}}),
    ],
)
def test_added_tokens_in_no_known_form_are_refused(pair_folder, name, content):
    write_json(pair_folder / name, content)
    with pytest.raises(ValueError, match="must list added tokens as strings") as error:
        HuggingFaceTokenizer.from_folder(pair_folder)
    check_message(error, pair_folder)


@pytest.mark.parametrize("name", [*PAIR, "tokenizer.json", "tokenizer_config.json"])
def test_file_beyond_the_limit_is_refused(pair_folder, name, monkeypatch):
    monkeypatch.setattr(huggingface, "MAX_BYTES", 1 << 20)
    (pair_folder / name).write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(ValueError, match=f"{name} must have at most 1 MiB, got more") as error:
        HuggingFaceTokenizer.from_folder(pair_folder)
    check_message(error, pair_folder)


def bpe(**changes):
    return {"type": "BPE", "vocab": {"a": 0, "b": 1, "</s>": 2}, "merges": []} | changes


def template(*ids):
    sep, cls = ids
    return {
        "type": "RobertaProcessing",
        "sep": ["</s>", sep],
        "cls": ["<s>", cls],
        "trim_offsets": True,
        "add_prefix_space": False,
    }


CHARSMAP = base64.b64encode(b"\xff" * 9).decode()


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        # The library itself panics at these: the first when it reads them, the second in use.
        (
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}},
            "readable by",
        ),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "encode any text"),
        ({"model": bpe(vocab={"a": 0, "</s>": 4294967295})}, "1 to 10000000 ids"),
        ({"model": bpe(vocab={})}, "1 to 10000000 ids"),
        ({"post_processor": template(2, 77)}, "in the vocabulary, got"),
        ({"post_processor": template(4294967295, 0)}, "in the vocabulary, got"),
    ],
)
def test_hostile_tokenizer_is_refused(tmp_path, part, reason):
    content = {"version": "1.0", "added_tokens": [], "model": bpe(), **part}
    write_json(tmp_path / "tokenizer.json", content)
    with pytest.raises(ValueError, match=rf"tokenizer\.json.* must .*{reason}") as error:
        load_tokenizer(tmp_path).encode("ab")  # pyright: ignore[reportOptionalMemberAccess]
    check_message(error, tmp_path)


def test_text_that_the_library_fails_at_is_a_value_error(tmp_path):
    found = load_unigram(tmp_path, "</s>", "a", unk_id=None)
    with pytest.raises(ValueError, match=r"must encode any text.*'é") as error:
        found.encode("é\n" * 1000)
    check_message(error, tmp_path)


def test_ids_that_the_library_fails_at_are_a_value_error(tmp_path):
    strip = {"type": "Strip", "content": "b", "start": 0, "stop": 1 << 60}
    content = {"version": "1.0", "added_tokens": [], "model": bpe(), "decoder": strip}
    write_json(tmp_path / "tokenizer.json", content)
    found = HuggingFaceTokenizer.from_folder(tmp_path)
    with pytest.raises(ValueError, match="must decode its own ids") as error:
        found.decode([1, 1])
    check_message(error, tmp_path)


def use(folder):
    """Whether the folder's tokenizer loads and works; if not, it says so in the right form."""
    try:
        found = HuggingFaceTokenizer.from_folder(folder)
        ids = found.encode("a b<extra_id_0> é </s>")
        text = found.decode([*ids, 1, 5, 99])
    except ValueError as error:
        message = str(error)
    else:
        assert all(0 <= i < found.vocab_size for i in ids)
        assert isinstance(text, str)
        return True
    assert "\n" not in message
    assert len(message.replace(str(folder), "")) < 400
    return False


def test_tokenizer_cut_short_anywhere_is_refused(tmp_path):
    unigram("<unk>", "</s>", "▁a", "é").save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "tokenizer.json"
    content = path.read_bytes().rstrip()
    assert use(tmp_path)
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        assert not use(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", *PAIR, "added_tokens.json"])
def test_flipped_bytes_never_end_in_another_error(name, pair_folder, tmp_path):
    folder = pair_folder
    if name == "tokenizer.json":
        library = unigram("<unk>", "</s>", "▁a", "b", "é")
        library.add_tokens(["<extra_id_0>"])
        library.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
        library.save(str(folder / name))
    path = folder / name
    content = path.read_bytes()
    rng = random.Random(0)
    outcomes = []
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 1, 2, 8])):
            damaged[rng.randrange(len(damaged))] = rng.choice(b'09{}[]",:\\ aZ\x00\xff')
        path.write_bytes(damaged)
        outcomes.append(use(folder))
    assert not all(outcomes)
    path.write_bytes(content)
    assert use(folder)
