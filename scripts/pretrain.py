"""Pre-trains a T5 by span corruption: `python scripts/pretrain.py --help`."""

from t5jax.cli import run_command
from t5jax.recipes import PretrainConfig, pretrain
from t5jax.runtime import keep_memory

if __name__ == "__main__":
    keep_memory()
    run_command(PretrainConfig, pretrain)
