"""Which run a folder holds, so that the same command continues it and another one does not."""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from t5jax.data import ExampleSource
from t5jax.fileio import is_temporary, read_json_object, write_atomically
from t5jax.models import COMPUTE_FIELDS, T5Config, resolve_dtype
from t5jax.parallel import is_main_process, process_index
from t5jax.pretrained import CONFIG_FILE
from t5jax.tokenizers import Tokenizer, load_tokenizer
from t5jax.training.loop import FitConfig
from t5jax.training.run import RunConfig

RUN_FILE = "run.json"


# Options that may differ when a run is continued: what it learns does not depend on them, but for
# the last bits where devices divide a sum in another way.
_FREE = (
    "output",
    "mesh",
    "hosts",
    "remat",
    "step.accumulate",
    "step.vocab_chunks",
    *(f"fit.{field.name}" for field in dataclasses.fields(FitConfig) if field.name != "steps"),
)


def check_run_dir(
    folder: Path, options: dict[str, Any], *, unrecorded: dict[str, Any] | None = None
) -> None:
    """Raises unless the folder is free, or holds a run with these options.

    Args:
      folder: of the run.
      options: by dotted name.
      unrecorded: the options that came later, and what runs have that were begun before.
    """
    path = folder / RUN_FILE
    if not path.exists():
        if not is_main_process():
            raise FileNotFoundError(
                f"output must be a folder on a disk that all processes share, got {folder}, in "
                f"which process {process_index()} does not see what process 0 wrote."
            )
        if folder.exists() and not (folder.is_dir() and all(map(is_temporary, folder.iterdir()))):
            raise FileExistsError(
                f"output must be a new or empty folder or a run to continue, got {folder}, which "
                "holds something else; choose another --output."
            )
        return
    found = {**(unrecorded or {}), **_read_run(path)["options"]}
    for name in sorted({*options, *found}):
        if options.get(name) != found.get(name):
            raise ValueError(
                f"{folder} holds another run: its {name} is {found.get(name)!r}, and "
                f"{options.get(name)!r} was asked for; choose another --output, or give the "
                "options of that run to continue it."
            )


def recorded_options(config: RunConfig, *, free: Collection[str]) -> dict[str, Any]:
    """All options on which the numbers of a run depend, by dotted name.

    Args:
      config: of the run.
      free: options of its own that may differ when a run is continued.
    """
    free = {*_FREE, *free}
    if not config.optimizer.schedule.spans_run:
        free.add("fit.steps")  # such a run can be made longer

    def flatten(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if prefix in free:
            return
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from flatten(f"{prefix}.{name}".lstrip("."), inner)
        else:
            # JSON, in which they are compared, has no tuples.
            yield prefix, list(value) if isinstance(value, tuple) else value

    # Resolved, so that a run begun on one kind of device does not change type on another.
    dtype = config.dtype if config.model.endswith(".json") else resolve_dtype(config.dtype)
    return {**dict(flatten("", dataclasses.asdict(config))), "dtype": dtype}


def claim_run_dir(
    folder: Path,
    options: dict[str, Any],
    text_digest: str,
    *,
    model: T5Config,
    tokenizer: Tokenizer,
    write: bool = True,
) -> None:
    """Makes the folder this run's, or checks that the run had this text and this model.

    Without `write` it only checks, where another process has claimed the folder.
    """
    path = folder / RUN_FILE
    if path.exists():
        if _read_run(path)["corpus"] != text_digest:
            raise ValueError(
                f"{folder} holds a run on other text: what {RUN_FILE} records of the corpus is not "
                "what is there now; restore the text, or choose another --output."
            )
        if (folder / CONFIG_FILE).exists():
            before = T5Config.from_file(folder / CONFIG_FILE)
            for field in dataclasses.fields(model):
                old, new = getattr(before, field.name), getattr(model, field.name)
                if old != new and field.name not in COMPUTE_FIELDS:
                    raise ValueError(
                        f"{folder} holds another run: its model has {field.name} = {old!r}, and "
                        f"{new!r} was asked for; choose another --output."
                    )
    if not write:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        record = {"options": options, "corpus": text_digest}
        write_atomically(path, json.dumps(record, indent=2) + "\n")
    # Written again after a crash between these lines; both are functions of the options.
    if load_tokenizer(folder) is None:
        tokenizer.save(folder)
    write_atomically(folder / CONFIG_FILE, model.to_json())


def corpus_digest(chunks: ExampleSource) -> str:
    """What tells one corpus from another: its length, and up to 64 evenly spaced chunks."""
    found = hashlib.sha256(str(len(chunks)).encode())
    for i in range(0, len(chunks), -(-len(chunks) // 64)):
        found.update(chunks[i].tobytes())
    return found.hexdigest()


def _read_run(path: Path) -> dict[str, Any]:
    try:
        record = read_json_object(path)
        return {"options": dict(record["options"]), "corpus": str(record["corpus"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the record of a run; choose another --output.") from error
