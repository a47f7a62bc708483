"""What a model must beat: losses of guesses that read nothing."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from t5jax.data import Batch, ExampleSource


def count_targets(
    chunks: ExampleSource,
    make_example: Callable[[np.ndarray, np.random.Generator], Batch],
    vocab_size: int,
    *,
    max_examples: int = 2000,
) -> Int[np.ndarray, " V"]:
    """How often each id is a target in the training data, its first `max_examples` chunks."""
    counts = np.zeros(vocab_size, np.int64)
    for i in range(min(len(chunks), max_examples)):
        targets = make_example(chunks[i], np.random.default_rng(i))["decoder_target_tokens"]
        counts += np.bincount(targets, minlength=vocab_size)
    return counts


def baseline_losses(
    counts: Int[np.ndarray, " V"], eval_batches: Sequence[Batch]
) -> tuple[float, float]:
    """Held-out losses of two guesses: all ids alike, and by their frequency; nats a target."""
    # One more of each, so that an id never seen is unlikely rather than impossible.
    log_probs = np.log((counts + 1) / (counts + 1).sum())
    targets = np.concatenate([batch["decoder_target_tokens"].ravel() for batch in eval_batches])
    weights = np.concatenate([batch["decoder_loss_weights"].ravel() for batch in eval_batches])
    unigram = -float(np.sum(weights * log_probs[targets]) / np.sum(weights))
    return float(np.log(len(counts))), unigram
