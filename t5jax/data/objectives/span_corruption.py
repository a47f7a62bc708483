"""Span corruption: mask random spans of a text and predict them.

Implemented in numpy; the generator passed in is the only source of randomness.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int

from t5jax.data.batches import Batch, shift_right
from t5jax.data.objectives.objective import ExampleLengths
from t5jax.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruptionConfig:
    """Options of span corruption (arXiv:1910.10683, section 3.1.4).

    Attributes:
      density: fraction of tokens to mask, in (0, 1).
      mean_span: mean length of a masked span, in tokens, >= 1.

    Examples:
      >>> t5jax.data.objectives.SpanCorruptionConfig(density=0.15, mean_span=3.0).counts(512)
      (77, 26)
    """

    density: float = 0.15
    mean_span: float = 3.0

    def __post_init__(self):
        if not 0 < self.density < 1:
            raise ValueError(f"density must be in (0, 1), got {self.density}; T5 uses 0.15.")
        if not self.mean_span >= 1:
            raise ValueError(f"mean_span must be at least 1, got {self.mean_span}; T5 uses 3.0.")

    def counts(self, length: int) -> tuple[int, int]:
        """Return the number of masked tokens and of masked spans in a text.

        Args:
          length: number of tokens in the text, >= 2.
        Returns:
          (masked tokens, masked spans), at least 1 each.
        Raises:
          ValueError: `length` is below 2.
        """
        if length < 2:
            raise ValueError(f"length must be at least 2 tokens, got {length}; join short texts.")
        hidden = min(max(round(length * self.density), 1), length - 1)
        # Every masked span needs a kept token before it.
        spans = min(max(round(hidden / self.mean_span), 1), length - hidden)
        return hidden, spans

    def lengths(self, input_length: int) -> ExampleLengths:
        """Return the lengths of the longest example whose inputs fit in `input_length` tokens.

        With the defaults, 568 tokens of text give 512 inputs and 114 targets.

        Args:
          input_length: maximum number of encoder tokens.
        Returns:
          Lengths of the text, inputs and targets.
        Raises:
          ValueError: `input_length` is too small for two tokens of text.
        """
        lengths = self._lengths_of(2)
        if lengths.inputs > input_length:
            raise ValueError(f"input_length must be at least {lengths.inputs}, got {input_length}.")
        # Inputs grow with the text and exceed it by at most one token: start from there.
        longer = self._lengths_of(max(input_length - 1, 2))
        while longer.inputs <= input_length:
            lengths, longer = longer, self._lengths_of(longer.raw + 1)
        return lengths

    def _lengths_of(self, raw: int) -> ExampleLengths:
        hidden, spans = self.counts(raw)
        return ExampleLengths(raw, inputs=raw - hidden + spans + 1, targets=hidden + spans + 1)


class SpanCorruption:
    """T5's objective: sentinels replace random spans in the inputs, and the targets list the spans.

    Args:
      config: density and length of the spans.
      tokenizer: provides the sentinels and EOS.
      decoder_start_id: decoder start id.

    Examples:
      >>> objective = t5jax.data.objectives.SpanCorruption(
      ...     t5jax.data.objectives.SpanCorruptionConfig(),
      ...     tokenizer=t5jax.tokenizers.ByteTokenizer(),
      ...     decoder_start_id=0,
      ... )
      >>> example = objective.example(np.arange(3, 571), np.random.default_rng(0))
      >>> example["encoder_input_tokens"].shape, example["decoder_target_tokens"].shape
      ((512,), (114,))
    """

    def __init__(
        self, config: SpanCorruptionConfig, *, tokenizer: Tokenizer, decoder_start_id: int
    ):
        self._config = config
        self._sentinels = np.array(
            [tokenizer.sentinel_id(k) for k in range(tokenizer.num_sentinels)]
        )
        self._eos_id = tokenizer.eos_id
        self._decoder_start_id = decoder_start_id

    def lengths(self, input_length: int) -> ExampleLengths:
        """Return the lengths of the examples; see `SpanCorruptionConfig.lengths`.

        Args:
          input_length: maximum number of encoder tokens.
        Returns:
          Lengths of the text, inputs and targets.
        """
        return self._config.lengths(input_length)

    def check(self, input_length: int) -> None:
        """Check that the tokenizer has a sentinel for every span.

        Args:
          input_length: maximum number of encoder tokens.
        Raises:
          ValueError: examples have more spans than the tokenizer has sentinels.
        """
        _, spans = self._config.counts(self.lengths(input_length).raw)
        if spans > len(self._sentinels):
            raise ValueError(
                f"an input of {input_length} tokens must have at most {len(self._sentinels)} "
                f"spans, one per sentinel of the tokenizer, got {spans}; lower input_length "
                "or corruption.density, or raise corruption.mean_span."
            )

    def example(self, tokens: Int[np.ndarray, " S"], rng: np.random.Generator) -> Batch:
        """Corrupt one chunk.

        Args:
          tokens: [S] ids of text, S >= 2.
          rng: random generator for the spans.
        Returns:
          Inputs [I] and targets [T], named as in `Batch`, without a batch axis.
        """
        mask = noise_mask(len(tokens), config=self._config, rng=rng)
        inputs, targets = corrupt_spans(
            tokens, mask, sentinels=self._sentinels, eos_id=self._eos_id
        )
        return {
            "encoder_input_tokens": inputs,
            "decoder_input_tokens": shift_right(targets, start_id=self._decoder_start_id),
            "decoder_target_tokens": targets,
            "decoder_loss_weights": np.ones(targets.shape, np.float32),
        }


def noise_mask(
    length: int, *, config: SpanCorruptionConfig, rng: np.random.Generator
) -> Bool[np.ndarray, " S"]:
    """Sample a random-spans noise mask.

    Spans alternate between kept and masked; the first token is always kept and the last always
    masked. All ways to divide the tokens into these spans are equally likely (arXiv:1910.10683,
    section 3.1.4).

    Args:
      length: number of tokens in the text, >= 2.
      config: density and mean length of the spans.
      rng: random generator for the spans.
    Returns:
      [S] bool, True where masked.
    Raises:
      ValueError: `length` is below 2.
    """
    hidden, spans = config.counts(length)
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
    """Replace each masked span by a sentinel, and list the spans with their sentinels as targets.

        tokens   Thank you for inviting me to your party last week
        inputs   Thank you <0> me to your party <1> week </s>
        targets  <0> for inviting <1> last </s>

    Args:
      tokens: [S] ids of the text.
      mask: [S] bool, True where masked.
      sentinels: [K] ids of the sentinels for the first, second, ... span.
      eos_id: id appended to inputs and targets.
    Returns:
      Inputs [I] and targets [T], int32.
    Raises:
      ValueError: there are more spans than sentinels.
    """
    starts = mask & ~np.concatenate([[False], mask[:-1]])
    num_spans = int(starts.sum())
    if num_spans > len(sentinels):
        raise ValueError(
            f"the text must have one sentinel per masked span, got {num_spans} spans and "
            f"{len(sentinels)} sentinels; use a shorter input length, a lower density or longer "
            "spans."
        )
    inputs = tokens.astype(np.int32)
    inputs[starts] = sentinels[:num_spans]
    inputs = inputs[~mask | starts]
    # Index of the first token of each span among the masked tokens.
    begins = (np.cumsum(mask) - 1)[starts]
    targets = np.insert(tokens[mask].astype(np.int32), begins, sentinels[:num_spans])
    return np.append(inputs, np.int32(eos_id)), np.append(targets, np.int32(eos_id))


def _partition(total: int, parts: int, rng: np.random.Generator) -> Int[np.ndarray, " parts"]:
    """Split `total` into `parts` positive integers, all splits equally likely."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)
