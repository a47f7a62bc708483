"""Options shared by all runs, and the run directory that records them.

The same options resume the run of a directory; other options are rejected.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import yaml

from t5jax.data import ExampleSource
from t5jax.errors import check_at_least
from t5jax.fileio import JsonObject, exclusive, is_temporary, read_json_object, write_atomically
from t5jax.models import (
    AttentionKind,
    ComputePolicy,
    Remat,
    T5Config,
    read_compute_fields,
    resolve_dtype,
)
from t5jax.optim import OptimizerConfig
from t5jax.parallel import HostsConfig, MeshConfig, is_main_process, process_index
from t5jax.pretrained import CONFIG_FILE
from t5jax.tokenizers import Tokenizer
from t5jax.training.step import StepConfig
from t5jax.training.trainer import FitConfig

RUN_FILE = "run.json"
OPTIONS_FILE = "options.yaml"
_LOCK_FILE = ".lock"

# Options added later, with the values that older runs used implicitly.
UNRECORDED = {"optimizer.momentum": 0.95}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Options shared by pre-training and fine-tuning.

    Attributes:
      output: run directory, created if missing; a run with the same options is resumed.
      checkpoint: folder, file or hub id of the initial checkpoint, in any format that t5jax loads;
        random initialization if unset.
      model: architecture if there is no checkpoint: 'tiny', a published size such as
        't5-v1_1-base', or a JSON file with the fields of T5Config.  The vocabulary size is the
        tokenizer's, except with a JSON file.
      tokenizer: folder of a tokenizer, such as that of a downloaded T5, or 'bytes'; defaults to the
        checkpoint's, or without a checkpoint to one trained on the data.
      allow_other_tokenizer: allow a tokenizer that differs from that of the checkpoint or of the
        run to resume.
      vocab_size: vocabulary size of the trained tokenizer, without its 100 sentinels; 4000 by
        default.
      batch_size: number of rows per step, over all devices.
      fit: number of steps, evaluation, checkpoints and logs.
      optimizer: optimizer and learning rate schedule.
      step: loss, gradient accumulation, freezing and parameter averaging.
      dropout_rate: dropout probability; defaults to the model's.
      dropout_steps: number of initial steps with dropout, for models that underfit (early dropout,
        arXiv:2303.01500); defaults to all steps.
      dtype: compute dtype; auto = bfloat16 on TPU and GPU, float32 on CPU.
      remat: rematerialization in the backward pass, to save memory: 'none' (default), 'dots'
        (recompute everything except matmuls with weights) or 'full' (recompute whole blocks).
      attention: attention kernel: 'plain' (all scores at once), 'blockwise' (in blocks, less
        memory), 'pallas' (blockwise TPU kernel) or 'auto' (default, chosen by length).
      mesh: device mesh.
      hosts: processes of a multi-process run.
      seed: random seed for init, dropout and data order.
    """

    output: str
    checkpoint: str | None = None
    model: str = "tiny"
    tokenizer: str | None = None
    allow_other_tokenizer: bool = False
    vocab_size: int | None = None
    batch_size: int
    fit: FitConfig = FitConfig(steps=1000)
    optimizer: OptimizerConfig
    step: StepConfig = StepConfig()
    dropout_rate: float | None = None
    dropout_steps: int | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    remat: Remat | None = None
    attention: AttentionKind | None = None
    mesh: MeshConfig = MeshConfig()
    hosts: HostsConfig = HostsConfig()
    seed: int = 0

    def __post_init__(self):
        check_at_least(1, batch_size=self.batch_size, dropout_steps=self.dropout_steps)
        if self.dropout_steps is not None and not self.dropout_rate:
            raise ValueError(
                f"dropout_rate must be above 0 for dropout_steps={self.dropout_steps}, got "
                f"{self.dropout_rate}; T5's is 0.1."
            )
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be in [0, 2**31), got {self.seed}.")
        if self.tokenizer is not None and self.vocab_size is not None:
            raise ValueError(
                f"vocab_size must be left out with a tokenizer, got {self.vocab_size}; it only "
                "applies if a tokenizer is trained."
            )
        if self.checkpoint is not None and self.model != "tiny":
            raise ValueError(
                f"model must be left out with a checkpoint, got {self.model}; the checkpoint "
                "defines the architecture."
            )
        if self.checkpoint is not None and self.vocab_size is not None:
            raise ValueError(
                f"vocab_size must be left out with a checkpoint, got {self.vocab_size}; it only "
                "applies if a tokenizer is trained."
            )
        if "://" in self.output:
            raise ValueError(
                f"output must be a folder of this machine, got {self.output}; mount the bucket."
            )
        if self.model != "tiny" and not self.model.endswith(".json"):
            T5Config.preset(self.model)

    @property
    def folder(self) -> Path:
        """Return the run directory."""
        return Path(self.output).expanduser()

    @property
    def model_changes(self) -> JsonObject:
        """Return the fields of T5Config that the options override."""
        return {} if self.dropout_rate is None else {"dropout_rate": self.dropout_rate}

    def compute_policy(self) -> ComputePolicy:
        """Return the compute policy of the options.

        A model file of an older version sets the defaults of unset options.

        Returns:
          Policy with a resolved dtype, "float32" or "bfloat16".
        """
        dtype = None if self.dtype == "auto" else self.dtype
        options = {"dtype": dtype, "remat": self.remat, "attention": self.attention}
        fields = read_compute_fields(self.model) if self.model.endswith(".json") else {}
        fields |= {name: value for name, value in options.items() if value is not None}
        return ComputePolicy(**{"dtype": resolve_dtype("auto"), **fields})

    @property
    def lengths(self) -> tuple[int, int]:
        """Return the number of tokens in a row of inputs, and in a row of targets."""
        raise NotImplementedError

    @property
    def keep_best(self) -> int:
        """Return the number of best checkpoints to keep."""
        return self.fit.keep_best

    @property
    def keep_round(self) -> tuple[int, int] | None:
        """Return the argument `keep_round` of `CheckpointManager`."""
        return None


