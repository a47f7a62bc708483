"""Span corruption: hide random spans of a text; the target is what was hidden.

Everything here is numpy on token ids, and random only through the generator that is passed in.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from t5jax.tokenizers import Tokenizer

if TYPE_CHECKING:
    pass
from t5jax.data.batch import Batch, shift_right


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption:
    """How much to hide, and in spans of what length.  (arXiv:1910.10683, section 3.1.4)"""

    density: float = 0.15
    """Fraction of tokens hidden, in (0, 1)."""
    mean_span: float = 3.0
    """Mean length of a hidden span, in tokens, at least 1."""

    def __post_init__(self):
        if not 0 < self.density < 1:
            raise ValueError(f"density must be in (0, 1), got {self.density}; T5 uses 0.15.")
        if not self.mean_span >= 1:
            raise ValueError(f"mean_span must be at least 1, got {self.mean_span}; T5 uses 3.0.")

    def counts(self, length: int) -> tuple[int, int]:
        """Hidden tokens, and spans they come in, for a text of `length` >= 2 tokens."""
        if length < 2:
            raise ValueError(f"length must be at least 2 tokens, got {length}; join short texts.")
        hidden = min(max(round(length * self.density), 1), length - 1)
        # Every hidden span needs a kept one before it.
        spans = min(max(round(hidden / self.mean_span), 1), length - hidden)
        return hidden, spans

    def lengths(self, length: int) -> tuple[int, int]:
        """Input and target length, EOS included, of a text of `length` tokens."""
        hidden, spans = self.counts(length)
        return length - hidden + spans + 1, hidden + spans + 1

    def raw_length(self, input_length: int) -> int:
        """The longest text whose input fits in `input_length` tokens, such as 568 for 512.

        Raises:
          ValueError: not even two tokens fit.
        """
        fits = 2
        if self.lengths(fits)[0] > input_length:
            raise ValueError(
                f"input_length must be at least {self.lengths(fits)[0]}, got {input_length}."
            )
        too_long = 4
        while self.lengths(too_long)[0] <= input_length:
            too_long *= 2
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if self.lengths(middle)[0] <= input_length:
                fits = middle
            else:
                too_long = middle
        return fits


def noise_mask(
    length: int, *, corruption: SpanCorruption, rng: np.random.Generator
) -> Bool[np.ndarray, " S"]:
    """Chooses which tokens to hide, in random spans.

    Spans alternate kept, hidden, kept, hidden, ...; the first token is always kept and the last
    always hidden.  All ways to divide the tokens into that many spans are equally likely.
    (arXiv:1910.10683, section 3.1.4)

    Args:
      length: tokens in the text, at least 2.
      corruption: density and span length.
      rng: source of the choice.
    Returns:
      [S] bool, True where hidden.
    Raises:
      ValueError: `length` is below 2.
    """
    hidden, spans = corruption.counts(length)
    span_lengths = np.empty(2 * spans, np.int64)
    span_lengths[0::2] = _partition(length - hidden, spans, rng)
    span_lengths[1::2] = _partition(hidden, spans, rng)
    return np.repeat(np.arange(2 * spans) % 2 == 1, span_lengths)


def corrupt_spans(
    tokens: Int[np.ndarray, " S"],
    mask: Bool[np.ndarray, " S"],
    *,
    sentinels: Int[np.ndarray, " K"],
    eos_id: int,
) -> tuple[Int[np.ndarray, " I"], Int[np.ndarray, " T"]]:
    """Replaces each hidden span by a sentinel; the targets list the spans behind their sentinels.

        tokens   Thank you for inviting me to your party last week
        inputs   Thank you <0> me to your party <1> week </s>
        targets  <0> for inviting <1> last </s>

    Args:
      tokens: ids of the text.
      mask: True where hidden.
      sentinels: ids of the first, second, ... span's sentinel.
      eos_id: appended to both.
    Returns:
      Inputs and targets, int32.
    Raises:
      ValueError: more spans than sentinels.
    """
    starts = mask & ~np.concatenate([[False], mask[:-1]])
    num_spans = int(starts.sum())
    if num_spans > len(sentinels):
        raise ValueError(
            f"the text has {num_spans} hidden spans but the tokenizer has only {len(sentinels)} "
            "sentinels; use a shorter input length, a lower density or longer spans."
        )
    inputs = tokens.astype(np.int32)
    inputs[starts] = sentinels[:num_spans]
    inputs = inputs[~mask | starts]
    # Where, among the hidden tokens, each span begins.
    begins = (np.cumsum(mask) - 1)[starts]
    targets = np.insert(tokens[mask].astype(np.int32), begins, sentinels[:num_spans])
    return np.append(inputs, np.int32(eos_id)), np.append(targets, np.int32(eos_id))


def _partition(total: int, parts: int, rng: np.random.Generator) -> Int[np.ndarray, " parts"]:
    """Divides `total` into `parts` positive summands, all divisions equally likely."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


def span_corruption_example(
    tokens: Int[np.ndarray, " S"],
    *,
    tokenizer: Tokenizer,
    corruption: SpanCorruption,
    decoder_start_id: int,
    rng: np.random.Generator,
) -> Batch:
    """One corrupted chunk with T5X's keys, without a batch axis."""
    sentinels = np.array([tokenizer.sentinel_id(k) for k in range(tokenizer.num_sentinels)])
    mask = noise_mask(len(tokens), corruption=corruption, rng=rng)
    inputs, targets = corrupt_spans(tokens, mask, sentinels=sentinels, eos_id=tokenizer.eos_id)
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": shift_right(targets, start_id=decoder_start_id),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": np.ones(targets.shape, np.float32),
    }
