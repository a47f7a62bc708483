"""A run: the options that all runs share, and the folder that records them.

The folder makes the same command continue the run, and refuses another one.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import yaml

from t5jax.data import ExampleSource
from t5jax.errors import check_at_least
from t5jax.fileio import is_temporary, read_json_object, write_atomically
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

# Options that were added later, with the values of runs that do not record them.
UNRECORDED = {"optimizer.momentum": 0.95}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Options that pre-training and fine-tuning share.

    Attributes:
      output: Folder of the run, made if absent; if it holds this same run, the run continues.
      model: Architecture: 'tiny', a published size such as 't5-v1_1-base', or a JSON file with the
        fields of T5Config.  But for a JSON file, the vocabulary size is the tokenizer's.
      tokenizer: Folder of a tokenizer, such as a downloaded T5's, or 'bytes'.  Without it, one is
        trained.
      vocab_size: Pieces of the tokenizer that is trained, 4000 unless given; 100 sentinels are
        added.
      batch_size: Rows a step, over all devices.
      optimizer: How parameters are updated.
      dropout_rate: Instead of the model's.
      dropout_steps: Steps with that dropout, and none after them, for models that are too small or
        trained too briefly to overfit (early dropout, arXiv:2303.01500).  Unless given, all.
      dtype: Type to compute in; auto is bfloat16 on TPU and GPU and float32 on a CPU.
      remat: What the backward pass recomputes to save memory: nothing (the default), all but the
        matrix products with weights ('dots'), or each block ('full').
      attention: How attention is computed: for all pairs of positions at once ('plain'), or block
        by block, in less memory ('blockwise', or 'pallas' as a kernel for TPU).  'auto', the
        default, chooses by the length.
      mesh: How devices share the work.
      hosts: The processes that train together.
      seed: Of initial parameters, dropout, and what is random about the data.
    """

    output: str
    model: str = "tiny"
    tokenizer: str | None = None
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
                f"vocab_size must be left out with a tokenizer, got {self.vocab_size}; it is the "
                "size of one that is trained."
            )
        if "://" in self.output:
            raise ValueError(
                f"output must be a folder of this machine, got {self.output}; mount the bucket."
            )
        if self.model != "tiny" and not self.model.endswith(".json"):
            T5Config.preset(self.model)

    @property
    def folder(self) -> Path:
        """Return the folder of the run."""
        return Path(self.output).expanduser()

    @property
    def model_changes(self) -> dict[str, Any]:
        """Return the fields of T5Config that options override."""
        return {} if self.dropout_rate is None else {"dropout_rate": self.dropout_rate}

    def compute_policy(self) -> ComputePolicy:
        """Return how the model computes.

        A model file of an older version may set what the options leave open.
        """
        dtype = None if self.dtype == "auto" else self.dtype
        options = {"dtype": dtype, "remat": self.remat, "attention": self.attention}
        fields = read_compute_fields(self.model) if self.model.endswith(".json") else {}
        fields |= {name: value for name, value in options.items() if value is not None}
        return ComputePolicy(**{"dtype": resolve_dtype("auto"), **fields})

    @property
    def lengths(self) -> tuple[int, int]:
        """Return the numbers of tokens in a row of inputs and in one of targets."""
        raise NotImplementedError

    @property
    def keep_best(self) -> int:
        """Return the number of best checkpoints to keep."""
        return self.fit.keep_best

    @property
    def keep_round(self) -> tuple[int, int] | None:
        """Return `keep_round` of `CheckpointManager`."""
        return None


# Options that may change when a run is continued: they do not affect what it learns, except for the
# last bits where devices divide a sum differently.
_RESUMABLE = (
    "output",
    "mesh",
    "hosts",
    "remat",
    "attention",
    "step.accumulate",
    "step.vocab_chunks",
    *(f"fit.{field.name}" for field in dataclasses.fields(FitConfig) if field.name != "steps"),
)


