"""Training loop with evaluations, checkpoints and clean interruption."""

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from t5jax.checkpoint import CheckpointManager
from t5jax.data import Batch, BatchIterator
from t5jax.errors import check_at_least
from t5jax.interruption import stop_request
from t5jax.models import Params
from t5jax.parallel import DeviceBatch, StopVote, global_batch_size, log_once, shard_batch
from t5jax.profiling import Profiler, StepTimer, peak_memory_bytes
from t5jax.training.step import (
    Metrics,
    TrainState,
    inference_params,
    state_from_trees,
    state_to_trees,
)
from t5jax.training.tracker import NON_PAD_TOKEN_RATE, TOKEN_RATE, Tracker

# Number of steps dispatched ahead, so that devices never wait for the host.
_AHEAD = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Number of steps, and intervals of evaluations, checkpoints and logs.

    Attributes:
      steps: total number of training steps.
      eval_every: steps between evaluations on held-out data; the last step is always evaluated.
      checkpoint_every: steps between checkpoints; the last step is always saved.
      keep_checkpoints: number of newest checkpoints to keep.
      keep_every: also keep checkpoints whose step is a multiple of this; None disables it.
      keep_best: also keep the N best checkpoints, saved at evaluations; best means lowest held-out
        loss, or `best_by` in fine-tuning.
      patience: early stopping after this number of evaluations without improvement; None disables
        it.
      log_every: steps between updates of the progress bar and log files, which record every step.
      max_skipped: maximum number of consecutive skipped steps (non-finite loss or gradient, or a
        gradient spike) before the run fails.
      profile_steps: first and last step to profile; traces are written to `profile/`.  SIGUSR1
        profiles the next 5 steps.

    Examples:
      >>> t5jax.training.FitConfig(steps=10000, eval_every=500, patience=3).checkpoint_every
      200
      >>> t5jax.training.FitConfig(steps=10, profile_steps=(5, 4))
      Traceback (most recent call last):
      ValueError: profile_steps must be a first and a last step, got (5, 4).
    """

    steps: int
    eval_every: int = 200
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    keep_every: int | None = None
    keep_best: int = 0
    patience: int | None = None
    log_every: int = 10
    max_skipped: int = 10
    profile_steps: tuple[int, int] | None = None

    def __post_init__(self):
        counts = dataclasses.asdict(self)
        check_at_least(0, keep_best=counts.pop("keep_best"))
        del counts["profile_steps"]
        check_at_least(1, **counts)
        if (
            self.profile_steps is not None
            and not 1 <= self.profile_steps[0] <= self.profile_steps[1]
        ):
            raise ValueError(
                f"profile_steps must be a first and a last step, got {self.profile_steps}."
            )


@runtime_checkable
class Evaluator(Protocol):
    """Protocol of objects that evaluate parameters on held-out data.

    Examples:
      >>> class WeightEvaluator:
      ...     def evaluate(self, params, step):
      ...         return {"loss": float(jnp.sum(params["w"] ** 2))}
      ...
      ...     def ranking_key(self, evaluation):
      ...         return evaluation["loss"]
      >>> isinstance(WeightEvaluator(), t5jax.training.Evaluator)
      True
      >>> WeightEvaluator().evaluate({"w": jnp.array([1.0, 2.0])}, step=100)
      {'loss': 5.0}
    """

    def evaluate(self, params: Params, step: int) -> dict[str, float]:
        """Evaluate parameters.

        Args:
          params: parameters for inference, see `inference_params`.
          step: number of completed steps.
        Returns:
          Metrics by name, including "loss".
        """
        ...

    def ranking_key(self, evaluation: Mapping[str, float]) -> float:
        """Return the number that checkpoints are ranked by.

        Args:
          evaluation: metrics from `evaluate`.
        Returns:
          Ranking key; lower is better.
        """
        ...


class FitResult(NamedTuple):
    """Result of `Trainer.fit`.

    Attributes:
      state: final state; its step is below `steps` after early stopping or an interruption.
      evaluation: evaluation of the final state; None if the run was interrupted or already
        complete.
      interrupted: True after Ctrl-C or SIGTERM; the state is saved, and the same call resumes.

    Examples:
      >>> state = t5jax.training.TrainState(jnp.int32(100), params, opt_state=())
      >>> result = t5jax.training.FitResult(state, {"loss": 2.5}, interrupted=False)
      >>> int(result.state.step), result.evaluation["loss"]
      (100, 2.5)
    """

    state: TrainState
    evaluation: dict[str, float] | None
    interrupted: bool


class Trainer:
    """Training loop that evaluates, logs and saves a state at intervals.

    In a multi-process run, every process must construct it and call `fit`.

    Examples:
      >>> from t5jax.training.tracker import MetricsFile
      >>> mesh = t5jax.parallel.make_mesh(t5jax.parallel.MeshConfig())
      >>> policy = t5jax.models.ComputePolicy()
      >>> checkpoints = t5jax.checkpoint.CheckpointManager("run/checkpoints", keep=2)
      >>> trainer = t5jax.training.Trainer(
      ...     t5jax.training.FitConfig(steps=1000),
      ...     train_step=lambda state, batch: (state, {}),  # use make_train_step
      ...     evaluator=t5jax.training.LossEvaluator(config, [], policy=policy, mesh=mesh),
      ...     checkpoints=checkpoints,
      ...     tracker=MetricsFile("run", start_step=0),
      ...     mesh=mesh,
      ...     pad_id=config.pad_id,
      ... )
      >>> trainer.fit(state, batches).interrupted  # doctest: +SKIP
      False
      >>> checkpoints.close()
    """

    def __init__(
        self,
        config: FitConfig,
        *,
        train_step: Callable[[TrainState, DeviceBatch], tuple[TrainState, Metrics]],
        evaluator: Evaluator,
        checkpoints: CheckpointManager,
        tracker: Tracker,
        mesh: Mesh,
        pad_id: int,
        profiler: Profiler | None = None,
        peak_step_seconds: float | None = None,
        chunk_ids: Callable[[int], Sequence[int]] | None = None,
    ):
        """Assemble a trainer; the caller opens and closes its parts.

        Args:
          config: number of steps, and intervals.
          train_step: step function, such as from `make_train_step`.
          evaluator: evaluates parameters and ranks evaluations.
          checkpoints: stores the state, and the data position as the record "data".
          tracker: receives the metrics.
          mesh: device mesh of the state.
          pad_id: padding id, excluded from the count of non-pad tokens.
          profiler: profiler to trace steps with; None disables it.
          peak_step_seconds: seconds per step at the devices' peak FLOP/s, to compute the MFU; None
            if unknown.
          chunk_ids: function from a step to the chunks of text in its batch, logged if the step is
            skipped.
        """
        self._config = config
        self._train_step = train_step
        self._evaluator = evaluator
        self._checkpoints = checkpoints
        self._tracker = tracker
        self._mesh = mesh
        self._pad_id = pad_id
        self._profiler = profiler
        self._peak_step_seconds = peak_step_seconds
        self._chunk_ids = chunk_ids

    def fit(
        self,
        state: TrainState,
        batches: BatchIterator,
        *,
        previous_evaluations: Sequence[Mapping[str, float]] = (),
    ) -> FitResult:
        """Train from `state` to the last step, early stopping or an interruption.

        Args:
          state: initial state; its buffers are donated.
          batches: iterator with `get_state`, at the data position of `state`.
          previous_evaluations: earlier evaluations of the run, which count for early stopping.
        Returns:
          The final state and its evaluation.
        Raises:
          ValueError: the state is beyond the last step, a loss is not finite, or too many
            consecutive steps were skipped.
          OSError: a checkpoint or a log could not be written.
        """
        config = self._config
        step = saved_step = int(state.step)
        check_steps(config, step)
        evaluation, keys = None, ranking_keys(self._evaluator, previous_evaluations)
        steps = _RunningSteps(
            config.max_skipped,
            tracker=self._tracker,
            mesh=self._mesh,
            pad_id=self._pad_id,
            peak_step_seconds=self._peak_step_seconds,
            chunk_ids=self._chunk_ids,
        )
        vote, request = StopVote(self._mesh), stop_request()
        with (
            request.deferred() as stopping,
            _saved_before_errors(self._checkpoints),
            self._profiler or contextlib.nullcontext(),
        ):
            while step < final_step(config, step, keys) and not vote(stopping()):
                if self._profiler is not None:
                    self._profiler.before(step + 1)
                with steps.timer.waiting():
                    batch = next(batches)
                state, metrics = self._train_step(state, shard_batch(batch, mesh=self._mesh))
                step += 1
                steps.add(step, metrics, batch)
                evaluate_now, save_now, log_now = (
                    step == config.steps or step % every == 0
                    for every in (config.eval_every, config.checkpoint_every, config.log_every)
                )
                if not (evaluate_now or save_now or log_now):
                    continue
                steps.settle()
                with steps.paused():
                    steps.log(step)
                    if evaluate_now:
                        with request.waiting_for(f"the evaluation of step {step}"):
                            evaluation = self._evaluator.evaluate(inference_params(state), step)
                        keys += ranking_keys(self._evaluator, [evaluation])
                        self._tracker.log(
                            step, {f"eval/{name}": value for name, value in evaluation.items()}
                        )
                    if save_now or (evaluate_now and self._checkpoints.keeps_best):
                        loss = keys[-1] if evaluate_now else None
                        save_state(self._checkpoints, state, batches, loss=loss)
                        saved_step = step
            steps.settle()
            steps.log(step)  # before the checkpoint, from which a killed run resumes
            with request.waiting_for(f"the checkpoint of step {step}"):
                if saved_step < step:
                    save_state(self._checkpoints, state, batches)
                self._checkpoints.wait()
        interrupted = step < final_step(config, step, keys)
        return FitResult(state, None if interrupted else evaluation, interrupted)


def ranking_keys(evaluator: Evaluator, evaluations: Sequence[Mapping[str, float]]) -> list[float]:
    """Return the ranking key of each evaluation, with inf for non-finite ones."""
    keys = map(evaluator.ranking_key, evaluations)
    return [key if math.isfinite(key) else math.inf for key in keys]


def check_steps(config: FitConfig, step: int) -> None:
    """Raise ValueError if a run is already beyond its last step."""
    if step > config.steps:
        raise ValueError(
            f"steps must be at least {step}, the current step of the run, got {config.steps}."
        )


def final_step(config: FitConfig, step: int, keys: Sequence[float]) -> int:
    """Return the last step of a run, accounting for early stopping.

    Args:
      config: steps and patience.
      step: number of completed steps.
      keys: ranking keys of the evaluations so far.
    Returns:
      `step` if patience has run out, else `config.steps`.
    """
    if config.patience is None or not keys:
        return config.steps
    since_best = len(keys) - 1 - int(np.argmin(keys))
    return step if since_best >= config.patience else config.steps


def save_state(
    checkpoints: CheckpointManager,
    state: TrainState,
    batches: BatchIterator,
    *,
    loss: float | None = None,
) -> None:
    """Save the state and the data position in a checkpoint, asynchronously.

    Args:
      checkpoints: checkpoints of the run.
      state: state to save; its buffers may be donated as soon as this returns.
      batches: iterator with `get_state`.
      loss: ranking key of the state's evaluation; None without one.
    """
    record = {"data": batches.get_state()}
    checkpoints.save(int(state.step), state_to_trees(state), record, loss=loss)


def restore_state(
    checkpoints: CheckpointManager,
    abstract: TrainState,
    batches: BatchIterator,
    *,
    warn: Callable[[str], None],
) -> TrainState | None:
    """Restore the newest intact state, and move `batches` to its data position.

    Args:
      checkpoints: checkpoints of the run.
      abstract: shapes, dtypes and shardings of the state.
      batches: iterator with `set_state`.
      warn: called with a message for each damaged checkpoint.
    Returns:
      The state, or None if there is no checkpoint.
    """
    restored = checkpoints.restore_latest(state_to_trees(abstract), warn=warn)
    if restored is None:
        return None
    step, trees, record = restored
    batches.set_state(record["data"])
    count = jax.device_put(np.int32(step), abstract.step.sharding)
    return state_from_trees(count, trees)


class SkipMonitor:
    """Counter of skipped steps that raises after too many consecutive ones."""

    def __init__(
        self,
        max_skipped: int,
        *,
        tracker: Tracker,
        chunk_ids: Callable[[int], Sequence[int]] | None,
    ):
        """Start with a count of zero.

        Args:
          max_skipped: maximum number of consecutive skipped steps.
          tracker: receives the number of skipped steps and their chunks.
          chunk_ids: function from a step to the chunks of text in its batch.
        """
        self._max_skipped = max_skipped
        self._tracker = tracker
        self._chunk_ids = chunk_ids
        self._in_a_row = 0
        self.total = 0

    def check(self, step: int, metrics: dict[str, float]) -> None:
        """Check the metrics of a step; call it for every step in order.

        Args:
          step: number of the step, from 1.
          metrics: metrics of the step, on the host.
        Raises:
          ValueError: the loss is not finite and the step was not skipped, or too many consecutive
            steps were skipped.
        """
        if not metrics.get("skipped"):
            if not math.isfinite(metrics["loss"]):
                raise ValueError(
                    f"the loss must be finite, got {metrics['loss']} at step {step}; start again "
                    "with a lower learning rate, or continue with other text from an earlier "
                    "checkpoint, which is intact."
                )
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self.total += 1
        chunks = [] if self._chunk_ids is None else [int(i) for i in self._chunk_ids(step)]
        self._tracker.log(step, {"skipped/steps": self.total, "skipped/chunks": chunks})
        if self._in_a_row > self._max_skipped:
            raise ValueError(
                f"at most {self._max_skipped} steps in a row may be skipped, got {self._in_a_row} "
                f"up to step {step}, with loss {metrics['loss']}; lower the learning rate, or "
                "check the skipped chunks in metrics.jsonl; earlier checkpoints are intact."
            )


class _StepRecord(NamedTuple):
    step: int
    metrics: dict[str, float]
    tokens: int
    non_pad_tokens: int


class _RunningSteps:
    """Queue of steps that were dispatched to the devices and not logged yet."""

    def __init__(
        self,
        max_skipped: int,
        *,
        tracker: Tracker,
        mesh: Mesh,
        pad_id: int,
        peak_step_seconds: float | None,
        chunk_ids: Callable[[int], Sequence[int]] | None,
    ):
        self.timer = StepTimer()
        self._tracker = tracker
        self._mesh = mesh
        self._pad_id = pad_id
        self._peak_step_seconds = peak_step_seconds
        self._skips = SkipMonitor(max_skipped, tracker=tracker, chunk_ids=chunk_ids)
        self._running: collections.deque[tuple[int, Metrics, Batch]] = collections.deque()
        self._finished: list[_StepRecord] = []
        self._clock = time.perf_counter()

    def add(self, step: int, metrics: Metrics, batch: Batch) -> None:
        """Add a dispatched step, and wait for the step `_AHEAD` before it.

        Args:
          step: number of the step, from 1.
          metrics: metrics of the step, which may not be computed yet.
          batch: batch of the step.
        """
        self._running.append((step, metrics, batch))
        if len(self._running) > _AHEAD:
            self._finish()

    def settle(self) -> None:
        """Wait for all steps.

        Raises:
          ValueError: a loss is not finite, or too many steps were skipped; do not save the state.
        """
        while self._running:
            self._finish()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time inside from step times; all steps must have finished."""
        with self.timer.paused():
            yield
        self._clock = time.perf_counter()

    def log(self, step: int) -> None:
        """Log the finished steps and their speed; `step` is the last one."""
        if not self._finished:
            return
        for record in self._finished:
            metrics = {f"train/{name}": value for name, value in record.metrics.items()}
            metrics["batch/tokens"] = record.tokens
            metrics["batch/non_pad_tokens"] = record.non_pad_tokens
            self._tracker.log(record.step, metrics)
        speed = self.timer.reading()
        if speed:
            speed["memory_bytes"] = peak_memory_bytes(jax.local_devices())
            if self._peak_step_seconds is not None:
                speed["mfu"] = self._peak_step_seconds / speed["step_seconds_p50"]
        seconds = time.perf_counter() - self._clock
        rates = {
            TOKEN_RATE: sum(record.tokens for record in self._finished) / seconds,
            NON_PAD_TOKEN_RATE: sum(record.non_pad_tokens for record in self._finished) / seconds,
        }
        self._tracker.log(step, {f"speed/{name}": value for name, value in speed.items()} | rates)
        self._finished.clear()
        self._clock = time.perf_counter()

    def _finish(self) -> None:
        step, metrics, batch = self._running.popleft()
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        inputs, weights = batch["encoder_input_tokens"], batch["decoder_loss_weights"]
        # Assumes as much padding in the rows of other processes.
        share = global_batch_size(len(inputs), mesh=self._mesh) / len(inputs)
        non_pad = np.count_nonzero(inputs != self._pad_id) + np.count_nonzero(weights)
        tokens = round(share * (inputs.size + weights.size))
        self.timer.finished(tokens)
        self._skips.check(step, values)
        self._finished.append(_StepRecord(step, values, tokens, round(share * non_pad)))


@contextlib.contextmanager
def _saved_before_errors(checkpoints: CheckpointManager) -> Iterator[None]:
    """Wait for pending saves before a ValueError leaves `fit`, since it may end the process.

    Other errors do not wait: they come from files or a lost process.
    """
    try:
        yield
    except ValueError:
        try:
            checkpoints.wait()
        except OSError as error:  # must not replace the ValueError
            log_once(str(error))
        raise
