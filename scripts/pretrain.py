"""Pre-trains a T5 by span corruption: `python scripts/pretrain.py --help`."""

from t5jax.cli import pretrain_and_show, run_command
from t5jax.recipes import PretrainConfig
from t5jax.runtime import keep_memory

if __name__ == "__main__":
    keep_memory()
    run_command(PretrainConfig, pretrain_and_show)
