"""Generation outputs: text, log-probabilities, alternatives and cross-attention."""

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
    """One of the most likely tokens at a position.

    Attributes:
      id: token id.
      log_prob: log-probability in nats.

    Examples:
      >>> alternative = t5jax.generation.TokenAlternative(id=5, log_prob=-0.6931)
      >>> round(float(np.exp(alternative.log_prob)), 2)
      0.5
    """

    id: int
    log_prob: float


class GenerationOutput(NamedTuple):
    """One output of `Text2Text.generate_outputs`.

    Attributes:
      text: generated text, including the prefix and excluding the stop string.
      ids: generated ids, including the prefix, and EOS if `finish_reason` is "eos".
      finish_reason: "eos"; "length", the limit; "stop", a stop string or an end of the automaton;
        "dead_end", the constraints ruled out every token, and there is no text.
      score: ranking key: `log_prob`, divided by the length penalty in a beam search.
      log_prob: log-probability of all ids after the prefix, in nats; in a beam search after the
        logits processors (repetition penalty, forced tokens).
      token_log_probs: log-probability of each id, in nats, without temperature and constraints.
      alternatives: the most likely tokens at each position, best first, if requested.
      cross_attention: attention of each id to each input token, per layer and head, if requested.

    Examples:
      >>> [[output]] = t5.generate_outputs(["the baker"], allowed_texts=["Lisbon"])
      >>> output.text, output.finish_reason
      ('Lisbon', 'eos')
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
    """Piece of an output, yielded by `Text2Text.stream`.

    Attributes:
      row: position of the input in `texts`.
      text: next piece of text; the last one may be empty.
      finish_reason: as in `GenerationOutput` in the last piece, otherwise None.

    Examples:
      >>> event = t5jax.StreamEvent
      >>> events = [event(0, "Das", None), event(1, "Ja.", "eos"), event(0, " ist gut.", "eos")]
      >>> "".join(event.text for event in events if event.row == 0)
      'Das ist gut.'
    """

    row: int
    text: str
    finish_reason: FinishReason | None


class RankedCandidate(NamedTuple):
    """Candidate with its log-probability, returned by `Text2Text.rank`.

    Attributes:
      text: text of the candidate.
      place: position in the list of candidates.
      log_prob: log-probability of all its tokens and EOS, in nats.

    Examples:
      >>> [ranked] = t5.rank(["the baker"], ["counts", "paints"])
      >>> ranked[0].log_prob >= ranked[1].log_prob
      True
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
    """Score generated sequences, all tokens at once, and build their outputs.

    Args:
      inputs: ids of every input.
      sequences: sequences generated for each input.
      config: generation options.
      scorer: scorer of the model.
      tokenizer: tokenizer of the model.
      num_alternatives: number of most likely tokens to return for each position.
      cross_attention: whether to return cross-attention weights.
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
