"""T5X checkpoints."""

from .load import (
    STEP_PATTERN as STEP_PATTERN,
    find_t5x as find_t5x,
    open_t5x as open_t5x,
)
from .save import (
    save_t5x as save_t5x,
)

__all__ = [
    "save_t5x",
]