# Options that may change when a run is resumed: results differ at most by rounding, when devices
# split a sum differently.
_RESUMABLE = (
    "output",
    "allow_other_tokenizer",
    "model",  # compared as an architecture
    "mesh",
    "hosts",
    "remat",
    "attention",
    "step.accumulate",
    "step.vocab_chunks",
    *(f"fit.{field.name}" for field in dataclasses.fields(FitConfig) if field.name != "steps"),
)


class RunLock:
    """Lock of a run directory, held by process 0 until the end of the run."""

    def __init__(self, folder: Path):
        """Store the run directory.

        Args:
          folder: run directory; the lock file is `.lock` in it.
        """
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._held = False

    def __enter__(self) -> "RunLock":
        if (self._folder / RUN_FILE).exists():
            self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def acquire(self) -> None:
        """Take the lock of a folder that exists; a new run does so when it makes its folder.

        Raises:
          FileExistsError: another run holds it.
        """
        if self._held or not is_main_process():
            return
        message = (
            f"output must not be in use, got {self._folder}, which another process is writing; "
            "wait for it to finish, or choose another --output."
        )
        self._stack.enter_context(exclusive(self._folder / _LOCK_FILE, message))
        self._held = True


def check_run_dir(
    folder: Path,
    options: JsonObject,
    *,
    unrecorded: JsonObject | None = None,
    resumable: Collection[str] = (),
) -> None:
    """Check that a run directory is new, or holds a run with the same options.

    Args:
      folder: run directory.
      options: options by dotted name.
      unrecorded: options added later, with the values that older runs used implicitly.
      resumable: options that older runs recorded, although they may change.
    Raises:
      FileExistsError: the folder is not empty and not a run directory.
      FileNotFoundError: this process does not see the files of process 0.
      ValueError: the folder holds a run with other options.
    """
    path = folder / RUN_FILE
    if not path.exists():
        if not is_main_process():
            raise FileNotFoundError(
                f"output must be a folder on a disk shared by all processes, got {folder}, where "
                f"process {process_index()} does not see the files of process 0."
            )
        if folder.exists() and not (folder.is_dir() and all(map(_is_leftover, folder.iterdir()))):
            raise FileExistsError(
                f"output must be a new or empty folder or a run to continue, got {folder}, which "
                "holds something else; choose another --output."
            )
        return
    recorded = {**(unrecorded or {}), **_read_run(path)["options"]}
    # Older versions recorded "auto" if a model file set the dtype.  The dtype is in the config,
    # which is missing if the run crashed before writing it.
    if recorded.get("dtype") == "auto":
        config = folder / CONFIG_FILE
        fields = read_compute_fields(config) if config.exists() else {}
        recorded["dtype"] = fields.get("dtype", options.get("dtype"))
    for name in sorted({*options, *recorded} - {*_RESUMABLE, *resumable}):
        if options.get(name) != recorded.get(name):
            raise ValueError(
                f"{folder} holds a run with {name} = {recorded.get(name)!r}, got "
                f"{options.get(name)!r}; choose another --output, or repeat the options of that "
                "run to resume it."
            )


