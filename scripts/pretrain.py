"""Pre-trains a T5 by span corruption: `python scripts/pretrain.py --help`."""

from t5jax import cli, pretrain

if __name__ == "__main__":
    cli.main(pretrain.PretrainConfig, pretrain.run)
