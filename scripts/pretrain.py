"""Pre-trains a T5 by span corruption: `python scripts/pretrain.py --help`."""

from t5jax import cli, pretrain
from t5jax.runtime import keep_memory

if __name__ == "__main__":
    keep_memory()
    cli.main(pretrain.PretrainConfig, pretrain.run)
