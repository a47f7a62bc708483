"""`t5jax.load` and `t5jax.export_hf`: loading and exporting models."""

import os
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from t5jax.generation import from_generation_file, to_generation_file
from t5jax.models import ComputePolicy, check_saveable, quantize_params, resolve_dtype
from t5jax.pretrained import (
    Weights,
    find_generation_settings,
    load_pretrained,
    locate_checkpoint,
    read_sentence_encoder,
)
from t5jax.pretrained.hf import save_hf
from t5jax.text2text import Text2Text
from t5jax.tokenizers import Tokenizer


def load(
    name_or_path: str | os.PathLike,
    *,
    dtype: str = "auto",
    weights: Literal["float", "int8"] = "float",
    encoder_only: bool = False,
    mesh: Mesh | None = None,
    tokenizer: Tokenizer | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
) -> Text2Text:
    """Load a T5 from a folder, a file or the Hugging Face hub.

    Args:
      name_or_path: folder written by `save`, `scripts/pretrain.py`, Hugging Face transformers,
        diffusers or sentence-transformers; .safetensors file; T5X or Mesh TensorFlow checkpoint;
        or hub id such as "google/flan-t5-small".
      dtype: "float32" or "bfloat16", the dtype of both parameters and computation; or "auto":
        float32 parameters, computation in bfloat16 on TPU and GPU, in float32 on CPU.
      weights: "int8" rounds every kernel to 8 bits, with one scale per output feature: a quarter of
        the memory, and fastest on CPU.  The change of the logits is measured as `logit_error`.
        The model cannot be saved.
      encoder_only: load no decoder; only `encode` and `embed` work.
      mesh: mesh to shard parameters over, by the sharding rules of the model's family; each host
        holds only its shards.  Defaults to the first device.
      tokenizer: tokenizer to use; defaults to the tokenizer of the model.
      revision: branch, tag or commit on the hub.
      subfolder: folder of the model within `name_or_path`, such as "text_encoder_2".
    Returns:
      The model with its tokenizer, if it has one.
    Raises:
      FileNotFoundError: there is no such folder, and no such model on the hub.
      ConnectionError: the hub cannot be reached and the model is not in its cache.
      ValueError: the files are not a T5 or are inconsistent, or an option is invalid.

    Examples:
      >>> t5.save("my-model")
      >>> t5jax.load("my-model").generate(["the baker"], allowed_texts=["Lisbon"])
      ['Lisbon']
    """
    policy = ComputePolicy(dtype=resolve_dtype(dtype))
    if weights not in ("float", "int8"):
        raise ValueError(f"weights must be 'float' or 'int8', got {weights!r}.")
    if weights == "int8" and (mesh is not None or encoder_only):
        raise ValueError("weights='int8' must come without mesh and encoder_only; remove them.")
    path = locate_checkpoint(name_or_path, revision=revision, subfolder=subfolder)
    generation = from_generation_file(find_generation_settings(path), source=path)
    config, params, own_tokenizer = load_pretrained(
        path,
        encoder_only=encoder_only,
        dtype=np.dtype(jnp.float32 if dtype == "auto" else dtype),
        mesh=mesh,
    )
    sentence_encoder = read_sentence_encoder(path, config, name=str(name_or_path))
    error = None
    if weights == "int8":
        params, error = quantize_params(params, config, policy=policy)
    return Text2Text(
        config,
        params,
        tokenizer or own_tokenizer,
        policy=policy,
        generation_config=generation,
        sentence_encoder=sentence_encoder,
        logit_error=error,
    )


def export_hf(t5: Text2Text, folder: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Export a model to a folder that Hugging Face transformers loads.

    Args:
      t5: model to export.
      folder: output folder, written atomically.
      overwrite: replace an existing folder instead of raising an error.
    Raises:
      ValueError: the weights are int8.
      FileExistsError: `folder` exists, is not empty, and `overwrite` is False.

    Examples:
      >>> t5jax.export_hf(t5, "hf-folder")
      >>> t5jax.load("hf-folder").config == t5.config
      True
    """
    check_saveable(t5.params)
    save_hf(
        folder,
        t5.config,
        Weights.from_params(t5.params),
        t5.tokenizer,
        generation=to_generation_file(t5.generation_config),
        sentence_encoder=t5.sentence_encoder,
        overwrite=overwrite,
    )
