"""Held-out loss of a model, and the losses of baselines that it must beat."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Int

from t5jax.data import Batch, ExampleSource
from t5jax.data.objectives import Objective
from t5jax.models import ComputePolicy, Params, T5Config
from t5jax.parallel import shard_batch
from t5jax.training.loss import LossSums
from t5jax.training.step import MeshJit, StepConfig, batch_loss

_OPTIONS = StepConfig(z_loss=0.0)


def make_eval_step(
    config: T5Config, *, policy: ComputePolicy, mesh: Mesh
) -> Callable[[Params, Any], LossSums]:
    """Compile `step(params, batch) -> LossSums`, without dropout, smoothing and z-loss.

    Args:
      config: of the model.
      policy: how the model computes.
      mesh: to compute on.
    """

    def step(params: Params, batch: Any) -> LossSums:
        return batch_loss(config, params, batch, policy=policy, options=_OPTIONS, dropout_key=None)

    return MeshJit(jax.jit(step, out_shardings=NamedSharding(mesh, P())), mesh)


def evaluate_loss(
    eval_step: Callable[[Params, Any], LossSums],
    params: Params,
    batches: Iterable[Batch],
    *,
    mesh: Mesh,
) -> dict[str, float]:
    """Return token-weighted means over all batches.

    Args:
      eval_step: as from `make_eval_step`.
      params: parameters of the model.
      batches: the rows of this process, see `local_rows`.
      mesh: of `eval_step`.
    Returns:
      `loss`, in nats per target token, and `accuracy`, the share of targets with the highest logit.
    """
    sums = [eval_step(params, shard_batch(batch, mesh=mesh)) for batch in batches]
    weight = max(sum(float(part.weight) for part in sums), 1.0)
    return {
        "loss": sum(float(part.cross_entropy) for part in sums) / weight,
        "accuracy": sum(float(part.correct) for part in sums) / weight,
    }


class LossEvaluator:
    """Evaluates the loss and the accuracy on held-out batches, and ranks by the loss."""

    def __init__(
        self, config: T5Config, batches: Iterable[Batch], *, policy: ComputePolicy, mesh: Mesh
    ):
        """Compile the evaluation.

        Args:
          config: of the model.
          batches: held-out data, the rows of this process.
          policy: how the model computes.
          mesh: to compute on.
        """
        self._eval_step = make_eval_step(config, policy=policy, mesh=mesh)
        self._batches = list(batches)
        self._mesh = mesh

    def evaluate(self, params: Params, step: int) -> dict[str, float]:
        """Return `loss` and `accuracy`; see `evaluate_loss`."""
        del step
        return evaluate_loss(self._eval_step, params, self._batches, mesh=self._mesh)

    def ranking_key(self, evaluation: Mapping[str, float]) -> float:
        """Return the loss."""
        return evaluation["loss"]


def count_targets(
    chunks: ExampleSource, objective: Objective, vocab_size: int, *, max_examples: int = 2000
) -> Int[np.ndarray, " V"]:
    """Count how often each id is a target in the first `max_examples` chunks."""
    counts = np.zeros(vocab_size, np.int64)
    for i in range(min(len(chunks), max_examples)):
        targets = objective.example(chunks[i], np.random.default_rng(i))["decoder_target_tokens"]
        counts += np.bincount(targets, minlength=vocab_size)
    return counts


def baseline_losses(
    counts: Int[np.ndarray, " V"], eval_batches: Sequence[Batch]
) -> tuple[float, float]:
    """Return held-out losses of two baselines that read no inputs, in nats per target token.

    Args:
      counts: [V] how often each id is a target in the training data.
      eval_batches: held-out data.
    Returns:
      The losses of the uniform distribution over the ids, and of their smoothed frequencies.
    """
    # One more of each, so that an unseen id is improbable rather than impossible.
    log_probs = np.log((counts + 1) / (counts + 1).sum())
    targets = np.concatenate([batch["decoder_target_tokens"].ravel() for batch in eval_batches])
    weights = np.concatenate([batch["decoder_loss_weights"].ravel() for batch in eval_batches])
    unigram = -float(np.sum(weights * log_probs[targets]) / np.sum(weights))
    return float(np.log(len(counts))), unigram
