"""The command line."""

from .main import (
    run_command as run_command,
)
from .pretrain import (
    pretrain_and_show as pretrain_and_show,
)

__all__: list[str] = []
