"""From documents to batches: tokens on disk, equal chunks, shuffled, corrupted and stacked.

Example `i` of epoch `e` depends on (seed, e, i) alone, so a run can stop anywhere and go on.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    pass


# Names and meanings are T5X's:
#   encoder_input_tokens   [B, S] int32
#   decoder_input_tokens   [B, T] int32, the targets shifted right behind the start id
#   decoder_target_tokens  [B, T] int32
#   decoder_loss_weights   [B, T] float32, 0 on padding
Batch = dict[str, np.ndarray]


def stack_examples(examples: Sequence[Batch]) -> Batch:
    return {name: np.stack([e[name] for e in examples]) for name in examples[0]}


def shift_right(targets: Int[np.ndarray, "*B T"], *, start_id: int) -> Int[np.ndarray, "*B T"]:
    """What the decoder reads while it is to write `targets`: the start id, then all but one."""
    shifted = np.roll(targets, 1, axis=-1)
    shifted[..., 0] = start_id
    return shifted
