"""Pre-trains a T5 by span corruption: `python scripts/pretrain.py --help`."""

from t5jax import cli, heap, pretrain

if __name__ == "__main__":
    heap.keep_memory()
    cli.main(pretrain.PretrainConfig, pretrain.run)
