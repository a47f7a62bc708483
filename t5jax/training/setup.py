"""Build the mesh, tokenizer, model, state and trainer of a run from its options."""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from t5jax.checkpoint import CheckpointManager
from t5jax.data import BatchIterator
from t5jax.models import ComputePolicy, Params, T5Config, get_family, pad_vocab
from t5jax.optim import learning_rate_schedule
from t5jax.parallel import (
    DeviceBatch,
    check_batch_size,
    check_lengths,
    log_once,
    make_mesh,
    process_count,
)
from t5jax.pretrained import CHECKPOINTS, find_tokenizer, load_pretrained, open_checkpoint
from t5jax.profiling import Profiler, chip_of_kind, train_step_flops
from t5jax.tokenizers import (
    ByteTokenizer,
    Tokenizer,
    check_same_tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from t5jax.training.run import RunConfig
from t5jax.training.step import Metrics, TrainState, make_train_step
from t5jax.training.tracker import Tracker, open_tracker, read_evaluations
from t5jax.training.trainer import Evaluator, FitResult, Trainer, check_steps, restore_state

# Option value for ByT5's tokenizer, which needs no files.
BYTES = "bytes"

DEFAULT_VOCAB_SIZE = 4000

# Default model; trains in minutes on two CPU cores.
TINY = {
    "d_model": 128,
    "d_ff": 512,
    "d_kv": 32,
    "num_heads": 4,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "tie_embeddings": True,
    "scale_logits": True,
}


def setup_mesh(config: RunConfig) -> Mesh:
    """Make the device mesh of a run.

    Args:
      config: options of the run.
    Returns:
      Mesh that divides the batch size and the lengths.
    Raises:
      ValueError: the mesh does not divide the batch size, or the input or target length.
    """
    mesh = make_mesh(config.mesh)
    check_batch_size(config.batch_size, mesh=mesh, accumulate=config.step.accumulate)
    check_lengths(dict(zip(("inputs", "targets"), config.lengths, strict=True)), mesh=mesh)
    return mesh


def setup_tokenizer(
    config: RunConfig,
    texts: Callable[[], Iterable[str]],
    *,
    checkpoint: Path | None = None,
) -> Tokenizer:
    """Load the tokenizer of a checkpoint, a run directory or the options, else train one.

    Args:
      config: options of the run.
      texts: function that returns the text to train a tokenizer on.
      checkpoint: local path of the initial checkpoint, if any.
    Returns:
      The tokenizer.
    Raises:
      FileNotFoundError: `config.tokenizer` does not exist or holds no tokenizer.
      ValueError: the padding id is also the unknown id; or the checkpoint has no tokenizer and
        `config.tokenizer` is not set, or has another one.
    """
    trained = None if checkpoint is None else find_tokenizer(checkpoint)
    own = load_tokenizer(config.folder) if config.folder.is_dir() else None
    if checkpoint is not None and config.tokenizer is None:
        tokenizer = trained
        if tokenizer is None:
            raise ValueError(
                f"tokenizer must be set for {config.checkpoint}, which has no tokenizer; set it to "
                "a folder that has one, or to bytes."
            )
    else:
        tokenizer = own
    if tokenizer is None:
        tokenizer = _tokenizer_option(config)
    if tokenizer is None:
        vocab_size = config.vocab_size or DEFAULT_VOCAB_SIZE
        log_once(f"training a tokenizer with a vocabulary of {vocab_size}")
        tokenizer = train_tokenizer(texts(), vocab_size=vocab_size)
    if tokenizer.pad_id == tokenizer.unk_id:
        raise ValueError(
            f"the tokenizer must have a separate padding id, got {tokenizer.pad_id} for padding "
            "and for unknown text; train one with t5jax.tokenizers.train_tokenizer."
        )
    if not config.allow_other_tokenizer:
        if trained is not None:
            check_same_tokenizer(tokenizer, trained, where=str(config.checkpoint))
        # The run's own is used, even if that of the options is gone.
        exists = config.tokenizer == BYTES or Path(config.tokenizer or "").is_dir()
        if own is not None and config.tokenizer is not None and exists:
            asked = _tokenizer_option(config)
            assert asked is not None
            check_same_tokenizer(asked, own, where=config.output)
    return tokenizer


def _tokenizer_option(config: RunConfig) -> Tokenizer | None:
    if config.tokenizer is None:
        return None
    if config.tokenizer == BYTES:
        return ByteTokenizer()
    check_tokenizer(config.tokenizer)
    return load_tokenizer(config.tokenizer)


def check_files(model: str, tokenizer: str | None) -> None:
    """Check that the files named by options exist, before any slow work.

    Raises:
      FileNotFoundError: `model` is a JSON file, or `tokenizer` a folder, that does not exist.
      ValueError: the JSON file is not a model config.
    """
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    if model.endswith(".json"):
        if not Path(model).is_file():
            raise FileNotFoundError(
                f"model must be a preset or a JSON file, got {model}, which does not exist."
            )
        config = T5Config.from_file(model)
        try:
            get_family(config)
        except ValueError as error:
            raise ValueError(f"{model}: {error}") from error


def check_tokenizer(tokenizer: str) -> None:
    """Raise FileNotFoundError if a tokenizer does not exist."""
    if tokenizer == BYTES:
        return
    if not Path(tokenizer).is_dir():
        raise FileNotFoundError(
            f"tokenizer must be a folder with spiece.model, or 'bytes', got {tokenizer}, which "
            "does not exist; leave it out to train one on the corpus."
        )
    if load_tokenizer(tokenizer) is None:
        raise FileNotFoundError(
            f"tokenizer {tokenizer} must hold spiece.model or a ByT5 tokenizer_config.json, got "
            "neither; leave it out to train one on the corpus."
        )


def setup_model(
    config: RunConfig,
    tokenizer: Tokenizer,
    *,
    architecture: Mapping[str, Any] | None = None,
    checkpoint: Path | None = None,
) -> T5Config:
    """Return the architecture of a run: the checkpoint's, 'tiny', a published size or a JSON file.

    Args:
      config: options of the run.
      tokenizer: tokenizer of the run, which sets the vocabulary size and special ids.
      architecture: fields of T5Config to override without a checkpoint; `config.model_changes`
        take precedence.
      checkpoint: local path of the initial checkpoint, if any.
    Returns:
      The architecture.
    Raises:
      ValueError: the vocabulary of the checkpoint or of a JSON file does not fit the tokenizer, or
        the checkpoint has no decoder.
    """
    if checkpoint is not None:
        return _checkpoint_model(config, tokenizer, checkpoint)
    name = config.model
    changes = {**(architecture or {}), **config.model_changes}
    if name.endswith(".json"):
        return check_vocabulary(T5Config.from_file(name), name, tokenizer).replace(**changes)
    fields = {
        **changes,
        "pad_id": tokenizer.pad_id,
        "eos_id": tokenizer.eos_id,
        "decoder_start_id": tokenizer.pad_id,
        "vocab_size": pad_vocab(tokenizer.vocab_size),
    }
    if name == "tiny":
        return T5Config(**{**TINY, **fields})
    return T5Config.preset(name, **fields)


def _checkpoint_model(config: RunConfig, tokenizer: Tokenizer, checkpoint: Path) -> T5Config:
    model = open_checkpoint(checkpoint).config
    if not model.num_decoder_layers:
        raise ValueError(
            f"checkpoint must have a decoder, got {config.checkpoint}, an encoder-only model; use "
            "an encoder-decoder."
        )
    check_vocabulary(model, str(config.checkpoint), tokenizer)
    if not model.dropout_rate and config.dropout_rate is None:
        log_once("dropout is off, as in the checkpoint; T5 was fine-tuned with --dropout-rate 0.1")
    return model.replace(**config.model_changes)


def initial_params(config: RunConfig, mesh: Mesh) -> Params | None:
    """Load the initial parameters, in all processes at once.

    Args:
      config: options of the run.
      mesh: device mesh to load them on.
    Returns:
      float32 parameters; None without a checkpoint.
    """
    if config.checkpoint is None:
        return None
    return load_pretrained(config.checkpoint, dtype=np.dtype(np.float32), mesh=mesh)[1]


def check_vocabulary(model: T5Config, source: str, tokenizer: Tokenizer) -> T5Config:
    """Check that the vocabulary of a model fits a tokenizer.

    Args:
      model: architecture.
      source: file or checkpoint of the model, for error messages.
      tokenizer: tokenizer of the run.
    Returns:
      `model`.
    Raises:
      ValueError: the vocabulary is too small, or the padding or EOS id differs.
    """
    if model.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"{source}: vocab_size must be at least the tokenizer's {tokenizer.vocab_size}, "
            f"got {model.vocab_size}; {pad_vocab(tokenizer.vocab_size)} fits."
        )
    for name in ("pad_id", "eos_id"):
        if getattr(model, name) != getattr(tokenizer, name):
            raise ValueError(
                f"{source}: {name} must be the tokenizer's {getattr(tokenizer, name)}, "
                f"got {getattr(model, name)}."
            )
    return model


