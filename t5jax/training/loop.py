"""The training loop: steps, evaluation, checkpoints, and a clean stop at any moment."""

import collections
import contextlib
import dataclasses
import math
import operator
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from t5jax.checkpoint import CheckpointManager
from t5jax.data import Batch
from t5jax.parallel import StopVote, global_batch_size, print_once
from t5jax.profiling import Profiler, StepTimer, chip_of_kind, peak_memory_bytes
from t5jax.training import step as step_module
from t5jax.training.metrics_log import MetricsLog, ProcessLog
from t5jax.training.step import Metrics, TrainState, shard_batch, state_from_trees, state_to_trees
from t5jax.training.step_skipping import SkipMonitor

# Steps that are started before the first of them is through: enough for devices never to wait.
_AHEAD = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How long to train, and how often to look and to save."""

    steps: int
    """Updates of the parameters in the whole run."""
    eval_every: int = 200
    """Steps between evaluations on held-out data; there is always one at the end."""
    checkpoint_every: int = 200
    """Steps between checkpoints; there is always one at the end."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints to keep."""
    keep_every: int | None = None
    """Keep checkpoints of steps that are a multiple of this too."""
    keep_best: int = 0
    """Keep so many checkpoints with the lowest held-out loss too, of one at each evaluation; in
    fine-tuning, the best by `best_by`."""
    patience: int | None = None
    """Stop after so many evaluations in a row without one better than all before."""
    log_every: int = 10
    """Steps between updates of the progress bar and the logs; every step is logged."""
    max_skipped: int = 10
    """Steps in a row that may be skipped, because their loss or gradient could not be trusted."""
    profile_steps: tuple[int, int] | None = None
    """First and last step of a trace, written to the folder `profile`; SIGUSR1 asks for one of the
    next 5 steps."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "keep_best" else 1
            if isinstance(value, int) and value < least:
                raise ValueError(f"{field.name} must be at least {least}, got {value}.")
        if (
            self.profile_steps is not None
            and not 1 <= self.profile_steps[0] <= self.profile_steps[1]
        ):
            raise ValueError(
                f"profile_steps must be a first and a last step, got {self.profile_steps}."
            )


class FitResult(NamedTuple):
    """How `fit` ended; before its last step if it ran out of patience."""

    state: TrainState
    evaluation: dict[str, float] | None
    """Of the final state; None if the run was interrupted."""
    interrupted: bool
    """By Ctrl-C or SIGTERM; everything is saved, and the same call goes on."""


def fit(
    config: FitConfig,
    state: TrainState,
    batches: Any,
    *,
    train_step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
    evaluate: Callable[[step_module.Params, int], dict[str, float]],
    checkpoints: CheckpointManager,
    log: MetricsLog | ProcessLog,
    mesh: Mesh,
    pad_id: int,
    locate: Callable[[int], Sequence[int]] | None = None,
    step_flops: float | None = None,
    profiler: Profiler | None = None,
    judge: Callable[[dict[str, float]], float] = operator.itemgetter("loss"),
    past: Sequence[dict[str, float]] = (),
) -> FitResult:
    """Trains from `state` to `config.steps`; all processes must call it.

    Args:
      config: lengths and intervals.
      state: consumed.
      batches: an iterator with `get_state`, standing where `state` does.
      train_step: as from `make_train_step`.
      evaluate: measures parameters on held-out data, given these and the step.
      checkpoints: where to save `state_to_trees` of the state, and the record `data`.
      log: where to write.
      mesh: of the state.
      pad_id: what does not count as an input token.
      locate: the numbers of the chunks of text that a step learns from.
      step_flops: operations of a step on all devices, for the utilization of known chips.
      profiler: is told of every step.
      judge: makes of an evaluation the number by which checkpoints are kept and patience is lost;
        less is better.
      past: the evaluations that the run has had before `state`.
    Raises:
      ValueError: the state is further than `config.steps`, a loss is not finite, or too many steps
        in a row were skipped.
      OSError: a checkpoint or a log could not be written.
    """
    step = int(state.step)
    check_steps(config, step)
    saved_step, evaluation, numbers = step, None, ranking_keys(judge, past)
    steps = _Steps(config, mesh=mesh, pad_id=pad_id, log=log, locate=locate, step_flops=step_flops)
    watch = steps.watch
    vote = StopVote(mesh)
    with (
        _stop_signals() as stopping,
        _saved_before_errors(checkpoints),
        profiler or contextlib.nullcontext(),
    ):
        while step < final_step(config, step, numbers) and not vote(stopping()):
            if profiler is not None:
                profiler.before(step + 1)
            with watch.waiting():
                batch = next(batches)
            state, metrics = train_step(state, shard_batch(batch, mesh=mesh))
            step += 1
            steps.add(step, metrics, batch)
            evaluate_now, save_now, log_now = (
                step == config.steps or step % every == 0
                for every in (config.eval_every, config.checkpoint_every, config.log_every)
            )
            if not (evaluate_now or save_now or log_now):
                continue
            steps.settle()
            with watch.paused():
                steps.write(step)
                if evaluate_now:
                    evaluation = evaluate(inference_params(state), step)
                    numbers += ranking_keys(judge, [evaluation])
                    log.evaluation(step, evaluation)
                if save_now or (evaluate_now and config.keep_best):
                    loss = numbers[-1] if evaluate_now else None
                    save_state(checkpoints, state, batches, loss=loss)
                    saved_step = step
        steps.settle()
        if saved_step < step:
            save_state(checkpoints, state, batches)
        checkpoints.wait()
        steps.write(step)
    if step < final_step(config, step, numbers):
        return FitResult(state, None, interrupted=True)
    return FitResult(
        state, evaluation or evaluate(inference_params(state), step), interrupted=False
    )


def ranking_keys(
    judge: Callable[[dict[str, float]], float], evaluations: Sequence[dict[str, float]]
) -> list[float]:
    """The number of each evaluation; what is not finite is no better than anything."""
    return [number if math.isfinite(number) else math.inf for number in map(judge, evaluations)]


def check_steps(config: FitConfig, step: int) -> None:
    """Raises ValueError if a run is further than it is to go."""
    if step > config.steps:
        raise ValueError(f"steps must be at least {step}, where the run is, got {config.steps}.")


def final_step(config: FitConfig, step: int, numbers: Sequence[float]) -> int:
    """The step to train to: `step`, where a run is, if its patience is at an end.

    Args:
      config: with steps and patience.
      step: where the run is.
      numbers: `ranking_keys` of its evaluations.
    """
    if config.patience is None or not numbers:
        return config.steps
    since_best = len(numbers) - 1 - int(np.argmin(numbers))
    return step if since_best >= config.patience else config.steps


def inference_params(state: TrainState) -> step_module.Params:
    """The parameters to evaluate and to use: their moving average, where one is kept."""
    return state.params if state.average is None else state.average


def save_state(
    checkpoints: CheckpointManager,
    state: TrainState,
    batches: Any,
    *,
    loss: float | None = None,
) -> None:
    """Starts writing a checkpoint of the state and of the position in the data.

    `loss` is that on held-out data, if it was measured.
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
    """The newest readable state, with `batches` moved to where it stood; None at a run's start."""
    found = checkpoints.restore_latest(state_to_trees(abstract), warn=warn)
    if found is None:
        return None
    step, restored, record = found
    batches.set_state(record["data"])
    count = jax.device_put(np.int32(step), abstract.step.sharding)
    return state_from_trees(count, restored)


