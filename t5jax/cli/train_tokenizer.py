"""`t5jax train-tokenizer`: train a SentencePiece tokenizer with T5's settings."""

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
    """Train a SentencePiece tokenizer with T5's settings.

    `--config FILE` reads options from a YAML or JSON file.

    Attributes:
      output: new or empty folder for spiece.model and tokenizer_config.json.
      data: training text; its held-out part is excluded.
      vocab_size: number of pieces, excluding sentinels.
      num_sentinels: number of sentinels; limits the masked spans per example.
      character_coverage: fraction of the characters in the text that get a piece; the others become
        unknown.
      max_lines: maximum number of lines to train on, evenly spaced.
    """

    output: Annotated[Path, arg(metavar="FOLDER")]
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    vocab_size: int = 32000
    num_sentinels: int = 100
    character_coverage: float = 0.99995
    max_lines: int = 1_000_000


def train_and_save(config: TrainTokenizer) -> None:
    """Train and save a tokenizer, and print its statistics on held-out text.

    Args:
      config: options of the command.
    Raises:
      FileExistsError: the folder is not empty.
      ValueError, OSError: the options or the text are invalid.
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