def open_checkpoints(config: RunConfig) -> CheckpointManager:
    """Open the checkpoints of a run."""
    return CheckpointManager(
        config.folder / CHECKPOINTS,
        keep=config.fit.keep_checkpoints,
        keep_every=config.fit.keep_every,
        keep_best=config.keep_best,
        keep_round=config.keep_round,
    )


def restore_run(
    config: RunConfig, checkpoints: CheckpointManager, abstract: TrainState, batches: BatchIterator
) -> TrainState | None:
    """Restore the newest state of a run, and move `batches` to its data position.

    Args:
      config: options of the run.
      checkpoints: checkpoints of the run.
      abstract: shapes, dtypes and shardings of the state.
      batches: iterator with `set_state`.
    Returns:
      The state, or None if there is no checkpoint.
    Raises:
      ValueError: all checkpoints are damaged, or the run is beyond its last step.
    """
    state = restore_state(checkpoints, abstract, batches, warn=log_once)
    if state is not None:
        check_steps(config.fit, int(state.step))
        log_once(f"continuing at step {int(state.step)} of {config.fit.steps} from {config.folder}")
    return state


def log_model(model: T5Config, params: Params, policy: ComputePolicy, mesh: Mesh) -> None:
    """Log the size of a model, its dtype and its devices.

    Args:
      model: architecture.
      params: parameters of the model.
      policy: compute policy.
      mesh: device mesh.
    """
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    devices = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    several = f", {process_count()} processes" if process_count() > 1 else ""
    log_once(
        f"model: {parameters / 1e6:.2f} M parameters, {model.num_encoder_layers} + "
        f"{model.num_decoder_layers} layers of width {model.d_model}, vocabulary "
        f"{model.vocab_size}, {policy.dtype}, on {jax.default_backend()} ({devices}{several})"
    )


