"""Options of fine-tuning."""

import dataclasses
from typing import Literal

from t5jax.checkpoint import CheckpointChoice
from t5jax.data import Empty, PairLimits, TooLong
from t5jax.errors import check_at_least
from t5jax.generation import GenerationConfig, merge_config
from t5jax.optim import OptimizerConfig, ScheduleConfig
from t5jax.training import RunConfig

# Options that may change when a run is resumed, in addition to those of every run.
RESUMABLE = (
    "max_unknown_targets",
    "tasks",  # a path; the contents of the file are recorded as options and data
    "eval_batch_size",
    "final_num_beams",
    "use",
    "average",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """Options of fine-tuning on text-to-text tasks.

    After Ctrl-C, SIGTERM or a crash, the same options resume the run.

    Attributes:
      output: run directory, created if missing; a run with the same options is resumed.  The
        fine-tuned model is saved in `model/`, its predictions in `predictions/`.
      input_length: maximum number of tokens per input, EOS included; length of an encoder row.
      target_length: maximum number of tokens per target, EOS included; length of a decoder row.
      batch_size: number of rows per step, over all devices; T5 used 128 rows of 512 tokens.
      pack: pack several examples into a row, without attention between them.
      too_long: policy for training examples over the length limits: raise an error, drop or
        truncate.  If not 'error', validation and test inputs are truncated, and references that
        are too long to be generated are only reported.
      empty_targets: policy for training examples with an empty target: raise an error, drop or
        keep.  If not 'error', a validation or test split may have only empty references.
      max_unknown_targets: maximum fraction of targets with unknown tokens, such as characters that
        the vocabulary lacks; a run with more is refused.
      size_limit: maximum number of examples per task that counts in the mixing rates of tasks
        without weights; T5 tried 2**16 to 2**21.
      num_beams: beam width for validation during training; 1 = no beam search.
      final_num_beams: beam width for the final evaluation; 1 = no beam search.
      length_penalty: exponent of the length penalty: beams are ranked by
        log-probability / length**length_penalty.
      eval_examples: number of validation examples per task during training, evenly spaced;
        defaults to all.  The final evaluation always uses all.
      eval_batch_size: number of examples per evaluation batch.
      best_by: criterion for the best checkpoint: highest mean metric over tasks (an error rate x
        counts as 100 - x) or lowest validation loss.
      use: checkpoint to export as the result: the best on validation data, or the last.
      average: number of best or last checkpoints to average for the result; 1 = no averaging.
      optimizer: optimizer and learning rate schedule; defaults to T5's for fine-tuning.

    Examples:
      >>> t5jax.FinetuneConfig(checkpoint="google/t5-v1_1-small", target_length=32).lengths
      (128, 32)
      >>> t5jax.FinetuneConfig(checkpoint="google/t5-v1_1-small", vocab_size=8000)
      Traceback (most recent call last):
      ValueError: vocab_size must be left out with a checkpoint, got 8000; ...
    """

    output: str = "runs/finetune"
    input_length: int = 128
    target_length: int = 128
    batch_size: int = 32
    pack: bool = True
    too_long: TooLong = "error"
    empty_targets: Empty = "error"
    max_unknown_targets: float = 0.1
    size_limit: int = 2**19
    num_beams: int = 1
    final_num_beams: int = 4
    length_penalty: float = 0.6
    eval_examples: int | None = None
    eval_batch_size: int = 64
    best_by: Literal["score", "loss"] = "score"
    use: CheckpointChoice = "best"
    average: int = 1
    optimizer: OptimizerConfig = OptimizerConfig(
        name="adafactor",
        schedule=ScheduleConfig(name="constant", learning_rate=1e-3, warmup_steps=0),
    )

    def __post_init__(self):
        super().__post_init__()
        check_at_least(
            1,
            input_length=self.input_length,
            target_length=self.target_length,
            size_limit=self.size_limit,
            num_beams=self.num_beams,
            final_num_beams=self.final_num_beams,
            eval_examples=self.eval_examples,
            eval_batch_size=self.eval_batch_size,
            average=self.average,
        )
        if not 0 <= self.max_unknown_targets <= 1:
            raise ValueError(
                f"max_unknown_targets must be in [0, 1], got {self.max_unknown_targets}."
            )
        for count in (self.num_beams, self.final_num_beams):
            self.writing(count)  # reject a bad length penalty before training

    @property
    def keep_best(self) -> int:
        """Return the number of best checkpoints to keep, including those averaged at the end."""
        return max(self.fit.keep_best, self.average if self.use == "best" else 0)

    @property
    def keep_round(self) -> tuple[int, int] | None:
        """Return how many of the last checkpoints to average, and the steps between them."""
        return (self.average, self.fit.checkpoint_every) if self.use == "last" else None

    def writing(self, num_beams: int, base: GenerationConfig | None = None) -> GenerationConfig:
        """Return the generation options of an evaluation.

        Args:
          num_beams: beam width; `length_penalty` only applies above 1.
          base: default options of the checkpoint, for constraints and penalties.
        Returns:
          Options that limit inputs and outputs to `input_length` and `target_length` tokens.
        """
        options = {
            "num_beams": num_beams,
            "temperature": 0.0,
            "max_new_tokens": self.target_length,
            "max_input_tokens": self.input_length,
            "batch_size": self.eval_batch_size,
        }
        if num_beams > 1:
            options["length_penalty"] = self.length_penalty
        return merge_config(base or GenerationConfig(), options)

    @property
    def lengths(self) -> tuple[int, int]:
        """Return the number of tokens per row of inputs and per row of targets."""
        return self.limits.lengths

    @property
    def limits(self) -> PairLimits:
        """Return the length limits, and the policies for examples that exceed them."""
        return PairLimits(
            input_length=self.input_length,
            target_length=self.target_length,
            too_long=self.too_long,
            empty_targets=self.empty_targets,
        )
