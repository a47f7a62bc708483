"""Train a SentencePiece vocabulary with T5's settings and save it where `t5jax.load` finds it.

python scripts/train_tokenizer.py --data.path 'texts/*.txt' --vocab-size 32000 --output my-tokenizer
"""

import dataclasses
import itertools
from pathlib import Path

from t5jax.cli import run_command
from t5jax.data import DataConfig, corpus_documents, read_corpus
from t5jax.fileio import atomic_folder
from t5jax.tokenizers import train_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to learn from, and what to make."""

    output: Path
    """Folder to write: spiece.model and tokenizer_config.json.  It must be new or empty."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    """Where the text comes from; the vocabulary is learnt from what is not held out."""
    vocab_size: int = 32000
    """Pieces, sentinels not counted."""
    num_sentinels: int = 100
    """Sentinels after the pieces; one example can hide that many spans."""
    character_coverage: float = 0.99995
    """Share of the text's characters that get an id; the rest is unknown to the model."""
    max_lines: int = 1_000_000
    """Lines to learn from; of more, evenly spaced ones are taken."""


def train(config: Config) -> None:
    """Train, save, and say how well the vocabulary fits text that it has not seen."""
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


if __name__ == "__main__":
    run_command(Config, train, description=__doc__)
