"""Protocol of pre-training objectives."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from t5jax.data.batches import Batch


class ExampleLengths(NamedTuple):
    """Number of tokens in an example, the same for all examples of a run.

    Attributes:
      raw: number of text tokens that an example is made from.
      inputs: number of encoder tokens, EOS included.
      targets: number of decoder tokens, EOS included.

    Examples:
      >>> t5jax.data.objectives.SpanCorruptionConfig().lengths(512)
      ExampleLengths(raw=568, inputs=512, targets=114)
    """

    raw: int
    inputs: int
    targets: int


@runtime_checkable
class Objective(Protocol):
    """Protocol of an objective, which turns chunks of a token stream into inputs and targets.

    An objective is bound to its tokenizer at construction. Pre-training cuts the text into chunks
    of `lengths(input_length).raw` tokens and makes a new example from each chunk every epoch.

    Examples:
      >>> objective = t5jax.data.objectives.SpanCorruption(
      ...     t5jax.data.objectives.SpanCorruptionConfig(),
      ...     tokenizer=t5jax.tokenizers.ByteTokenizer(),
      ...     decoder_start_id=0,
      ... )
      >>> isinstance(objective, t5jax.data.objectives.Objective)
      True
    """

    def lengths(self, input_length: int) -> ExampleLengths:
        """Return the lengths of the examples.

        Args:
          input_length: maximum number of encoder tokens.
        Returns:
          Lengths of the text, inputs and targets.
        """
        ...

    def check(self, input_length: int) -> None:
        """Check that the tokenizer can express examples of these lengths.

        Args:
          input_length: maximum number of encoder tokens.
        Raises:
          ValueError: the tokenizer cannot express them.
        """
        ...

    def example(self, tokens: Int[np.ndarray, " S"], rng: np.random.Generator) -> Batch:
        """Make one example.

        Args:
          tokens: [S] ids of a chunk, S = `lengths(input_length).raw`.
          rng: the only source of randomness, so that examples are reproducible.
        Returns:
          Arrays named as in `Batch`, without a batch axis.
        """
        ...
