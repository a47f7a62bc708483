"""Models from the Hugging Face hub."""

from pathlib import Path

from t5jax.tokenizer import MODEL_FILES

# Weights in safetensors alone: a repository's pickles and other frameworks' files stay there.
_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    *MODEL_FILES,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def download(repo_id: str, *, revision: str | None = None) -> Path:
    """The folder, in the hub's cache, of a model's files.

    A connection that breaks is taken up where it broke; after an interrupt, complete files are kept
    and the others are fetched anew.

    Args:
      repo_id: such as "google/flan-t5-small".
      revision: branch, tag or commit.
    Raises:
      FileNotFoundError: the hub has no such model or revision, or does not show it to you.
      ConnectionError: the hub cannot be reached, and the model is not in the cache.
      ValueError: the model has no weights in safetensors files.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        path = Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(_FILES)))
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
    if not any(path.glob("*.safetensors")):
        raise ValueError(
            f"{repo_id} must have its weights in safetensors files on the hub, and it has none; "
            "load it with transformers, and save it with save_pretrained."
        )
    return path
