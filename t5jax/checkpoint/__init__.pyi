"""Save, restore, retain and average checkpoints."""

from .averaging import (
    CheckpointChoice as CheckpointChoice,
    average_checkpoints as average_checkpoints,
    choose_checkpoints as choose_checkpoints,
    is_best as is_best,
)
from .manager import (
    CheckpointManager as CheckpointManager,
    complete_steps as complete_steps,
    recorded_checksum as recorded_checksum,
)
from .trees import (
    ArrayMismatch as ArrayMismatch,
    check_shapes as check_shapes,
    checksum as checksum,
    save_tree as save_tree,
    shapes_by_path as shapes_by_path,
)

__all__ = [
    "CheckpointManager",
    "average_checkpoints",
]
