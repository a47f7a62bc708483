import pytest
from helpers.vocabularies import GENUINE, LINES

from t5jax.tokenizers.sentencepiece import SentencePieceTokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tiny():
    return train_tokenizer(LINES, vocab_size=70, num_sentinels=20)


@pytest.fixture(scope="session")
def genuine():
    if not GENUINE.is_dir():
        pytest.skip("needs ../shared/data/t5_tokenizer")
    return SentencePieceTokenizer.from_file(GENUINE / "spiece.model")