def run_trainer(
    config: RunConfig,
    state: TrainState,
    batches: BatchIterator,
    *,
    model: T5Config,
    policy: ComputePolicy,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    evaluator: Evaluator,
    checkpoints: CheckpointManager,
    trackers: Sequence[Tracker] = (),
    chunk_ids: Callable[[int], Sequence[int]] | None = None,
) -> FitResult:
    """Assemble the trainer of a run, train, and close trackers and checkpoints.

    Args:
      config: options of the run.
      state: initial state; its buffers are donated.
      batches: iterator with `get_state`, at the data position of `state`.
      model: architecture.
      policy: dtype, rematerialization and attention kernel.
      optimizer: optax transformation, such as from `t5jax.optim.make_optimizer`.
      mesh: device mesh of the state.
      evaluator: evaluates parameters and ranks evaluations.
      checkpoints: checkpoints of the run, closed at the end.
      trackers: additional metric trackers, used by process 0 and closed at the end.
      chunk_ids: function from a step to the chunks of text in its batch.
    Returns:
      The final state and its evaluation.
    Raises:
      ValueError, OSError: see `Trainer.fit`.
    """
    start_step = int(state.step)
    previous_evaluations = read_evaluations(config.folder, until=start_step)
    with open_tracker(
        config.folder, total_steps=config.fit.steps, start_step=start_step, others=trackers
    ) as tracker:
        trainer = Trainer(
            config.fit,
            train_step=_setup_train_step(config, model, policy, optimizer, mesh, start_step),
            evaluator=evaluator,
            checkpoints=checkpoints,
            tracker=tracker,
            mesh=mesh,
            pad_id=model.pad_id,
            profiler=Profiler(config.folder / "profile", steps=config.fit.profile_steps),
            peak_step_seconds=_peak_step_seconds(config, model, mesh),
            chunk_ids=chunk_ids,
        )
        result = trainer.fit(state, batches, previous_evaluations=previous_evaluations)
    checkpoints.close()
    last_step = int(result.state.step)
    if result.interrupted:
        log_once(f"saved step {last_step} in {config.folder}; run the same command to resume")
    elif last_step < config.fit.steps:
        log_once(
            f"stopped early at step {last_step}: no improvement in {config.fit.patience} "
            "evaluations"
        )
    return result


def _peak_step_seconds(config: RunConfig, model: T5Config, mesh: Mesh) -> float | None:
    """Return the seconds per step at the devices' peak FLOP/s; None if unknown."""
    chip = chip_of_kind(mesh.devices.flat[0].device_kind)
    if chip is None:
        return None
    input_length, target_length = config.lengths
    flops = train_step_flops(
        model,
        batch_size=config.batch_size,
        input_length=input_length,
        target_length=target_length,
    )
    return flops / (chip.flops * mesh.size)


def _setup_train_step(
    config: RunConfig,
    model: T5Config,
    policy: ComputePolicy,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    start_step: int,
) -> Callable[[TrainState, DeviceBatch], tuple[TrainState, Metrics]]:
    """Make the train step of a run; call it once per step, from `start_step`."""
    make = functools.partial(
        make_train_step,
        optimizer=optimizer,
        policy=policy,
        schedule=learning_rate_schedule(config.optimizer.schedule, total_steps=config.fit.steps),
        mesh=mesh,
        options=config.step,
        seed=config.seed,
    )
    with_dropout = make(model)
    if config.dropout_steps is None:
        return with_dropout
    last = config.dropout_steps
    without = make(model.replace(dropout_rate=0.0))
    steps = itertools.count(start_step)  # reading `state.step` would wait for the device
    return lambda *args: (with_dropout if next(steps) < last else without)(*args)
