"""Options of pre-training."""

import dataclasses

from t5jax.data import DataConfig
from t5jax.data.objectives import Objective, SpanCorruption, SpanCorruptionConfig
from t5jax.errors import check_at_least
from t5jax.optim import OptimizerConfig, ScheduleConfig
from t5jax.tokenizers import Tokenizer
from t5jax.training import UNRECORDED as UNRECORDED_IN_ALL_RUNS, RunConfig

# Options that may change when a run is resumed, in addition to those of every run.
RESUMABLE = (
    "eval_examples",
    "data.path",  # the text itself is recorded, by its digest
)

# Options added later, with the values that older runs used implicitly.
UNRECORDED = {**UNRECORDED_IN_ALL_RUNS, "step.label_smoothing": 0.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """Options of pre-training by span corruption.

    The defaults train a tiny model on the Python documentation of this machine, in minutes; with a
    checkpoint, they train it further.  After Ctrl-C, SIGTERM or a crash, the same options resume
    the run.

    Attributes:
      output: run directory, created if missing; a run with the same options is resumed.
      data: source of the text.
      corruption: span corruption: fraction of tokens to mask and mean length of a span.
      input_length: number of encoder tokens per example; T5 used 512.
      batch_size: number of examples per step, over all devices; T5 used 128, later 2048.
      eval_examples: maximum number of held-out examples per evaluation.
      optimizer: optimizer and learning rate schedule; defaults to Adafactor with rsqrt decay.

    Examples:
      >>> config = t5jax.recipes.PretrainConfig(input_length=512, batch_size=128)
      >>> config.lengths
      (512, 114)
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
        """Return the number of tokens per row of inputs and per row of targets."""
        return self.corruption.lengths(self.input_length)[1:]

    def make_objective(self, tokenizer: Tokenizer, *, decoder_start_id: int) -> Objective:
        """Bind the objective to a vocabulary.

        Args:
          tokenizer: source of the sentinel and special ids.
          decoder_start_id: first decoder input.
        Returns:
          The objective, for examples of `input_length`.
        Raises:
          ValueError: the tokenizer has too few sentinels.
        """
        objective = SpanCorruption(
            self.corruption, tokenizer=tokenizer, decoder_start_id=decoder_start_id
        )
        objective.check(self.input_length)
        return objective
