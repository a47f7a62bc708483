"""Options of pre-training."""

import dataclasses

from t5jax.data import DataConfig
from t5jax.data.objectives import Objective, SpanCorruption, SpanCorruptionConfig
from t5jax.errors import check_at_least
from t5jax.optim import OptimizerConfig, ScheduleConfig
from t5jax.tokenizers import Tokenizer
from t5jax.training import UNRECORDED as UNRECORDED_IN_ALL_RUNS, RunConfig

# Options that may change when a run is continued, besides those of all runs.
RESUMABLE = ("eval_examples",)

# Options that were added later, with the values of runs that do not record them.
UNRECORDED = {**UNRECORDED_IN_ALL_RUNS, "step.label_smoothing": 0.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """Pre-trains a T5 by span corruption.

    Without arguments: a tiny model on the Python documentation of this machine, in minutes.
    Stopped by Ctrl-C, SIGTERM or a crash, the same command continues where it was.

    Attributes:
      data: The text.
      corruption: The objective: how much of the text is hidden, in spans of what length.
      input_length: Tokens the encoder reads; T5 used 512.
      batch_size: Examples a step, over all devices; T5 used 128 and later 2048.
      eval_examples: Held-out examples an evaluation looks at, at most.
    """

    output: str = "runs/pretrain"
    data: DataConfig = DataConfig()
    corruption: SpanCorruptionConfig = SpanCorruptionConfig()
    input_length: int = 128
    batch_size: int = 16
    eval_examples: int = 512
    optimizer: OptimizerConfig = OptimizerConfig(
        name="adafactor",
        schedule=ScheduleConfig(name="rsqrt", learning_rate=0.3, warmup_steps=100),
    )

    def __post_init__(self):
        super().__post_init__()
        check_at_least(1, eval_examples=self.eval_examples)
        self.corruption.lengths(self.input_length)  # raises if no text fits

    @property
    def lengths(self) -> tuple[int, int]:
        """Return the numbers of tokens in a row of inputs and in one of targets."""
        return self.corruption.lengths(self.input_length)[1:]

    def make_objective(self, tokenizer: Tokenizer, *, decoder_start_id: int) -> Objective:
        """Bind the objective to a vocabulary.

        Raises:
          ValueError: the tokenizer has too few sentinels.
        """
        objective = SpanCorruption(
            self.corruption, tokenizer=tokenizer, decoder_start_id=decoder_start_id
        )
        objective.check(self.input_length)
        return objective
