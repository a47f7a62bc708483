"""Models from the Hugging Face hub."""

from pathlib import Path

# Weights in safetensors alone: a repository's pickles and other frameworks' files stay there.
_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def download(repo_id: str, *, revision: str | None = None) -> Path:
    """The folder, in the hub's cache, of a model's files; an interrupted download is continued.

    Args:
      repo_id: such as "google/flan-t5-small".
      revision: branch, tag or commit.
    Raises:
      FileNotFoundError: the hub has no such model or revision, or does not show it to you.
      ConnectionError: the hub cannot be reached, and the model is not in the cache.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(_FILES)))
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
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ConnectionError(
            f"{repo_id} is not a folder here, and could not be fetched from the hub ({reason}); "
            "check the path, or connect once so that the model enters the cache."
        ) from error
