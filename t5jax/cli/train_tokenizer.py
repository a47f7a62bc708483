"""`t5jax train-tokenizer`: a SentencePiece vocabulary with T5's settings."""

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from t5jax.data import DataConfig, corpus_documents, read_corpus
from t5jax.fileio import atomic_folder
from t5jax.tokenizers import train_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTokenizer:
    """Train a SentencePiece vocabulary and save it where `t5jax.load` finds it.

    `--config FILE` reads options from a YAML or JSON file.

    Attributes:
      output: Folder to write spiece.model and tokenizer_config.json to; must be new or empty.
      data: Text to train on, without its held-out part.
      vocab_size: Number of pieces, not counting sentinels.
      num_sentinels: Number of sentinels, the most spans that one example can mask.
      character_coverage: Fraction of the characters in the text that get a piece; the rest is
        unknown to the model.
      max_lines: Maximum number of lines to train on, evenly spaced.
    """

    output: Annotated[Path, arg(metavar="FOLDER")]
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    vocab_size: int = 32000
    num_sentinels: int = 100
    character_coverage: float = 0.99995
    max_lines: int = 1_000_000


def train_and_save(config: TrainTokenizer) -> None:
    """Train and save a vocabulary, and print how well it fits held-out text.

    Args:
      config: options of the command.
    Raises:
      FileExistsError: the folder holds something.
      ValueError, OSError: bad options or text.
    """
    with atomic_folder(config.output) as output:
        seen, heldout = read_corpus(config.data)
        vocabulary = train_tokenizer(
            corpus_documents(seen),
            vocab_size=config.vocab_size,
            num_sentinels=config.num_sentinels,
            character_coverage=config.character_coverage,
            max_lines=config.max_lines,
        )
        vocabulary.save(output)
    sample = list(itertools.islice(corpus_documents(heldout), 1000))
    ids = [vocabulary.encode(text) for text in sample]
    num_ids = max(sum(map(len, ids)), 1)
    unknown = sum(row.count(vocabulary.unk_id) for row in ids)
    print(
        f"{config.output}: {vocabulary.vocab_size} ids, {vocabulary.num_sentinels} of them "
        f"sentinels; {sum(map(len, sample)) / num_ids:.2f} characters per id and "
        f"{unknown / num_ids:.2%} unknown in held-out text"
    )
