"""Options of fine-tuning."""

import dataclasses
from typing import Any, Literal

from t5jax.checkpoint import CheckpointChoice
from t5jax.data import Empty, PairLimits, TooLong
from t5jax.errors import check_at_least
from t5jax.generation import GenerationConfig
from t5jax.optim import OptimizerConfig, ScheduleConfig
from t5jax.training import RunConfig

# Options that may change when a run is continued, besides those of all runs.
RESUMABLE = (
    "tasks",  # a file; what is in it is recorded as data
    "eval_batch_size",
    "final_num_beams",
    "use",
    "average",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """Fine-tunes a T5 on tasks.

    Stopped by Ctrl-C, SIGTERM or a crash, the same command continues where it was.

    Attributes:
      output: Folder of the run, made if absent; if it holds this same run, the run continues.  The
        model that comes out lies in `model/`, what it wrote in `predictions/`.
      checkpoint: Where to start: a folder, file or hub id of any format that t5jax loads.  Without
        it, from random parameters.
      model: Architecture without a checkpoint: 'tiny', a published size such as 't5-v1_1-base', or
        a JSON file with the fields of T5Config.
      tokenizer: Folder of a tokenizer, or 'bytes'.  Without it, the checkpoint's; without a
        checkpoint, one is trained on the tasks.
      input_length: Most tokens of an input, EOS included; length of a row of the encoder.
      target_length: Most tokens of a target, EOS included; length of a row of the decoder.
      batch_size: Rows a step, over all devices; T5 fine-tuned with 128 rows of 512.
      pack: Put as many examples in a row as fit, none of which sees another.
      too_long: What becomes of training examples that are longer: an error, dropped, or truncated.
        Inputs to evaluate on are truncated then; references stay whole, and those that are too
        long to be written are an error or counted.
      empty_targets: What becomes of training examples without a target: an error, dropped, or
        kept.  It is an error, too, if references are all empty; some are counted.
      size_limit: Tasks without weights are mixed in proportion to their examples, of which no more
        than this count; T5 tried 2**16 to 2**21.
      num_beams: Of generation while training.
      final_num_beams: Of generation at the end.
      length_penalty: Beams are ranked by log-probability / length ** this.
      eval_examples: Validation examples of each task to look at while training, spread evenly;
        all, unless given. At the end it is always all.
      eval_batch_size: Examples evaluated at once.
      best_by: What is better: a higher mean of all tasks' metrics (in which an error rate of x
        counts as 100 - x), or a lower loss.
      use: Which checkpoint is the result: the best by validation, or the last.
      average: Take the mean of so many of the best or last checkpoints instead.
      optimizer: How parameters are updated; as T5 was fine-tuned, unless given.
    """

    output: str = "runs/finetune"
    checkpoint: str | None = None
    model: str = "tiny"
    tokenizer: str | None = None
    input_length: int = 128
    target_length: int = 128
    batch_size: int = 32
    pack: bool = True
    too_long: TooLong = "error"
    empty_targets: Empty = "error"
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
        if self.checkpoint is not None and self.model != "tiny":
            raise ValueError(
                f"model must be left out with a checkpoint, got {self.model}; a checkpoint has an "
                "architecture."
            )
        if self.checkpoint is not None and self.vocab_size is not None:
            raise ValueError(
                f"vocab_size must be left out with a checkpoint, got {self.vocab_size}; it is the "
                "size of a tokenizer that is trained."
            )
        for count in (self.num_beams, self.final_num_beams):
            self.writing(count)  # refuses a length penalty now, not after the training

    @property
    def keep_best(self) -> int:
        """Best checkpoints to keep: those asked for, and those that the result is made of."""
        return max(self.fit.keep_best, self.average if self.use == "best" else 0)

    @property
    def keep_round(self) -> tuple[int, int] | None:
        """The last checkpoints that the result is made of, and how many steps lie between."""
        return (self.average, self.fit.checkpoint_every) if self.use == "last" else None

    def writing(self, num_beams: int) -> GenerationConfig:
        """How answers are written."""
        beams: dict[str, Any] = {} if num_beams == 1 else {"length_penalty": self.length_penalty}
        return GenerationConfig(
            num_beams=num_beams,
            max_new_tokens=self.target_length,
            max_input_tokens=self.input_length,
            batch_size=self.eval_batch_size,
            **beams,
        )

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of a row of inputs, and of targets."""
        return self.limits.lengths

    @property
    def limits(self) -> PairLimits:
        """What examples may be."""
        return PairLimits(
            input_length=self.input_length,
            target_length=self.target_length,
            too_long=self.too_long,
            empty_targets=self.empty_targets,
        )
