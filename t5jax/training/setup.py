"""The tokenizer and the model that the options of a run name."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from t5jax.data.objectives import SpanCorruption
from t5jax.models import T5Config, pad_vocab, resolve_dtype
from t5jax.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer, train_tokenizer

# The name of ByT5's tokenizer, which needs no files.
BYTES = "bytes"


# The model of a run without arguments: minutes on two cores.
TINY = {
    "d_model": 128,
    "d_ff": 512,
    "d_kv": 32,
    "num_heads": 4,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "tie_embeddings": True,
    "scale_logits": True,
}


def setup_tokenizer(
    folder: Path,
    texts: Callable[[], Iterable[str]],
    *,
    source: str | None,
    vocab_size: int,
    say: Callable[[str], None],
) -> Tokenizer:
    """The run's own tokenizer if it has one already, else the one asked for.

    Args:
      folder: of the run.
      texts: to train one on, where there is no `source`.
      source: folder of a tokenizer, or 'bytes' for ByT5's.
      vocab_size: pieces of one that is trained.
      say: is told what takes a while.
    """
    found = load_tokenizer(folder) if folder.is_dir() else None
    if found is None and source == BYTES:
        found = ByteTokenizer()
    if found is None and source is not None:
        check_tokenizer(source)
        found = load_tokenizer(source)
    if found is None:
        say(f"training a vocabulary of {vocab_size} pieces")
        found = train_tokenizer(texts(), vocab_size=vocab_size)
    if found.pad_id == found.unk_id:
        raise ValueError(
            f"the tokenizer must have a padding id of its own, got {found.pad_id} for padding and "
            "for unknown text; train one with scripts/train_tokenizer.py."
        )
    return found


def check_sentinels(tokenizer: Tokenizer, *, corruption: SpanCorruption, input_length: int) -> None:
    """Raises ValueError unless there is a sentinel for each span that is hidden.

    Args:
      tokenizer: that has them.
      corruption: what is hidden.
      input_length: tokens the encoder reads.
    """
    length = corruption.raw_length(input_length)
    _, spans = corruption.counts(length)
    if spans > tokenizer.num_sentinels:
        raise ValueError(
            f"an input of {input_length} tokens must hide at most {tokenizer.num_sentinels} "
            f"spans, one for each sentinel of the tokenizer, got {spans}; lower input_length or "
            "corruption.density, or raise corruption.mean_span."
        )


def check_files(model: str, tokenizer: str | None) -> None:
    """Raises, before anything slow is done, if a file that was named is not there.

    Raises:
      FileNotFoundError: `model` is a JSON file, or `tokenizer` a folder, that does not exist.
      ValueError: the JSON file is not that of a model.
    """
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    if model.endswith(".json"):
        if not Path(model).is_file():
            raise FileNotFoundError(
                f"model must be a preset or a JSON file, got {model}, which does not exist."
            )
        T5Config.from_file(model)


def check_tokenizer(tokenizer: str) -> None:
    """Raises FileNotFoundError unless a tokenizer of this name is there."""
    if tokenizer == BYTES:
        return
    if not Path(tokenizer).is_dir():
        raise FileNotFoundError(
            f"tokenizer must be a folder with spiece.model, or 'bytes', got {tokenizer}, which "
            "does not exist; leave it out to train one on the corpus."
        )
    if load_tokenizer(tokenizer) is None:
        raise FileNotFoundError(
            f"{tokenizer} must hold spiece.model or a ByT5 tokenizer_config.json, and "
            "holds neither; leave --tokenizer out to train one on the corpus."
        )


def setup_model(
    name: str, tokenizer: Tokenizer, *, dtype: str, changes: dict[str, Any]
) -> T5Config:
    """The model of a name: 'tiny', a published size, or a JSON file.

    Args:
      name: of the model.
      tokenizer: whose vocabulary it has.
      dtype: to compute in; 'auto' is that of the file, or of the device.
      changes: fields to have instead.
    Raises:
      ValueError: the vocabulary of a JSON file is not the tokenizer's.
    """
    if name.endswith(".json"):
        given = {} if dtype == "auto" else {"dtype": dtype}
        found = check_vocabulary(T5Config.from_file(name), name, tokenizer)
        return found.replace(**{**changes, **given})
    fields = {
        **changes,
        "pad_id": tokenizer.pad_id,
        "eos_id": tokenizer.eos_id,
        "decoder_start_id": tokenizer.pad_id,
        "dtype": resolve_dtype(dtype),
        "vocab_size": pad_vocab(tokenizer.vocab_size),
    }
    if name == "tiny":
        return T5Config(**{**TINY, **fields})
    return T5Config.preset(name, **fields)


def check_vocabulary(model: T5Config, source: str, tokenizer: Tokenizer) -> T5Config:
    """The model, if its vocabulary is the tokenizer's."""
    if model.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"{source}: vocab_size must be at least the tokenizer's {tokenizer.vocab_size}, "
            f"got {model.vocab_size}; {pad_vocab(tokenizer.vocab_size)} fits."
        )
    for name in ("pad_id", "eos_id"):
        if getattr(model, name) != getattr(tokenizer, name):
            raise ValueError(
                f"{source}: {name} must be the tokenizer's {getattr(tokenizer, name)}, "
                f"got {getattr(model, name)}."
            )
    return model
