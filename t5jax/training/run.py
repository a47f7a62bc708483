"""What all training runs have: options, a state to begin with, and the steps to the last."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import optax
import tyro
from jax.sharding import Mesh

from t5jax.checkpoint import CheckpointManager
from t5jax.models import Params, Remat, T5Config
from t5jax.optim import OptimizerConfig, learning_rate_schedule
from t5jax.parallel import HostsConfig, MeshConfig, print_once, process_count, process_index
from t5jax.pretrained import CHECKPOINTS
from t5jax.profiling import Profiler, train_step_flops
from t5jax.tokenizers import Tokenizer
from t5jax.training import loop, metrics_log
from t5jax.training.loop import FitConfig
from t5jax.training.step import Metrics, StepConfig, TrainState, init_state, make_train_step

# Options of all runs that came later, and what runs have that were begun before.
UNRECORDED = {"optimizer.momentum": 0.95}


_TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Options that pre-training and fine-tuning share."""

    output: str
    """Folder of the run, made if absent; if it holds this same run, the run continues."""
    model: str = "tiny"
    """Architecture: 'tiny', a published size such as 't5-v1_1-base', or a JSON file with the
    fields of T5Config.  But for a JSON file, the vocabulary size is the tokenizer's."""
    tokenizer: str | None = None
    """Folder of a tokenizer, such as a downloaded T5's, or 'bytes'.  Without it, one is trained."""
    vocab_size: int | None = None
    """Pieces of the tokenizer that is trained, 4000 unless given; 100 sentinels are added."""
    batch_size: int
    """Rows a step, over all devices."""
    fit: Annotated[FitConfig, tyro.conf.arg(name="")] = FitConfig(steps=1000)
    optimizer: OptimizerConfig
    """How parameters are updated."""
    step: Annotated[StepConfig, tyro.conf.arg(name="")] = StepConfig()
    dropout_rate: float | None = None
    """Instead of the model's."""
    dropout_steps: int | None = None
    """Steps with that dropout, and none after them, for models that are too small or trained too
    briefly to overfit (early dropout, arXiv:2303.01500).  Unless given, all."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type to compute in; auto is bfloat16 on TPU and GPU and float32 on a CPU."""
    remat: Remat | None = None
    """What the backward pass recomputes to save memory, instead of the model's choice: nothing, all
    but the matrix products with weights ('dots'), or each block ('full')."""
    mesh: MeshConfig = MeshConfig()
    """How devices share the work."""
    hosts: HostsConfig = HostsConfig()
    """The processes that train together."""
    seed: int = 0
    """Of initial parameters, dropout, and what is random about the data."""

    def __post_init__(self):
        self._check_counts("batch_size", "dropout_steps")
        if self.dropout_steps is not None and not self.dropout_rate:
            raise ValueError(
                f"dropout_rate must be above 0 for dropout_steps={self.dropout_steps}, got "
                f"{self.dropout_rate}; T5's is 0.1."
            )
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be in [0, 2**31), got {self.seed}.")
        if self.tokenizer is not None and self.vocab_size is not None:
            raise ValueError(
                f"vocab_size must be left out with a tokenizer, got {self.vocab_size}; it is the "
                "size of one that is trained."
            )
        if "://" in self.output:
            raise ValueError(
                f"output must be a folder of this machine, got {self.output}; mount the bucket."
            )
        if self.model != "tiny" and not self.model.endswith(".json"):
            T5Config.preset(self.model)

    def _check_counts(self, *names: str) -> None:
        """Raises ValueError if one of these options is given and less than 1."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")

    @property
    def folder(self) -> Path:
        """Where the run lies."""
        return Path(self.output).expanduser()

    @property
    def model_changes(self) -> dict[str, Any]:
        """Fields of the model to have instead of its own."""
        given = {"dropout_rate": self.dropout_rate, "remat": self.remat}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def keep_best(self) -> int:
        """Best checkpoints to keep."""
        return self.fit.keep_best

    @property
    def keep_round(self) -> tuple[int, int] | None:
        """As for `Checkpoints`."""
        return None

    def judge(self, evaluation: Mapping[str, float]) -> float:
        """The number by which evaluations are compared, less is better."""
        return evaluation["loss"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunParts:
    """What a run needs beside its state and its options."""

    mesh: Mesh
    tokenizer: Tokenizer
    model: T5Config
    tx: optax.GradientTransformation
    abstract: TrainState


class TrainingRun:
    """A run in its folder: from a state to the last step, or to where it is interrupted."""

    def __init__(self, config: RunConfig, made: RunParts):
        self.config, self.made = config, made
        self.checkpoints = CheckpointManager(
            config.folder / CHECKPOINTS,
            keep=config.fit.keep_checkpoints,
            keep_every=config.fit.keep_every,
            keep_best=config.keep_best,
            keep_round=config.keep_round,
        )

    def begin(self, data: Any, load: Callable[[], Params | None] = lambda: None) -> TrainState:
        """The state that was saved last, with `data` moved to where it was then, or the first.

        Args:
          data: as for `fit`.
          load: reads parameters to begin with instead of random ones.
        Raises:
          ValueError, OSError: no checkpoint can be read, or the run is further than it is to go.
        """
        config, made = self.config, self.made
        state = loop.restore_state(self.checkpoints, made.abstract, data, warn=print_once)
        if state is None:
            return init_state(
                made.model,
                made.tx,
                mesh=made.mesh,
                seed=config.seed,
                options=config.step,
                params=load(),
            )
        loop.check_steps(config.fit, int(state.step))
        print_once(
            f"continuing at step {int(state.step)} of {config.fit.steps} from {config.folder}"
        )
        return state

    def describe(self, state: TrainState) -> None:
        """Says what is trained, on what."""
        model, mesh = self.made.model, self.made.mesh
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        devices = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        several = f", {process_count()} processes" if process_count() > 1 else ""
        print_once(
            f"model: {parameters / 1e6:.2f} M parameters, {model.num_encoder_layers} + "
            f"{model.num_decoder_layers} layers of width {model.d_model}, vocabulary "
            f"{model.vocab_size}, {model.dtype}, on {jax.default_backend()} ({devices}{several})"
        )

    def past(self, state: TrainState) -> list[dict[str, float]]:
        """The evaluations that the run has had before `state`."""
        return metrics_log.read_evaluations(self.config.folder, until=int(state.step))

    def fit(
        self,
        state: TrainState,
        data: Any,
        *,
        evaluate: Callable[[Params, int], dict[str, float]],
        past: Sequence[dict[str, float]],
        lengths: tuple[int, int],
        locate: Callable[[int], Sequence[int]] | None = None,
    ) -> loop.FitResult:
        """Trains, saves and logs, and says so if it is interrupted.

        Args:
          lengths: tokens of an input and of a target.
          state, data, evaluate, past, locate: as for `fit`.
        """
        config, made = self.config, self.made
        input_length, target_length = lengths
        total_steps = config.fit.steps
        with metrics_log.open_metrics_log(
            config.folder,
            total_steps=total_steps,
            start_step=int(state.step),
            process=process_index(),
        ) as log:
            fitted = loop.fit(
                dataclasses.replace(config.fit, keep_best=config.keep_best),
                state,
                data,
                train_step=self._train_step(int(state.step)),
                evaluate=evaluate,
                checkpoints=self.checkpoints,
                log=log,
                mesh=made.mesh,
                pad_id=made.model.pad_id,
                locate=locate,
                step_flops=train_step_flops(
                    made.model,
                    batch_size=config.batch_size,
                    input_length=input_length,
                    target_length=target_length,
                ),
                profiler=Profiler(config.folder / "profile", steps=config.fit.profile_steps),
                judge=config.judge,
                past=past,
            )
        if fitted.interrupted:
            print_once(
                f"saved step {int(fitted.state.step)} in {config.folder}; the same command "
                "continues it"
            )
        return fitted

    def _train_step(self, start: int) -> _TrainStep:
        """As from `make_train_step`, to be called once for each step from `start` on."""
        config, made = self.config, self.made
        make = functools.partial(
            make_train_step,
            optimizer=made.tx,
            schedule=learning_rate_schedule(
                config.optimizer.schedule, total_steps=config.fit.steps
            ),
            mesh=made.mesh,
            options=config.step,
            seed=config.seed,
        )
        with_dropout = make(made.model)
        if config.dropout_steps is None:
            return with_dropout
        last = config.dropout_steps
        without = make(made.model.replace(dropout_rate=0.0))
        numbers = itertools.count(start)  # of the state itself, one would have to wait for
        return lambda *args: (with_dropout if next(numbers) < last else without)(*args)