def _is_leftover(path: Path) -> bool:
    return path.name == _LOCK_FILE or is_temporary(path)


def recorded_options(config: RunConfig, *, resumable: Collection[str]) -> JsonObject:
    """Return the options that affect the results of a run, by dotted name.

    Args:
      config: options of the run.
      resumable: additional options that may change when the run is resumed.
    Returns:
      JSON values by name, such as "optimizer.clip_norm"; "dtype" is resolved.
    """
    excluded = {*_RESUMABLE, *resumable}
    if not config.optimizer.schedule.spans_run:
        excluded.add("fit.steps")  # the schedule allows more steps later

    def flatten(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if prefix in excluded:
            return
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from flatten(f"{prefix}.{name}".lstrip("."), inner)
        else:
            # Compared with JSON, which has no tuples.
            yield prefix, list(value) if isinstance(value, tuple) else value

    # Resolved, so that a run cannot change dtype when resumed on another kind of device.
    dtype = config.compute_policy().dtype
    return {**dict(flatten("", dataclasses.asdict(config))), "dtype": dtype}


def claim_run_dir(
    folder: Path,
    options: JsonObject,
    text_digest: str,
    *,
    model: T5Config,
    tokenizer: Tokenizer,
    lock: RunLock,
) -> None:
    """Record a run in its directory, or check that the recorded text and model are the same.

    Process 0 writes; all processes check.

    Args:
      folder: run directory.
      options: options from `recorded_options`.
      text_digest: digest of the training data, such as from `corpus_digest`.
      model: architecture, written to the folder.
      tokenizer: tokenizer of the run, written to the folder.
      lock: lock of the folder.
    Raises:
      ValueError: the folder holds a run with other text or another model.
      FileExistsError: another process writes the folder.
    """
    path = folder / RUN_FILE
    if path.exists():
        if _read_run(path)["corpus"] != text_digest:
            raise ValueError(
                f"{folder} holds a run on other data, with another digest in {RUN_FILE}; "
                "restore the data of that run, or choose another --output."
            )
        if (folder / CONFIG_FILE).exists():
            before = T5Config.from_file(folder / CONFIG_FILE)
            for field in dataclasses.fields(model):
                old, new = getattr(before, field.name), getattr(model, field.name)
                if old != new:
                    raise ValueError(
                        f"{folder} holds a run whose model has {field.name} = {old!r}, got "
                        f"{new!r}; choose another --output."
                    )
    if not is_main_process():
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock.acquire()
    record = {"options": options, "corpus": text_digest}
    # Older versions recorded fewer options, and dtype "auto", which the config written below no
    # longer resolves.
    if not path.exists() or _read_run(path) != record:
        write_atomically(path, json.dumps(record, indent=2) + "\n")
    # Written even if the record exists: a run may have crashed before writing these.
    tokenizer.save(folder)
    write_atomically(folder / CONFIG_FILE, model.to_json())


def save_options(config: RunConfig) -> None:
    """Write the options of a run to `options.yaml`, a file for `--config`; process 0 only.

    `output` and `hosts` are excluded, as they are specific to a run and a machine.

    Args:
      config: options of the run.
    """
    if not is_main_process():
        return
    options = dataclasses.asdict(config)
    for name in ("output", "hosts"):
        del options[name]
    text = yaml.safe_dump(json.loads(json.dumps(options)), sort_keys=False)
    write_atomically(config.folder / OPTIONS_FILE, text)


def corpus_digest(chunks: ExampleSource) -> str:
    """Return the SHA-256 of the number of chunks and of up to 64 evenly spaced chunks."""
    digest = hashlib.sha256(str(len(chunks)).encode())
    for i in range(0, len(chunks), -(-len(chunks) // 64)):
        digest.update(chunks[i].tobytes())
    return digest.hexdigest()


def _read_run(path: Path) -> JsonObject:
    try:
        record = read_json_object(path)
        return {"options": dict(record["options"]), "corpus": str(record["corpus"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the record of a run; choose another --output.") from error
