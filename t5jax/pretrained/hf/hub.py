"""Downloads from the Hugging Face hub."""

from pathlib import Path

from t5jax.tokenizers import MODEL_FILES

_FILES = (
    "config.json",
    "generation_config.json",
    *MODEL_FILES,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    "*_Pooling/config.json",
    "*_Normalize/config.json",
    "*_Dense/*",
    "*_LayerNorm/*",
)

# Weight formats in order of preference; only the first one that a repository has is downloaded.
_WEIGHTS = (
    (
        "model.safetensors",
        "model.safetensors.index.json",
        "model-*-of-*.safetensors",
    ),
    (
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "pytorch_model-*-of-*.bin",
    ),
    (
        "flax_model.msgpack",
        "flax_model.msgpack.index.json",
        "flax_model-*-of-*.msgpack",
    ),
)


def download_snapshot(
    repo_id: str, *, revision: str | None = None, subfolder: str | None = None
) -> Path:
    """Download a model's files to the hub cache if they are not there yet.

    A broken connection is resumed; after an interrupt, only incomplete files are downloaded again.

    Args:
      repo_id: repository, such as "google/flan-t5-small".
      revision: branch, tag or commit.
      subfolder: subfolder to download; None downloads the model at the top level.
    Returns:
      The folder of the repository, which contains the subfolder.
    Raises:
      FileNotFoundError: the hub has no such model or revision, or denies access to it.
      ConnectionError: the hub cannot be reached, and the model is not in the cache.
      ValueError: the model has no weights in a supported format.
    """
    for weights in _WEIGHTS:
        names = [*_FILES, *weights]
        # Old sentence encoders keep the T5 in this subfolder.
        names += [f"0_Transformer/{name}" for name in names]
        path = _fetch(repo_id, revision, subfolder, names)
        folder = path / subfolder if subfolder else path
        if any(file for name in weights for file in folder.glob(f"**/{name}")):
            return path
    raise ValueError(
        f"{repo_id} must have weights in safetensors, torch or Flax files"
        f"{f' in its folder {subfolder}' if subfolder else ''}, but there are none on the hub, or "
        "in the cache when offline."
    )


def _fetch(repo_id: str, revision: str | None, subfolder: str | None, names: list[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    patterns = [f"{subfolder}/{name}" if subfolder else name for name in names]
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))
    except errors.HFValidationError as error:
        raise FileNotFoundError(
            f"{repo_id} must be an existing folder or a hub id such as google/flan-t5-small; "
            "there is no such folder."
        ) from error
    except errors.GatedRepoError as error:
        raise FileNotFoundError(
            f"{repo_id} is gated: accept its terms on the hub, then run `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo_id} has no revision {revision!r} on the hub.") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo_id} is neither a local folder nor a model on the hub; check the spelling, and "
            "run `hf auth login` if the model is private."
        ) from error
    # The client also raises the errors of its transports, httpx and hf_xet.
    except Exception as error:
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        if isinstance(error.__cause__, errors.OfflineModeIsEnabled):
            reason = "HF_HUB_OFFLINE is set"
        raise ConnectionError(
            f"{repo_id} is not a local folder and could not be downloaded from the hub ({reason}); "
            "check the path, or go online once to cache the model."
        ) from error
