"""Generated sequences with their text, log-probabilities, alternatives and cross-attention."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from t5jax.generation.config import GenerationConfig
from t5jax.generation.detokenizer import detokenize
from t5jax.generation.engine import FinishReason, GeneratedSequence
from t5jax.generation.scoring import Scorer, TokenScores
from t5jax.tokenizers import Tokenizer


class TokenAlternative(NamedTuple):
    """A token that could have been generated.

    Attributes:
      log_prob: In nats.
    """

    id: int
    log_prob: float


class GenerationOutput(NamedTuple):
    """One output of `Text2Text.generate_outputs`.

    Attributes:
      ids: With the prefix, and with EOS unless something else ended it.
      finish_reason: Why it ended: "eos", the limit ("length"), a stop string or an automaton's end
        ("stop"), or because constraints left no token to generate ("dead_end"), and then there is
        no text.
      score: Ranking key: `log_prob`, in a beam search divided by the penalty of the length.
      log_prob: Log-probability of all ids after the prefix, in nats; in a beam search as penalties
        for repetition and forced tokens have left it.
      token_log_probs: Log-probability of each id, in nats, by the model alone: without temperature
        and constraints.
      alternatives: The most likely tokens in the place of each id, best first, if requested.
      cross_attention: Attention of each id to each input token, in every layer and head, if
        requested.
    """

    text: str
    ids: list[int]
    finish_reason: FinishReason
    score: float
    log_prob: float
    token_log_probs: list[float]
    alternatives: list[list[TokenAlternative]] | None
    cross_attention: Float[np.ndarray, "L N T S"] | None


class StreamEvent(NamedTuple):
    """A piece of an output that `Text2Text.stream` yields.

    Attributes:
      row: Position of the input in `texts`.
      text: The next piece of text; the last one may be empty.
      finish_reason: Why the output ended, in its last piece.
    """

    row: int
    text: str
    finish_reason: FinishReason | None


class RankedCandidate(NamedTuple):
    """A candidate of `Text2Text.rank`.

    Attributes:
      place: Position in the list of candidates.
      log_prob: Log-probability of all its tokens and EOS, in nats.
    """

    text: str
    place: int
    log_prob: float


def make_outputs(
    inputs: Sequence[Sequence[int]],
    sequences: Sequence[Sequence[GeneratedSequence]],
    *,
    config: GenerationConfig,
    scorer: Scorer,
    tokenizer: Tokenizer,
    num_alternatives: int,
    cross_attention: bool,
) -> list[list[GenerationOutput]]:
    """Score generated sequences, all tokens at once, and make outputs of them.

    Args:
      inputs: ids of every input.
      sequences: sequences generated for each input.
      config: options of the generation.
      scorer: of the model.
      tokenizer: decodes the ids.
      num_alternatives: number of most likely tokens to list in the place of each id.
      cross_attention: compute attention weights.
    Returns:
      An output for every sequence.
    """
    flat = [sequence for row in sequences for sequence in row]
    targets = [sequence.ids for sequence in flat]
    sources = [ids for ids, row in zip(inputs, sequences, strict=True) for _ in row]
    scores = scorer.score_tokens(
        sources, targets, batch_size=config.batch_size, num_best=num_alternatives
    )
    attention: Sequence[np.ndarray | None] = [None] * len(flat)
    if cross_attention:
        attention = scorer.cross_attention(sources, targets, batch_size=config.batch_size)
    outputs = (
        _make_output(
            *parts, config=config, tokenizer=tokenizer, with_alternatives=num_alternatives > 0
        )
        for parts in zip(flat, scores, attention, strict=True)
    )
    return [[next(outputs) for _ in row] for row in sequences]


def _make_output(
    sequence: GeneratedSequence,
    scores: TokenScores,
    attention: Float[np.ndarray, "L N T S"] | None,
    *,
    config: GenerationConfig,
    tokenizer: Tokenizer,
    with_alternatives: bool,
) -> GenerationOutput:
    log_prob = sequence.log_prob
    if np.isnan(log_prob):
        log_prob = float(scores.log_probs[sequence.prefix_len :].sum())
    alternatives = None
    if with_alternatives:
        alternatives = [
            [TokenAlternative(*pair) for pair in zip(*row, strict=True)]
            for row in zip(scores.best.tolist(), scores.best_log_probs.tolist(), strict=True)
        ]
    return GenerationOutput(
        text=detokenize(
            tokenizer,
            sequence.ids,
            stop_strings=config.stop_strings,
            prefix_len=sequence.prefix_len,
        ),
        ids=sequence.ids,
        finish_reason=sequence.finish_reason,
        score=log_prob if np.isnan(sequence.score) else sequence.score,
        log_prob=log_prob,
        token_log_probs=scores.log_probs.tolist(),
        alternatives=alternatives,
        cross_attention=attention,
    )
