"""Tokenizer loading."""

import warnings
from pathlib import Path
from typing import Any

from t5jax.fileio import StrPath, read_json_object
from t5jax.tokenizers import huggingface
from t5jax.tokenizers.base import CONFIG_FILE, MAX_SENTINELS, Tokenizer
from t5jax.tokenizers.byte import ByteTokenizer
from t5jax.tokenizers.sentencepiece import MODEL_FILES, SentencePieceTokenizer


def load_tokenizer(folder: StrPath) -> Tokenizer | None:
    """Load the tokenizer of a checkpoint folder, saved by t5jax or Hugging Face.

    A SentencePiece model takes precedence over tokenizer.json unless tokens were added to it: its
    ids are exactly Google's, those of a conversion may differ.  `config.json` is ignored, as it
    names the wrong class for mT5 and ByT5.

    Args:
      folder: checkpoint folder.
    Returns:
      The tokenizer, or None if the folder has none.
    Raises:
      ValueError: a file is damaged; the message names it.

    Example:
      >>> from t5jax.tokenizers import ByteTokenizer, load_tokenizer
      >>> ByteTokenizer().save("model")
      >>> load_tokenizer("model").encode("T5")
      [87, 56]
    """
    path = Path(folder) / CONFIG_FILE
    config = read_json_object(path) if path.is_file() else {}
    num_sentinels = _num_sentinels(path, config.get("extra_ids", 100))
    if config.get("tokenizer_class") == "ByT5Tokenizer":
        return ByteTokenizer()
    for path in (Path(folder) / name for name in MODEL_FILES):
        if path.is_file():
            tokenizer = SentencePieceTokenizer.from_file(path, num_sentinels=num_sentinels)
            added = huggingface.added_tokens(folder, first=tokenizer.vocab_size)
            if added and huggingface.holds_tokenizer(folder):
                break
            if added:
                warnings.warn(
                    f"{folder}: ignoring {len(added)} tokens added to {path.name}, such as "
                    f"{added[0]!r:.40}; save tokenizer.json with transformers' save_pretrained "
                    "to use them.",
                    stacklevel=2,
                )
            return tokenizer
    if huggingface.holds_tokenizer(folder):
        return huggingface.HuggingFaceTokenizer.from_folder(folder)
    return None


def _num_sentinels(path: Path, value: Any) -> int:
    try:
        number = int(value)
    except (ValueError, TypeError, OverflowError):
        number = -1
    if not 0 <= number <= MAX_SENTINELS:
        raise ValueError(
            f"{path}: extra_ids must be an integer in [0, {MAX_SENTINELS}], got {value!r:.40}; "
            "copy the file again."
        )
    return number
