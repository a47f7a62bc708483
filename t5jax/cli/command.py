"""Entry point of the `t5jax` command and of `scripts/`, apart from `main` for its side effect.

Python may lose the exception of a Ctrl-C while it imports a module.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `main` handles it

from t5jax.cli.main import entry as entry  # noqa: E402
