import jax
import numpy as np
import pytest

from t5jax.models.config import T5Config
from t5jax.models.t5 import init_params
from t5jax.recipes.infilling import hide_words, plain_sentences, read_spans, show_blanks
from t5jax.text2text import Text2Text
from t5jax.tokenizers.byte import ByteTokenizer

SENTENCE = "The quick brown fox jumps over the lazy dog while the old cat sleeps in the sun."


def test_sentences_are_plain_and_come_from_different_documents():
    documents = [
        "def f(x): return {x}\n\n" + SENTENCE + " " + SENTENCE.replace("fox", "hen"),
        "too short. Nothing here!",
        SENTENCE,
        "Another plain sentence that is long enough to be\nfound across a line break, surely.",
    ]
    found = plain_sentences(documents, count=5)
    assert found == [
        SENTENCE,
        "Another plain sentence that is long enough to be found across a line break, surely.",
    ]


def test_hide_can_be_undone():
    for seed in range(20):
        text, hidden = hide_words(
            SENTENCE, num_blanks=2, words_in_blank=2, rng=np.random.default_rng(seed)
        )
        assert "<extra_id_0> <extra_id_1>" not in text
        assert [len(words.split()) for words in hidden] == [2, 2]
        for k, words in enumerate(hidden):
            text = text.replace(f"<extra_id_{k}>", words)
        assert text == SENTENCE


def test_hide_refuses_a_sentence_too_short_for_its_blanks():
    with pytest.raises(ValueError, match="more than 6 words for 2 blanks of 2, got 4"):
        hide_words(
            "One two three four", num_blanks=2, words_in_blank=2, rng=np.random.default_rng(0)
        )


def test_read_spans_stops_at_eos_and_keeps_numbers():
    bytes_ = ByteTokenizer()
    first, second = bytes_.sentinel_id(0), bytes_.sentinel_id(1)
    ids = [first, *bytes_.encode("ab"), second, *bytes_.encode("c"), 1, *bytes_.encode("ignored")]
    assert read_spans(ids, bytes_, count=2) == {0: "ab", 1: "c"}
    assert read_spans(ids, bytes_, count=1) == {0: "ab"}


def test_read_spans_leaves_characters_that_share_a_byte_with_a_far_sentinel_alone():
    bytes_ = ByteTokenizer()
    text = "déjà"
    assert {bytes_.sentinel_id(k) for k in range(3, 100)} & set(bytes_.encode(text))
    ids = [bytes_.sentinel_id(0), *bytes_.encode(text), 1]
    assert read_spans(ids, bytes_, count=2) == {0: text}


def test_show_puts_the_truth_beside_the_guess():
    config = T5Config(
        vocab_size=384, d_model=8, d_ff=8, num_heads=1, num_encoder_layers=1, num_decoder_layers=1
    )
    t5 = Text2Text(config, init_params(config, jax.random.key(0)), ByteTokenizer())
    (shown,) = show_blanks(t5, [SENTENCE], seed=0)
    assert shown.count(" -> ") == 2
    assert shown.startswith("The ")
    assert shown.endswith("sun.")
