"""The interface of a pre-training objective."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from t5jax.data.batches import Batch


class ExampleLengths(NamedTuple):
    """Numbers of tokens in an example, the same in all examples of a run.

    Attributes:
      raw: Tokens of text that an example is made from.
      inputs: Tokens that the encoder reads, EOS included.
      targets: Tokens that the decoder writes, EOS included.
    """

    raw: int
    inputs: int
    targets: int


@runtime_checkable
class Objective(Protocol):
    """Turns chunks of a token stream into inputs and targets.

    An objective is bound to its tokenizer when it is constructed. Pre-training cuts the text into
    chunks of `lengths(input_length).raw` tokens and makes a new example of a chunk in every epoch.
    """

    def lengths(self, input_length: int) -> ExampleLengths:
        """Return the lengths of examples whose inputs have at most `input_length` tokens."""
        ...

    def check(self, input_length: int) -> None:
        """Raise ValueError if the tokenizer cannot express examples of these lengths."""
        ...

    def example(self, tokens: Int[np.ndarray, " S"], rng: np.random.Generator) -> Batch:
        """Make one example.

        Args:
          tokens: [S] ids of a chunk, S = `lengths(input_length).raw`.
          rng: the only source of randomness, so that an example can be made a second time.
        Returns:
          Arrays named as in `Batch`, without a batch axis.
        """
        ...
