"""Answers with all that is known of them, made of what was written."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from t5jax.generation import detokenizer, scoring
from t5jax.generation.batching import by_length, pad_batch
from t5jax.generation.config import GenerationConfig
from t5jax.generation.engine import FinishReason, GeneratedSequence
from t5jax.models import Params, T5Config
from t5jax.tokenizers import Tokenizer


class TokenAlternative(NamedTuple):
    """A token that could have been written."""

    id: int
    log_prob: float
    """In nats."""


class GenerationOutput(NamedTuple):
    """One answer of `Text2Text.answers`."""

    text: str
    ids: list[int]
    """With the prefix, and with EOS unless something else ended it."""
    finish_reason: FinishReason
    """Why it ended: "eos", the limit ("length"), a stop string or an automaton's end ("stop"), or
    because constraints left no token to write ("dead_end"), and then there is no text."""
    score: float
    """What answers are ranked by: `log_prob`, in a beam search divided by the length's penalty."""
    log_prob: float
    """Of all ids behind the prefix, in nats; in a beam search as penalties for repetition and
    forced tokens have left it."""
    token_log_probs: list[float]
    """Of each id, in nats, as the model has it: without temperature and constraints."""
    alternatives: list[list[TokenAlternative]] | None
    """The likeliest tokens in the place of each id, best first, if they were asked for."""
    cross_attention: Float[np.ndarray, "L N T S"] | None
    """How much each id reads from each input token, in every layer and head, if asked for."""


class Writing(NamedTuple):
    """Inputs, and what was written for each of them."""

    inputs: Sequence[Sequence[int]]
    prefixes: Sequence[Sequence[int]]
    written: list[list[GeneratedSequence]]


def make_outputs(
    writing: Writing,
    options: GenerationConfig,
    *,
    params: Params,
    config: T5Config,
    tokenizer: Tokenizer,
    num_alternatives: int,
    with_attention: bool,
) -> list[list[GenerationOutput]]:
    """Reads the answers once more, all their tokens at once, and tells what the model thought."""
    # Pairs of one input and one of its answers.
    pairs = [(i, k) for i, row in enumerate(writing.written) for k in range(len(row))]
    inputs = [writing.inputs[i] for i, _ in pairs]

    def targets_of(rows):
        ids = [writing.written[i][k].ids for i, k in (pairs[r] for r in rows if r >= 0)]
        return pad_batch(ids, pad_id=config.pad_id, num_rows=len(rows))[0]

    def judge(rows, tokens, mask):
        found = scoring.score_tokens(
            params, tokens, mask, targets_of(rows), config=config, num_best=num_alternatives
        )
        return list(zip(*map(np.asarray, found), strict=True))

    def attend(rows, tokens, mask):
        weights = scoring.cross_attention_weights(
            params, tokens, mask, targets_of(rows), config=config
        )
        return list(np.moveaxis(np.asarray(weights), 1, 0))

    batching = {"batch_size": options.batch_size, "pad_id": config.pad_id}
    judged = by_length(inputs, judge, **batching)
    attention = by_length(inputs, attend, **batching) if with_attention else None

    answers: list[list[GenerationOutput]] = [[] for _ in writing.written]
    for place, (i, k) in enumerate(pairs):
        written = writing.written[i][k]
        length, prefix_len = len(written.ids), len(writing.prefixes[i])
        log_probs, best, best_log_probs = (part[:length] for part in judged[place])
        total = float(log_probs[prefix_len:].sum()) if length else written.log_prob
        answers[i].append(
            GenerationOutput(
                text=output_text(written, prefix_len, options, tokenizer),
                ids=written.ids,
                finish_reason=written.finish_reason,
                score=total if np.isnan(written.score) else written.score,
                log_prob=total if np.isnan(written.log_prob) else written.log_prob,
                token_log_probs=log_probs.tolist(),
                alternatives=(
                    [
                        [TokenAlternative(*pair) for pair in zip(*row, strict=True)]
                        for row in zip(best.tolist(), best_log_probs.tolist(), strict=True)
                    ]
                    if num_alternatives
                    else None
                ),
                cross_attention=(
                    attention[place][:, :, :length, : len(inputs[place])].copy()
                    if attention is not None
                    else None
                ),
            )
        )
    return answers


def output_text(
    written: GeneratedSequence, prefix_len: int, options: GenerationConfig, tokenizer: Tokenizer
) -> str:
    """The text of an answer, cut before its stop string."""
    return detokenizer.detokenize(
        tokenizer, written.ids, stop_strings=options.stop_strings, prefix_len=prefix_len
    )
