"""The command line."""

from .main import (
    run_command as run_command,
)
