"""Save, restore, retain and average checkpoints."""

from .averaging import (
    CheckpointChoice as CheckpointChoice,
)
from .averaging import (
    average_checkpoints as average_checkpoints,
)
from .averaging import (
    choose_checkpoints as choose_checkpoints,
)
from .averaging import (
    is_best as is_best,
)
from .manager import (
    CheckpointManager as CheckpointManager,
)
from .manager import (
    complete_steps as complete_steps,
)
from .manager import (
    recorded_checksum as recorded_checksum,
)
from .trees import (
    ArrayMismatch as ArrayMismatch,
)
from .trees import (
    check_shapes as check_shapes,
)
from .trees import (
    checksum as checksum,
)
from .trees import (
    save_tree as save_tree,
)
from .trees import (
    shapes_by_path as shapes_by_path,
)
