"""Batches: their keys, stacking, padding and shifting."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

Batch = dict[str, np.ndarray]
"""A batch, or without the axis B an example; names and meanings are T5X's.

    encoder_input_tokens   [B, S] int32
    decoder_input_tokens   [B, T] int32, the targets shifted right after the start id
    decoder_target_tokens  [B, T] int32
    decoder_loss_weights   [B, T] float32, 0 on padding
    encoder_segment_ids    [B, S] int32, only if packed: numbers of pairs, 0 on padding
    decoder_segment_ids    [B, T] int32, only if packed
"""


def stack_examples(examples: Sequence[Batch]) -> Batch:
    """Stack examples of equal shapes into a batch."""
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def shift_right(targets: Int[np.ndarray, "*B T"], *, start_id: int) -> Int[np.ndarray, "*B T"]:
    """Return the decoder's input for targets: the start id, then all targets but the last.

    Example:
      >>> shift_right(np.array([5, 6, 1]), start_id=0).tolist()
      [0, 5, 6]
    """
    shifted = np.roll(targets, 1, axis=-1)
    shifted[..., 0] = start_id
    return shifted
