"""T5X checkpoints."""

from .load import (
    STEP_PATTERN as STEP_PATTERN,
)
from .load import (
    find_t5x as find_t5x,
)
from .load import (
    open_t5x as open_t5x,
)
from .save import (
    save_t5x as save_t5x,
)
