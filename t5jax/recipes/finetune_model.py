"""The model that fine-tuning starts from, and the one that it results in."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from t5jax.checkpoint import average_checkpoints, choose_checkpoints, is_best
from t5jax.models import Params, T5Config
from t5jax.parallel import log_once
from t5jax.pretrained import CHECKPOINTS, find_tokenizer, load_pretrained, open_checkpoint
from t5jax.recipes.finetune_config import FinetuneConfig
from t5jax.tokenizers import Tokenizer
from t5jax.training import TrainState, check_vocabulary, setup_model, setup_tokenizer

MODEL = "model"


def starting_tokenizer(
    config: FinetuneConfig, path: Path | None, texts: Callable[[], Iterable[str]]
) -> Tokenizer:
    """Return the tokenizer of the options, else of the checkpoint, else one trained on `texts`.

    Args:
      config: options of the run.
      path: checkpoint on this machine, if the run starts from one.
      texts: returns the text to train a tokenizer on.
    Raises:
      ValueError: the checkpoint has no tokenizer, and the options name none.
    """
    if path is None or config.tokenizer is not None:
        return setup_tokenizer(config, texts)
    tokenizer = find_tokenizer(path)
    if tokenizer is None:
        raise ValueError(
            f"tokenizer must be set for {config.checkpoint}, which comes without one; name its "
            "folder."
        )
    return tokenizer


def starting_model(
    config: FinetuneConfig,
    path: Path | None,
    tokenizer: Tokenizer,
    architecture: Mapping[str, Any] | None,
) -> T5Config:
    """Return the architecture of the checkpoint, else that of the options.

    Args:
      config: options of the run.
      path: checkpoint on this machine, if the run starts from one.
      tokenizer: the vocabulary that the model must have.
      architecture: fields of T5Config to override, without a checkpoint.
    Raises:
      ValueError: the checkpoint is an encoder alone, or has another vocabulary.
    """
    if path is None:
        return setup_model(config, tokenizer, architecture=architecture)
    model = open_checkpoint(path).config
    if not model.num_decoder_layers:
        raise ValueError(
            f"checkpoint must have a decoder, got {config.checkpoint}, an encoder alone; start "
            "from an encoder-decoder."
        )
    check_vocabulary(model, str(config.checkpoint), tokenizer)
    if not model.dropout_rate and config.dropout_rate is None:
        log_once(
            "dropout is off, as the checkpoint has it; T5 is fine-tuned with --dropout-rate 0.1"
        )
    return model.replace(**config.model_changes)


def starting_params(config: FinetuneConfig, mesh: Mesh) -> Params | None:
    """Load the parameters of the checkpoint, in all processes together; None without one."""
    if config.checkpoint is None:
        return None
    return load_pretrained(config.checkpoint, dtype=np.dtype(np.float32), mesh=mesh)[1]


def resulting_params(
    config: FinetuneConfig, abstract: TrainState, ranking_keys: Sequence[float]
) -> Params:
    """Load the best or the last checkpoint of a finished run, or the mean of several.

    Args:
      config: options of the run.
      abstract: shapes, dtypes and shardings of the state.
      ranking_keys: of all evaluations, to warn if the best one has no checkpoint.
    """
    folder = config.folder / CHECKPOINTS
    steps = choose_checkpoints(
        folder, choice=config.use, count=config.average, every=config.fit.checkpoint_every
    )
    tree = "params" if abstract.ema_params is None else "average"
    params = average_checkpoints(folder, steps, tree, abstract.params)
    which = f"the {config.use} checkpoint" if len(steps) == 1 else f"the mean of {len(steps)}"
    log_once(
        f"\nthe result is {which} (step {', '.join(map(str, steps))}): {config.folder / MODEL}"
    )
    if config.use == "best" and not is_best(folder, steps[0], ranking_keys):
        log_once(
            f"warning: an evaluation was better than that of step {steps[0]}, and its "
            "checkpoint is not there; a run keeps it that has --use best from its start."
        )
    return params
