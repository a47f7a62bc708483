"""The command line."""

from .main import (
    entry as entry,
    run_command as run_command,
)

__all__: list[str] = []
