import pytest

from t5jax.tokenizers import (
    ByteTokenizer,
    SentencePieceTokenizer,
    check_same_tokenizer,
    train_tokenizer,
)

TEXTS = ["the cat sees a dog", "a dog sees the cat", "name red blue"] * 20


def test_same_tokenizer_is_accepted_wherever_it_is_stored(tmp_path):
    tokenizer = train_tokenizer(TEXTS, vocab_size=22)
    tokenizer.save(tmp_path)
    loaded = SentencePieceTokenizer.from_file(tmp_path / "spiece.model")
    check_same_tokenizer(loaded, tokenizer, where="run")
    check_same_tokenizer(ByteTokenizer(), ByteTokenizer(), where="run")


def test_other_tokenizers_are_refused_with_the_first_difference():
    one, other = (train_tokenizer(texts, vocab_size=22) for texts in (TEXTS, TEXTS + ["sun"] * 300))
    with pytest.raises(ValueError, match=r"that of run, .*: id \d+ is '.*' instead of '"):
        check_same_tokenizer(other, one, where="run")
    with pytest.raises(ValueError, match=r"got bytes: 259 ids instead of 122; leave out"):
        check_same_tokenizer(ByteTokenizer(), one, where="run")
