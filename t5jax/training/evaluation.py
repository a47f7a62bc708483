"""Held-out loss of a model, and of baselines that it should beat."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Int

from t5jax.data import Batch, ExampleSource
from t5jax.data.objectives import Objective
from t5jax.models import ComputePolicy, Params, T5Config
from t5jax.parallel import DeviceBatch, shard_batch
from t5jax.training.loss import LossSums
from t5jax.training.step import MeshJit, StepConfig, batch_loss

_OPTIONS = StepConfig(z_loss=0.0)


def make_eval_step(
    config: T5Config, *, policy: ComputePolicy, mesh: Mesh
) -> Callable[[Params, DeviceBatch], LossSums]:
    """Make a jitted `step(params, batch) -> LossSums` without dropout, smoothing or z-loss.

    Args:
      config: architecture.
      policy: dtype and attention kernel.
      mesh: device mesh of the parameters.
    Returns:
      The step function; sums are float32 scalars over the target tokens.

    Examples:
      >>> mesh = t5jax.parallel.make_mesh(t5jax.parallel.MeshConfig())
      >>> policy = t5jax.models.ComputePolicy()
      >>> step = t5jax.training.make_eval_step(config, policy=policy, mesh=mesh)
      >>> tokens = np.ones((8, 4), np.int32)
      >>> batch = {"encoder_input_tokens": tokens, "decoder_input_tokens": tokens,
      ...     "decoder_target_tokens": tokens, "decoder_loss_weights": tokens.astype(np.float32)}
      >>> float(step(params, t5jax.parallel.shard_batch(batch, mesh=mesh)).weight)
      32.0
    """

    def step(params: Params, batch: DeviceBatch) -> LossSums:
        return batch_loss(config, params, batch, policy=policy, options=_OPTIONS, dropout_key=None)

    return MeshJit(jax.jit(step, out_shardings=NamedSharding(mesh, P())), mesh)


def evaluate_loss(
    eval_step: Callable[[Params, DeviceBatch], LossSums],
    params: Params,
    batches: Iterable[Batch],
    *,
    mesh: Mesh,
) -> dict[str, float]:
    """Evaluate the token-weighted mean loss and accuracy over batches.

    Args:
      eval_step: step from `make_eval_step`.
      params: parameters of the model.
      batches: batches with the rows of this process, see `t5jax.parallel.local_rows`.
      mesh: mesh of `eval_step`.
    Returns:
      "loss" in nats per target token, and "accuracy", the fraction of targets with the highest
      logit.

    Examples:
      >>> from t5jax.training.loss import LossSums
      >>> sums = LossSums(*map(jnp.float32, (8.0, 8.0, 3.0, 4.0)))  # of 4 target tokens
      >>> mesh = t5jax.parallel.make_mesh(t5jax.parallel.MeshConfig())
      >>> batch, step = {"decoder_target_tokens": np.ones((8, 4), np.int32)}, lambda *args: sums
      >>> t5jax.training.evaluate_loss(step, params, [batch, batch], mesh=mesh)
      {'loss': 2.0, 'accuracy': 0.75}
    """
    sums = [eval_step(params, shard_batch(batch, mesh=mesh)) for batch in batches]
    weight = max(sum(float(part.weight) for part in sums), 1.0)
    return {
        "loss": sum(float(part.cross_entropy) for part in sums) / weight,
        "accuracy": sum(float(part.correct) for part in sums) / weight,
    }


class LossEvaluator:
    """Evaluator of the loss and accuracy on held-out batches; ranks checkpoints by loss.

    Examples:
      >>> mesh = t5jax.parallel.make_mesh(t5jax.parallel.MeshConfig())
      >>> policy = t5jax.models.ComputePolicy()
      >>> evaluator = t5jax.training.LossEvaluator(config, [], policy=policy, mesh=mesh)
      >>> evaluator.ranking_key({"loss": 2.5, "accuracy": 0.5})
      2.5
    """

    def __init__(
        self, config: T5Config, batches: Iterable[Batch], *, policy: ComputePolicy, mesh: Mesh
    ):
        """Store the batches and make the evaluation step.

        Args:
          config: architecture.
          batches: held-out batches with the rows of this process.
          policy: dtype and attention kernel.
          mesh: device mesh of the parameters.
        """
        self._eval_step = make_eval_step(config, policy=policy, mesh=mesh)
        self._batches = list(batches)
        self._mesh = mesh

    def evaluate(self, params: Params, step: int) -> dict[str, float]:
        """Evaluate parameters.

        Args:
          params: parameters of the model.
          step: ignored.
        Returns:
          "loss" in nats per target token, and "accuracy" in [0, 1].
        """
        del step
        return evaluate_loss(self._eval_step, params, self._batches, mesh=self._mesh)

    def ranking_key(self, evaluation: Mapping[str, float]) -> float:
        """Return the loss of an evaluation.

        Args:
          evaluation: metrics from `evaluate`.
        Returns:
          The number that checkpoints are ranked by; lower is better.
        """
        return evaluation["loss"]


def count_targets(
    chunks: ExampleSource, objective: Objective, vocab_size: int, *, max_examples: int = 2000
) -> Int[np.ndarray, " V"]:
    """Count the target ids of the first `max_examples` chunks.

    Args:
      chunks: chunks of token ids.
      objective: pre-training objective, which makes the targets.
      vocab_size: V.
      max_examples: maximum number of chunks to count.
    Returns:
      [V] int64 counts.
    """
    counts = np.zeros(vocab_size, np.int64)
    for i in range(min(len(chunks), max_examples)):
        targets = objective.example(chunks[i], np.random.default_rng(i))["decoder_target_tokens"]
        counts += np.bincount(targets, minlength=vocab_size)
    return counts


def baseline_losses(
    counts: Int[np.ndarray, " V"], eval_batches: Sequence[Batch]
) -> tuple[float, float]:
    """Return the held-out losses of the uniform and the unigram baseline.

    Args:
      counts: [V] counts of the target ids in the training data.
      eval_batches: held-out batches.
    Returns:
      Losses of the uniform and of the add-one smoothed unigram distribution, in nats per target
      token.
    """
    # Add-one smoothing: an unseen id has a finite loss.
    log_probs = np.log((counts + 1) / (counts + 1).sum())
    targets = np.concatenate([batch["decoder_target_tokens"].ravel() for batch in eval_batches])
    weights = np.concatenate([batch["decoder_loss_weights"].ravel() for batch in eval_batches])
    unigram = -float(np.sum(weights * log_probs[targets]) / np.sum(weights))
    return float(np.log(len(counts))), unigram
