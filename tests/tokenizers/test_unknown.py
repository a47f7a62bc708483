import pytest

from t5jax.tokenizers import ByteTokenizer, count_unknown, train_tokenizer

WORDS = [
    "the",
    "cat",
    "dog",
    "runs",
    "sits",
    "on",
    "a",
    "mat",
    "and",
    "it",
    "is",
    "red",
    "blue",
    "name",
    "color",
    "value",
    "of",
]


@pytest.fixture(scope="module")
def tokenizer():
    texts = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
    return train_tokenizer(texts * 5, vocab_size=36)


def counts(tokenizer, texts):
    return count_unknown(texts, [tokenizer.encode(text) for text in texts], tokenizer=tokenizer)


def test_counts_are_those_of_decoding(tokenizer):
    texts = [*WORDS, *("{ name : " + word + " }" for word in WORDS), "red;"]
    found = counts(tokenizer, texts)
    # What does not come back was not spelled.
    changed = [text for text in texts if tokenizer.decode(tokenizer.encode(text)) != text]
    assert found.unknown_texts == len(changed) == len(WORDS) + 1
    assert found.characters == ["{", ":", "}", ";"]
    assert found.unknown_tokens == 3 * len(WORDS) + 1
    assert found.lost_whitespace == 0
    assert f"{len(changed)} of {len(texts)} have unknown tokens" in str(found)


def test_line_breaks_that_become_spaces_are_counted(tokenizer):
    found = counts(tokenizer, ["the\ncat", "the cat", "a\tmat"])
    assert (found.unknown_texts, found.lost_whitespace) == (0, 2)


def test_bytes_spell_everything():
    found = counts(ByteTokenizer(), ["{ name : 太陽 }\n", "\t~<>"])
    assert (found.unknown_texts, found.lost_whitespace, found.characters) == (0, 0, [])


def test_no_texts_have_no_unknown_tokens(tokenizer):
    assert counts(tokenizer, []).unknown_texts == 0
