"""Text <-> ids: T5's SentencePiece vocabularies, ByT5's bytes, and training a new vocabulary.

`load_tokenizer` also finds the vocabularies of `fast_tokenizer`.
"""

import json
import warnings
from pathlib import Path

from t5jax.tokenizers import huggingface
from t5jax.tokenizers.base import CONFIG_FILE, MAX_SENTINELS, StrPath, Tokenizer
from t5jax.tokenizers.byte import ByteTokenizer
from t5jax.tokenizers.sentencepiece import MODEL_FILES, SentencePieceTokenizer


def load_tokenizer(folder: StrPath) -> Tokenizer | None:
    """The tokenizer in a checkpoint folder, ours or Hugging Face's; None if it has no such file.

    Only the tokenizer's own files count: the `config.json` of mT5 and ByT5 names the wrong class.
    A SentencePiece model comes first, for its ids are Google's own where other files' nearly are,
    unless tokens were added to it.

    Raises:
      ValueError: a damaged file, which the message names.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        kind, num_sentinels = config.get("tokenizer_class"), int(config.get("extra_ids", 100))
        if not 0 <= num_sentinels <= MAX_SENTINELS:
            raise ValueError(f"{num_sentinels} extra_ids, more than {MAX_SENTINELS} or negative")
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} must be a JSON object, got {error}; copy it again.") from error
    if kind == "ByT5Tokenizer":
        return ByteTokenizer()
    for path in (Path(folder) / name for name in MODEL_FILES):
        if path.is_file():
            found = SentencePieceTokenizer.from_file(path, num_sentinels=num_sentinels)
            added = huggingface.added_tokens(folder, first=found.vocab_size)
            if added and huggingface.holds_tokenizer(folder):
                break
            if added:
                warnings.warn(
                    f"{folder}: {len(added)} tokens that were added to {path.name} are not known, "
                    f"such as {added[0]!r:.40}; they need tokenizer.json, which transformers' "
                    "save_pretrained writes.",
                    stacklevel=2,
                )
            return found
    if huggingface.holds_tokenizer(folder):
        return huggingface.HuggingFaceTokenizer.from_folder(folder)
    return None
