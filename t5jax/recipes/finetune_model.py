"""Initial model and final checkpoint of fine-tuning."""

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
    """Return the tokenizer of the options or the checkpoint, or train one.

    Args:
      config: options of the run.
      path: local path of the initial checkpoint, if any.
      texts: function that returns the text to train a tokenizer on.
    Raises:
      ValueError: the checkpoint has no tokenizer and `config.tokenizer` is not set.
    """
    if path is None or config.tokenizer is not None:
        return setup_tokenizer(config, texts)
    tokenizer = find_tokenizer(path)
    if tokenizer is None:
        raise ValueError(
            f"tokenizer must be set for {config.checkpoint}, which has no tokenizer; set it to a "
            "folder that has one, or to bytes."
        )
    return tokenizer


def starting_model(
    config: FinetuneConfig,
    path: Path | None,
    tokenizer: Tokenizer,
    architecture: Mapping[str, Any] | None,
) -> T5Config:
    """Return the architecture of the checkpoint, or without one that of the options.

    Args:
      config: options of the run.
      path: local path of the initial checkpoint, if any.
      tokenizer: tokenizer of the run; the model must have its vocabulary.
      architecture: overrides of fields of T5Config; ignored with a checkpoint.
    Raises:
      ValueError: the checkpoint has no decoder or another vocabulary.
    """
    if path is None:
        return setup_model(config, tokenizer, architecture=architecture)
    model = open_checkpoint(path).config
    if not model.num_decoder_layers:
        raise ValueError(
            f"checkpoint must have a decoder, got {config.checkpoint}, an encoder-only model; use "
            "an encoder-decoder."
        )
    check_vocabulary(model, str(config.checkpoint), tokenizer)
    if not model.dropout_rate and config.dropout_rate is None:
        log_once("dropout is off, as in the checkpoint; T5 was fine-tuned with --dropout-rate 0.1")
    return model.replace(**config.model_changes)


def starting_params(config: FinetuneConfig, mesh: Mesh) -> Params | None:
    """Load the initial parameters, in all processes at once; None without a checkpoint."""
    if config.checkpoint is None:
        return None
    return load_pretrained(config.checkpoint, dtype=np.dtype(np.float32), mesh=mesh)[1]


def resulting_params(
    config: FinetuneConfig, abstract: TrainState, ranking_keys: Sequence[float]
) -> Params:
    """Load the best or last checkpoint of a finished run, or the average of several.

    Args:
      config: options of the run.
      abstract: shapes, dtypes and shardings of the state.
      ranking_keys: ranking keys of all evaluations, to warn if the best one has no checkpoint.
    """
    folder = config.folder / CHECKPOINTS
    steps = choose_checkpoints(
        folder, choice=config.use, count=config.average, every=config.fit.checkpoint_every
    )
    tree = "params" if abstract.ema_params is None else "average"
    params = average_checkpoints(folder, steps, tree, abstract.params)
    which = f"the {config.use} checkpoint" if len(steps) == 1 else f"the mean of {len(steps)}"
    log_once(f"the result is {which} (step {', '.join(map(str, steps))}): {config.folder / MODEL}")
    if config.use == "best" and not is_best(folder, steps[0], ranking_keys):
        log_once(
            f"warning: an evaluation was better than that of step {steps[0]}, but its checkpoint "
            "was not kept; set --use best from the start of a run to keep it."
        )
    return params
