"""Pre-train a T5 by span corruption: the same as `t5jax pretrain`."""

import sys

from t5jax.cli.command import entry

if __name__ == "__main__":
    entry("pretrain", *sys.argv[1:])
