"""Train a SentencePiece vocabulary with T5's settings: the same as `t5jax train-tokenizer`."""

import sys

from t5jax.cli.command import entry

if __name__ == "__main__":
    entry("train-tokenizer", *sys.argv[1:])
