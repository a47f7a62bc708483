"""Pre-training with an objective, an evaluator's data and a tracker that are not the library's."""

import jax
import numpy as np

from t5jax.checkpoint import CheckpointManager
from t5jax.data import Batch, training_batches
from t5jax.data.objectives import ExampleLengths, Objective
from t5jax.models import ComputePolicy, T5Config, is_stacked
from t5jax.optim import OptimizerConfig, ScheduleConfig, learning_rate_schedule, make_optimizer
from t5jax.parallel import MeshConfig, make_mesh
from t5jax.training import (
    FitConfig,
    LossEvaluator,
    StepConfig,
    Trainer,
    baseline_losses,
    count_targets,
    init_state,
    make_train_step,
)

PAD, EOS = 0, 1


class LastToken:
    """Reads a chunk and writes its last token."""

    def lengths(self, input_length: int) -> ExampleLengths:
        return ExampleLengths(raw=input_length - 1, inputs=input_length, targets=2)

    def check(self, input_length: int) -> None:
        if input_length < 2:
            raise ValueError(f"input_length must be at least 2, got {input_length}.")

    def example(self, tokens: np.ndarray, rng: np.random.Generator) -> Batch:
        return {
            "encoder_input_tokens": np.append(tokens, EOS).astype(np.int32),
            "decoder_input_tokens": np.array([PAD, tokens[-1]], np.int32),
            "decoder_target_tokens": np.array([tokens[-1], EOS], np.int32),
            "decoder_loss_weights": np.ones(2, np.float32),
        }


class Losses:
    """A tracker of two lines."""

    def __init__(self):
        self.evaluations: list[float] = []

    def log(self, step, metrics):
        self.evaluations += [metrics["eval/loss"]] if "eval/loss" in metrics else []

    def close(self):
        pass


def test_own_objective_is_learned_better_than_by_its_token_frequencies(tmp_path):
    objective = LastToken()
    assert isinstance(objective, Objective)
    lengths = objective.lengths(4)
    chunks = np.random.default_rng(0).integers(2, 6, (64, lengths.raw), dtype=np.int32)
    chunks = list(np.repeat(chunks[:, -1:], lengths.raw, axis=1))
    config = T5Config(
        vocab_size=8, d_model=16, d_ff=32, d_kv=8, num_heads=2, num_encoder_layers=1,
        num_decoder_layers=1, dropout_rate=0.0,
    )  # fmt: skip
    schedule = ScheduleConfig(name="constant", learning_rate=0.1, warmup_steps=0)
    optimizer = make_optimizer(
        OptimizerConfig(name="adafactor", schedule=schedule), total_steps=30, stacked=is_stacked
    )
    mesh = make_mesh(MeshConfig(data=1), devices=jax.devices()[:1])
    batches = training_batches(chunks, objective.example, batch_size=8, seed=0)
    heldout = [next(batches) for _ in range(4)]
    policy, tracker = ComputePolicy(), Losses()
    checkpoints = CheckpointManager(tmp_path, keep=1)
    trainer = Trainer(
        FitConfig(steps=30, eval_every=15),
        train_step=make_train_step(
            config,
            optimizer,
            policy=policy,
            schedule=learning_rate_schedule(schedule, total_steps=30),
            mesh=mesh,
            options=StepConfig(),
            seed=0,
        ),
        evaluator=LossEvaluator(config, heldout, policy=policy, mesh=mesh),
        checkpoints=checkpoints,
        tracker=tracker,
        mesh=mesh,
        pad_id=PAD,
    )
    result = trainer.fit(init_state(config, optimizer, mesh=mesh, seed=0), batches)
    checkpoints.close()
    assert result.evaluation is not None
    assert len(tracker.evaluations) == 2
    assert tracker.evaluations[-1] == result.evaluation["loss"]
    counts = count_targets(chunks, objective, config.vocab_size)
    _, unigram = baseline_losses(counts, heldout)
    assert result.evaluation["loss"] < unigram - 0.2
