"""The trainer: steps, evaluations, checkpoints, and a clean stop at any moment."""

import collections
import contextlib
import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from t5jax.checkpoint import CheckpointManager
from t5jax.data import Batch
from t5jax.errors import check_at_least
from t5jax.models import Params
from t5jax.parallel import StopVote, global_batch_size, log_once, shard_batch
from t5jax.profiling import Profiler, StepTimer, peak_memory_bytes
from t5jax.training.step import (
    Metrics,
    TrainState,
    inference_params,
    state_from_trees,
    state_to_trees,
)
from t5jax.training.tracker import NON_PAD_TOKEN_RATE, TOKEN_RATE, Tracker

# Steps that are dispatched before the first of them has finished: devices never wait.
_AHEAD = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Number of steps, and intervals of evaluations, checkpoints and logs.

    Attributes:
      steps: Updates of the parameters in the whole run.
      eval_every: Steps between evaluations on held-out data; there is always one at the end.
      checkpoint_every: Steps between checkpoints; there is always one at the end.
      keep_checkpoints: How many of the newest checkpoints to keep.
      keep_every: Keep checkpoints of steps that are a multiple of this too.
      keep_best: Keep so many checkpoints with the lowest held-out loss too, of one at each
        evaluation; in fine-tuning, the best by `best_by`.
      patience: Stop after so many evaluations in a row without one better than all before.
      log_every: Steps between updates of the progress bar and the logs; every step is logged.
      max_skipped: Steps in a row that may be skipped, because their loss or gradient could not be
        trusted.
      profile_steps: First and last step of a trace, written to the folder `profile`; SIGUSR1 asks
        for one of the next 5 steps.
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
    """Evaluates parameters on held-out data."""

    def evaluate(self, params: Params, step: int) -> dict[str, float]:
        """Return metrics by name, `loss` among them, of the parameters after a step."""
        ...

    def ranking_key(self, evaluation: Mapping[str, float]) -> float:
        """Return the number that checkpoints are ranked by; less is better."""
        ...


class FitResult(NamedTuple):
    """The outcome of `Trainer.fit`, which ends before the last step if patience runs out.

    Attributes:
      evaluation: Evaluation of the final state; None if the run was interrupted or there was
        nothing to do.
      interrupted: True after Ctrl-C or SIGTERM; everything is saved, and the same call continues.
    """

    state: TrainState
    evaluation: dict[str, float] | None
    interrupted: bool