class _Entry(NamedTuple):
    """What is logged of one step."""

    step: int
    metrics: dict[str, float]
    tokens: int
    real_tokens: int


class _Steps:
    """The steps that were started, until they are through and logged."""

    def __init__(
        self,
        config: FitConfig,
        *,
        mesh: Mesh,
        pad_id: int,
        log: MetricsLog | ProcessLog,
        locate: Callable[[int], Sequence[int]] | None,
        step_flops: float | None,
    ):
        self.watch = StepTimer()
        self._mesh = mesh
        self._pad_id = pad_id
        self._log = log
        self._skips = SkipMonitor(most=config.max_skipped, locate=locate, report=log.skipped)
        self._step_flops = step_flops
        self._running: collections.deque[tuple[int, Metrics, Batch]] = collections.deque()
        self._through: list[_Entry] = []

    def add(self, step: int, metrics: Metrics, batch: Batch) -> None:
        """A step was started; waits for the one `_AHEAD` before it."""
        self._running.append((step, metrics, batch))
        if len(self._running) > _AHEAD:
            self._finish()

    def settle(self) -> None:
        """Waits for all steps.

        Raises:
          ValueError: a loss is not finite, or too many steps were skipped; nothing is to be saved.
        """
        while self._running:
            self._finish()

    def write(self, step: int) -> None:
        """Logs what `settle` waited for."""
        for entry in self._through:
            self._log.training(*entry)
        self._through.clear()
        reading = self.watch.reading()
        if reading:
            reading["memory_bytes"] = peak_memory_bytes(jax.local_devices())
            chip = chip_of_kind(self._mesh.devices.flat[0].device_kind)
            if chip is not None and self._step_flops is not None:
                most = chip.flops * self._mesh.size
                reading["mfu"] = self._step_flops / reading["step_seconds_p50"] / most
            self._log.speed(step, reading)
        self._log.refresh()

    def _finish(self) -> None:
        step, metrics, batch = self._running.popleft()
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        inputs, weights = batch["encoder_input_tokens"], batch["decoder_loss_weights"]
        # Other processes have as many rows, and about as much padding.
        share = global_batch_size(len(inputs), mesh=self._mesh) / len(inputs)
        real = np.count_nonzero(inputs != self._pad_id) + np.count_nonzero(weights)
        tokens = round(share * (inputs.size + weights.size))
        self.watch.finished(tokens)
        self._skips.check(step, values)
        self._through.append(_Entry(step, values, tokens, round(share * real)))


@contextlib.contextmanager
def _saved_before_errors(checkpoints: CheckpointManager) -> Iterator[None]:
    """Lets a save that was begun finish before a ValueError leaves `fit`: it may end the process.

    Other errors do not wait: they are of files, or of another process that is gone.
    """
    try:
        yield
    except ValueError:
        try:
            checkpoints.wait()
        except OSError as error:  # what went wrong first must not be hidden
            print_once(str(error))
        raise


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C or SIGTERM into a request; a second one interrupts at once."""
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
