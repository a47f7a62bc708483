"""Load the tokenizer of a checkpoint folder, whatever its kind."""

import warnings
from pathlib import Path
from typing import Any

from t5jax.fileio import StrPath, read_json_object
from t5jax.tokenizers import huggingface
from t5jax.tokenizers.base import CONFIG_FILE, MAX_SENTINELS, Tokenizer
from t5jax.tokenizers.byte import ByteTokenizer
from t5jax.tokenizers.sentencepiece import MODEL_FILES, SentencePieceTokenizer


def load_tokenizer(folder: StrPath) -> Tokenizer | None:
    """Load the tokenizer of a checkpoint folder, ours or Hugging Face's.

    Only the tokenizer's files are used: the `config.json` of mT5 and ByT5 names the wrong class.
    A SentencePiece model takes precedence unless tokens were added to it, because its ids are
    exactly Google's, while those of other files can differ.

    Args:
      folder: checkpoint folder.
    Returns:
      The tokenizer; None if the folder has none.
    Raises:
      ValueError: a file is damaged; the message names it.

    Examples:
      >>> t5jax.tokenizers.ByteTokenizer().save("byt5")
      >>> t5jax.tokenizers.load_tokenizer("byt5").vocab_size
      259
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
                    f"{folder}: {len(added)} tokens that were added to {path.name} are ignored, "
                    f"such as {added[0]!r:.40}; to use them, add the tokenizer.json that "
                    "transformers' save_pretrained writes.",
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
            f"{path}: extra_ids must be a number in [0, {MAX_SENTINELS}], got {value!r:.40}; "
            "copy the file again."
        )
    return number