class Trainer:
    """Trains a state on batches, and evaluates, logs and saves it at intervals.

    With several processes all must construct it and call `fit`.
    """

    def __init__(
        self,
        config: FitConfig,
        *,
        train_step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
        evaluator: Evaluator,
        checkpoints: CheckpointManager,
        tracker: Tracker,
        mesh: Mesh,
        pad_id: int,
        profiler: Profiler | None = None,
        peak_step_seconds: float | None = None,
        chunk_ids: Callable[[int], Sequence[int]] | None = None,
    ):
        """Assemble a trainer; it opens and closes none of its parts.

        Args:
          config: number of steps, and intervals.
          train_step: as from `make_train_step`.
          evaluator: evaluates the parameters, and ranks the evaluations.
          checkpoints: receives the state, and the position in the data as the record `data`.
          tracker: receives the metrics.
          mesh: mesh of the state.
          pad_id: id that does not count as an input token.
          profiler: traces steps, if set.
          peak_step_seconds: seconds of a step at the peak rate of the devices, for the utilization.
          chunk_ids: returns the chunks of text that a step trains on, to name those of a skipped
            step.
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
        batches: Any,
        *,
        previous_evaluations: Sequence[Mapping[str, float]] = (),
    ) -> FitResult:
        """Train from `state` to the last step.

        Args:
          state: consumed.
          batches: iterator with `get_state`, at the position that belongs to `state`.
          previous_evaluations: evaluations of the run before `state`, which count for patience.
        Raises:
          ValueError: the state is beyond the last step, a loss is not finite, or too many steps in
            a row were skipped.
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
        vote = StopVote(self._mesh)
        with (
            _stop_signals() as stopping,
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
            if saved_step < step:
                save_state(self._checkpoints, state, batches)
            self._checkpoints.wait()
            steps.log(step)
        interrupted = step < final_step(config, step, keys)
        return FitResult(state, None if interrupted else evaluation, interrupted)


def ranking_keys(evaluator: Evaluator, evaluations: Sequence[Mapping[str, float]]) -> list[float]:
    """Return the ranking key of each evaluation; one that is not finite ranks last."""
    keys = map(evaluator.ranking_key, evaluations)
    return [key if math.isfinite(key) else math.inf for key in keys]


def check_steps(config: FitConfig, step: int) -> None:
    """Raise ValueError if a run is beyond its last step."""
    if step > config.steps:
        raise ValueError(f"steps must be at least {step}, where the run is, got {config.steps}.")


def final_step(config: FitConfig, step: int, keys: Sequence[float]) -> int:
    """Return the last step of a run, accounting for early stopping.

    Args:
      config: steps and patience.
      step: number of steps done, which are all if patience has run out.
      keys: ranking keys of the evaluations so far.
    """
    if config.patience is None or not keys:
        return config.steps
    since_best = len(keys) - 1 - int(np.argmin(keys))
    return step if since_best >= config.patience else config.steps


def save_state(
    checkpoints: CheckpointManager,
    state: TrainState,
    batches: Any,
    *,
    loss: float | None = None,
) -> None:
    """Start writing a checkpoint of the state and of the position in the data.

    Args:
      checkpoints: of the run.
      state: arrays may change as soon as this returns.
      batches: iterator with `get_state`.
      loss: ranking key of an evaluation of the state, if there was one.
    """
    record = {"data": batches.get_state()}
    checkpoints.save(int(state.step), state_to_trees(state), record, loss=loss)


def restore_state(
    checkpoints: CheckpointManager,
    abstract: TrainState,
    batches: Any,
    *,
    warn: Callable[[str], None],
) -> TrainState | None:
    """Restore the newest readable state, and move `batches` to its position.

    Args:
      checkpoints: of the run.
      abstract: shapes, dtypes and shardings of the state.
      batches: iterator with `set_state`.
      warn: receives a sentence for every damaged checkpoint.
    Returns:
      The state; None at the start of a run.
    """
    restored = checkpoints.restore_latest(state_to_trees(abstract), warn=warn)
    if restored is None:
        return None
    step, trees, record = restored
    batches.set_state(record["data"])
    count = jax.device_put(np.int32(step), abstract.step.sharding)
    return state_from_trees(count, trees)


class SkipMonitor:
    """Counts skipped steps, and ends a run in which no step succeeds any more."""

    def __init__(
        self,
        max_skipped: int,
        *,
        tracker: Tracker,
        chunk_ids: Callable[[int], Sequence[int]] | None,
    ):
        """Count from zero.

        Args:
          max_skipped: number of steps in a row that may be skipped.
          tracker: receives the number of skipped steps and their chunks.
          chunk_ids: returns the chunks of text that a step trains on.
        """
        self._max_skipped = max_skipped
        self._tracker = tracker
        self._chunk_ids = chunk_ids
        self._in_a_row = 0
        self.total = 0

    def check(self, step: int, metrics: dict[str, float]) -> None:
        """Check the metrics of a step; steps come in order.

        Raises:
          ValueError: the loss is not finite and the step was not skipped, or too many were.
        """
        if not metrics.get("skipped"):
            if not math.isfinite(metrics["loss"]):
                raise ValueError(
                    f"the loss must be finite, got {metrics['loss']} at step {step}; lower the "
                    "learning rate and start again, or continue with other text: checkpoints "
                    "before are intact."
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
                f"up to step {step}, with loss {metrics['loss']}; lower the learning rate, or look "
                "at the chunks of text in metrics.jsonl: checkpoints before are intact."
            )


class _StepRecord(NamedTuple):
    step: int
    metrics: dict[str, float]
    tokens: int
    non_pad_tokens: int


class _RunningSteps:
    """The steps that were dispatched to the devices, until they have finished and are logged."""

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
        """Add a step that was dispatched, and wait for the one `_AHEAD` before it."""
        self._running.append((step, metrics, batch))
        if len(self._running) > _AHEAD:
            self._finish()

    def settle(self) -> None:
        """Wait for all steps.

        Raises:
          ValueError: a loss is not finite, or too many steps were skipped; nothing is to be saved.
        """
        while self._running:
            self._finish()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent inside from that of the steps; all of them must have finished."""
        with self.timer.paused():
            yield
        self._clock = time.perf_counter()

    def log(self, step: int) -> None:
        """Log the finished steps and their speed; `step` is the last of them."""
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
        # Other processes have the same number of rows, and about as much padding.
        share = global_batch_size(len(inputs), mesh=self._mesh) / len(inputs)
        non_pad = np.count_nonzero(inputs != self._pad_id) + np.count_nonzero(weights)
        tokens = round(share * (inputs.size + weights.size))
        self.timer.finished(tokens)
        self._skips.check(step, values)
        self._finished.append(_StepRecord(step, values, tokens, round(share * non_pad)))


@contextlib.contextmanager
def _saved_before_errors(checkpoints: CheckpointManager) -> Iterator[None]:
    """Let a save finish before a ValueError leaves `fit`, since it may end the process.

    Other errors do not wait: they come from files, or from another process that is gone.
    """
    try:
        yield
    except ValueError:
        try:
            checkpoints.wait()
        except OSError as error:  # the first error must not be hidden
            log_once(str(error))
        raise


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request; a second one interrupts at once."""
    received: list[int] = []

    def handle(number, frame):
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        # Not `print`, which may be interrupted by itself; the reader of a pipe may be gone.
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping after this step; once more to stop at once\n")

    signals: Iterable[signal.Signals] = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        signals = ()  # only the main thread may set handlers
    previous = {number: signal.signal(number, handle) for number in signals}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
