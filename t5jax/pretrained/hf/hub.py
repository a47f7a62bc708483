"""Models from the Hugging Face hub."""

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
    "*_Pooling/config.json",
    "*_Dense/*",
)

# Kinds of weights, best first; only the first that a repository has is downloaded.
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
    """Download a model's files to the hub's cache, unless they are in it.

    A broken connection is resumed; after an interrupt, complete files are kept and the others are
    downloaded again.

    Args:
      repo_id: such as "google/flan-t5-small".
      revision: branch, tag or commit.
      subfolder: the only one to download from.
    Returns:
      The folder of the repository, which has the subfolder too.
    Raises:
      FileNotFoundError: the hub has no such model or revision, or denies access to it.
      ConnectionError: the hub cannot be reached, and the model is not in the cache.
      ValueError: the model has no weights in a format that is read.
    """
    for weights in _WEIGHTS:
        names = [*_FILES, *weights]
        # Old sentence encoders have theirs below the projection's.
        names += [f"0_Transformer/{name}" for name in names]
        path = _fetch(repo_id, revision, subfolder, names)
        folder = path / subfolder if subfolder else path
        if any(file for name in weights for file in folder.glob(f"**/{name}")):
            return path
    raise ValueError(
        f"{repo_id} must have weights in safetensors, torch or Flax files"
        f"{f' in its folder {subfolder}' if subfolder else ''}, and there are none on the hub, or, "
        "without a connection, in the cache."
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
            f"{repo_id} is neither a folder here nor a model on the hub; check the spelling, and "
            "run `hf auth login` if the model is private."
        ) from error
    # Besides its own errors, the client lets those of its two transports pass, httpx and hf_xet.
    except Exception as error:
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        if isinstance(error.__cause__, errors.OfflineModeIsEnabled):
            reason = "HF_HUB_OFFLINE is set"
        raise ConnectionError(
            f"{repo_id} is not a folder here, and could not be fetched from the hub ({reason}); "
            "check the path, or connect once so that the model enters the cache."
        ) from error
