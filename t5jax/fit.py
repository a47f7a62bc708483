"""The training loop: steps, evaluation, checkpoints, and a clean stop at any moment."""

import contextlib
import dataclasses
import math
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from t5jax import processes, train
from t5jax.batches import Batch
from t5jax.checkpoint import Checkpoints
from t5jax.runlog import ProcessLog, RunLog


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
    """Keep so many checkpoints with the lowest held-out loss too, of those that are evaluated."""
    log_every: int = 10
    """Steps between updates of the progress bar and the logs; every step is logged."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "keep_best" else 1
            if value is not None and value < least:
                raise ValueError(f"{field.name} must be at least {least}, got {value}.")


class Fitted(NamedTuple):
    """How `fit` ended."""

    state: train.TrainState
    evaluation: dict[str, float] | None
    """Of the final state; None if the run was interrupted."""
    interrupted: bool
    """By Ctrl-C or SIGTERM; everything is saved, and the same call goes on."""


def fit(
    config: FitConfig,
    state: train.TrainState,
    batches: Any,
    *,
    train_step: Callable[[train.TrainState, Any], tuple[train.TrainState, train.Metrics]],
    evaluate: Callable[[train.Params], dict[str, float]],
    checkpoints: Checkpoints,
    log: RunLog | ProcessLog,
    mesh: Mesh,
    pad_id: int,
) -> Fitted:
    """Trains from `state` to `config.steps`.

    Args:
      config: lengths and intervals.
      state: consumed.
      batches: an iterator with `get_state`, standing where `state` does.
      train_step: as from `train.make_train_step`.
      evaluate: measures parameters on held-out data.
      checkpoints: where to save the trees `params` and `optimizer`, and the record `data`.
      log: where to write.
      mesh: of the state.
      pad_id: what does not count as an input token.
    Raises:
      ValueError: the state is further than `config.steps`, or a loss is not finite.
      OSError: a checkpoint or a log could not be written.
    """
    step = int(state.step)
    if step > config.steps:
        raise ValueError(f"steps must be at least {step}, where the run is, got {config.steps}.")
    saved_step, evaluation = step, None
    pending: list[tuple[train.Metrics, Batch]] = []
    vote = processes.StopVote(mesh)
    with _stop_signals() as stopping:
        while step < config.steps and not vote(stopping()):
            batch = next(batches)
            state, metrics = train_step(state, train.device_batch(batch, mesh=mesh))
            pending.append((metrics, batch))
            step += 1
            evaluate_now, save_now, log_now = (
                step == config.steps or step % every == 0
                for every in (config.eval_every, config.checkpoint_every, config.log_every)
            )
            if not (evaluate_now or save_now or log_now):
                continue
            entries = _fetch(step, pending, pad_id)
            if save_now:
                save(checkpoints, state, batches)
                saved_step = step
            _write(log, entries)
            if evaluate_now:
                evaluation = evaluate(state.params)
                log.evaluation(step, evaluation)
        entries = _fetch(step, pending, pad_id)
        if saved_step < step:
            save(checkpoints, state, batches)
        checkpoints.wait()
        _write(log, entries)
    if step < config.steps:
        return Fitted(state, None, interrupted=True)
    return Fitted(state, evaluation or evaluate(state.params), interrupted=False)


def save(checkpoints: Checkpoints, state: train.TrainState, batches: Any) -> None:
    """Starts writing a checkpoint of the state and of the position in the data."""
    trees = {"params": state.params, "optimizer": state.opt_state}
    checkpoints.save(int(state.step), trees, {"data": batches.get_state()})


def restore(
    checkpoints: Checkpoints,
    abstract: train.TrainState,
    batches: Any,
    *,
    warn: Callable[[str], None],
) -> train.TrainState | None:
    """The newest readable state, with `batches` moved to where it stood; None at a run's start."""
    trees = {"params": abstract.params, "optimizer": abstract.opt_state}
    found = checkpoints.restore_latest(trees, warn=warn)
    if found is None:
        return None
    step, restored, record = found
    batches.set_state(record["data"])
    count = jax.device_put(np.int32(step), abstract.step.sharding)
    return train.TrainState(count, restored["params"], restored["optimizer"])


class _Entry(NamedTuple):
    """What is logged of one step."""

    step: int
    metrics: dict[str, float]
    tokens: int
    real_tokens: int


def _fetch(step: int, pending: list[tuple[train.Metrics, Batch]], pad_id: int) -> list[_Entry]:
    """Entries of the steps up to `step`; waits for the devices here and nowhere else in the loop.

    Raises:
      ValueError: a loss is not finite; nothing is saved after it.
    """
    fetched = jax.device_get([metrics for metrics, _ in pending])
    entries = []
    for i, (values, (_, batch)) in enumerate(zip(fetched, pending, strict=True)):
        metrics = {name: float(value) for name, value in values.items()}
        at = step - len(pending) + 1 + i
        if not math.isfinite(metrics["loss"]):
            raise ValueError(
                f"the loss must be finite, got {metrics['loss']} at step {at}; lower the learning "
                "rate and start anew, or continue with other text: checkpoints before are intact."
            )
        inputs, weights = batch["encoder_input_tokens"], batch["decoder_loss_weights"]
        real = int(np.count_nonzero(inputs != pad_id) + np.count_nonzero(weights))
        entries.append(_Entry(at, metrics, inputs.size + weights.size, real))
    pending.clear()
    return entries


def _write(log: RunLog | ProcessLog, entries: list[_Entry]) -> None:
    for entry in entries:
        log.training(*entry)
    log.refresh()


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
