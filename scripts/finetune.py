"""Fine-tune a T5 on the tasks of a file: the same as `t5jax finetune`."""

import sys

from t5jax.cli.command import entry

if __name__ == "__main__":
    entry("finetune", *sys.argv[1:])