def check_run_dir(
    folder: Path, options: dict[str, Any], *, unrecorded: dict[str, Any] | None = None
) -> None:
    """Check that the folder of a run is new, or holds a run with these options.

    Args:
      folder: folder of the run.
      options: options by dotted name.
      unrecorded: options that were added later, with the values of runs that do not record them.
    Raises:
      FileExistsError: the folder holds something else.
      FileNotFoundError: this process does not see what process 0 wrote.
      ValueError: the folder holds a run with other options.
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
    recorded = {**(unrecorded or {}), **_read_run(path)["options"]}
    # Older versions recorded "auto" if a model file set the type, and the type in the config, which
    # a run that crashed in between lacks.
    if recorded.get("dtype") == "auto":
        config = folder / CONFIG_FILE
        fields = read_compute_fields(config) if config.exists() else {}
        recorded["dtype"] = fields.get("dtype", options.get("dtype"))
    for name in sorted({*options, *recorded}):
        if options.get(name) != recorded.get(name):
            raise ValueError(
                f"{folder} holds another run: its {name} is {recorded.get(name)!r}, and "
                f"{options.get(name)!r} was asked for; choose another --output, or give the "
                "options of that run to continue it."
            )


def recorded_options(config: RunConfig, *, resumable: Collection[str]) -> dict[str, Any]:
    """Return all options that affect the numbers of a run, by dotted name.

    Args:
      config: options of the run.
      resumable: further options that may change when the run is continued.
    """
    excluded = {*_RESUMABLE, *resumable}
    if not config.optimizer.schedule.spans_run:
        excluded.add("fit.steps")  # such a run can be made longer

    def flatten(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if prefix in excluded:
            return
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from flatten(f"{prefix}.{name}".lstrip("."), inner)
        else:
            # JSON, in which they are compared, has no tuples.
            yield prefix, list(value) if isinstance(value, tuple) else value

    # Resolved, so that a run begun on one kind of device does not change type on another.
    dtype = config.compute_policy().dtype
    return {**dict(flatten("", dataclasses.asdict(config))), "dtype": dtype}


def claim_run_dir(
    folder: Path,
    options: dict[str, Any],
    text_digest: str,
    *,
    model: T5Config,
    tokenizer: Tokenizer,
) -> None:
    """Make the folder this run's, or check that its run has this text and this model.

    Process 0 writes; the others check.

    Args:
      folder: folder of the run.
      options: as from `recorded_options`.
      text_digest: identity of the training data, as from `corpus_digest`.
      model: architecture, written to the folder.
      tokenizer: of the run, written to the folder.
    Raises:
      ValueError: the run has other text, or another model.
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
                if old != new:
                    raise ValueError(
                        f"{folder} holds another run: its model has {field.name} = {old!r}, and "
                        f"{new!r} was asked for; choose another --output."
                    )
    if not is_main_process():
        return
    folder.mkdir(parents=True, exist_ok=True)
    record = {"options": options, "corpus": text_digest}
    # Older versions recorded fewer options, and a dtype of "auto", which the config written below
    # no longer resolves.
    if not path.exists() or _read_run(path) != record:
        write_atomically(path, json.dumps(record, indent=2) + "\n")
    # Written even if the record is there, since a run may have crashed in between.
    tokenizer.save(folder)
    write_atomically(folder / CONFIG_FILE, model.to_json())


def save_options(config: RunConfig) -> None:
    """Write the options of a run to its folder, as a file for `--config`; process 0 only.

    Leaves out `output` and `hosts`, which belong to one run on one machine.

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
    """Return a hash of the number of chunks and of up to 64 evenly spaced ones."""
    digest = hashlib.sha256(str(len(chunks)).encode())
    for i in range(0, len(chunks), -(-len(chunks) // 64)):
        digest.update(chunks[i].tobytes())
    return digest.hexdigest()


def _read_run(path: Path) -> dict[str, Any]:
    try:
        record = read_json_object(path)
        return {"options": dict(record["options"]), "corpus": str(record["corpus"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the record of a run; choose another --output.") from error
