"""Baselines against sums by hand."""

import numpy as np
import pytest

from t5jax.data.batches import Batch
from t5jax.data.objectives.objective import ExampleLengths
from t5jax.training.evaluation import baseline_losses, count_targets


def test_baselines_are_those_of_the_counts():
    counts = np.array([0, 3, 5, 0])
    batch: Batch = {
        "decoder_target_tokens": np.array([[1, 2], [3, 0]]),
        "decoder_loss_weights": np.array([[1.0, 1.0], [1.0, 0.0]]),
    }
    uniform, unigram = baseline_losses(counts, [batch])
    assert uniform == pytest.approx(np.log(4))
    assert unigram == pytest.approx(-(np.log(4 / 12) + np.log(6 / 12) + np.log(1 / 12)) / 3)


def test_count_targets_counts_each_id_of_the_first_chunks():
    class Copy:
        def lengths(self, input_length: int) -> ExampleLengths:
            return ExampleLengths(3, 3, 3)

        def check(self, input_length: int) -> None:
            pass

        def example(self, tokens: np.ndarray, rng: np.random.Generator) -> Batch:
            return {"decoder_target_tokens": tokens}

    chunks = [np.array([1, 1, 4]), np.array([0, 4, 2]), np.array([3, 3, 3])]
    assert count_targets(chunks, Copy(), 5, max_examples=2).tolist() == [1, 2, 1, 0, 2]
