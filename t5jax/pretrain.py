"""A whole pre-training run: text, vocabulary, span corruption, training, a look at the result."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import optax
import tyro
from jax.sharding import Mesh

from t5jax import (
    baselines,
    batches,
    corpus,
    flops,
    infill,
    ingredients,
    optimizer,
    placement,
    processes,
    runfolder,
    runlog,
    schedule,
    sharding,
    train,
)
from t5jax import fit as fitting
from t5jax.checkpoint import Checkpoints
from t5jax.config import Remat, T5Config
from t5jax.corpus import DataConfig
from t5jax.denoise import SpanCorruption
from t5jax.fit import FitConfig
from t5jax.model import stacked
from t5jax.optimizer import OptimizerConfig
from t5jax.pretrained.folder import CHECKPOINTS
from t5jax.processes import HostsConfig
from t5jax.profiling import Profiler
from t5jax.schedule import ScheduleConfig
from t5jax.sharding import MeshConfig
from t5jax.text2text import Text2Text
from t5jax.tokenizer import Tokenizer
from t5jax.train import StepConfig

# Options that may differ when a run is continued, beside those that may in any run.
_FREE = ("eval_examples",)

# Options that a run begun before there were any does not record, and what it was trained with.
_UNRECORDED = {"step.label_smoothing": 0.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pre-trains a T5 by span corruption.

    Without arguments: a tiny model on the Python documentation of this machine, in minutes.
    Stopped by Ctrl-C, SIGTERM or a crash, the same command continues where it was.
    """

    output: str = "runs/pretrain"
    """Folder of the run, made if absent; if it holds this same run, the run continues."""
    model: str = "tiny"
    """Architecture: 'tiny', a published size such as 't5-v1_1-base', or a JSON file with the
    fields of T5Config.  But for a JSON file, the vocabulary size is the tokenizer's."""
    tokenizer: str | None = None
    """Folder of a tokenizer, such as a downloaded T5's, or 'bytes'.  Without it, one is trained."""
    vocab_size: int | None = None
    """Pieces of the tokenizer that is trained, 4000 unless given; 100 sentinels are added."""
    data: DataConfig = DataConfig()
    """The text."""
    corruption: SpanCorruption = SpanCorruption()
    """What is hidden of it."""
    input_length: int = 128
    """Tokens the encoder reads; T5 used 512."""
    batch_size: int = 16
    """Examples a step, over all devices; T5 used 128 and later 2048."""
    eval_examples: int = 512
    """Held-out examples an evaluation looks at, at most."""
    fit: Annotated[FitConfig, tyro.conf.arg(name="")] = FitConfig(steps=1000)
    optimizer: OptimizerConfig = OptimizerConfig(
        name="adafactor",
        schedule=ScheduleConfig(name="rsqrt", learning_rate=0.3, warmup_steps=100),
    )
    """How parameters are updated."""
    step: Annotated[StepConfig, tyro.conf.arg(name="")] = StepConfig()
    dropout_rate: float | None = None
    """Instead of the model's."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type to compute in; auto is bfloat16 on TPU and GPU and float32 on a CPU."""
    remat: Remat | None = None
    """What the backward pass recomputes to save memory, instead of the model's choice: nothing, all
    but the matrix products with weights ('dots'), or each block ('full')."""
    mesh: MeshConfig = MeshConfig()
    """How devices share the work."""
    hosts: HostsConfig = HostsConfig()
    """The processes that train together."""
    seed: int = 0
    """Of initial parameters, data order, corruption and dropout."""

    def __post_init__(self):
        for name in ("batch_size", "eval_examples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
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
        self.corruption.raw_length(self.input_length)
        if self.model != "tiny" and not self.model.endswith(".json"):
            T5Config.preset(self.model)


def run(config: PretrainConfig) -> Text2Text:
    """Trains, or goes on training, until the run is complete or interrupted.

    With several processes all must call it, with the same options but for `hosts.index`; an error
    in one ends all of them, with exit status 1.

    Returns:
      The model as it is then, also saved in `config.output`.
    Raises:
      ValueError, OSError: bad options, text or files.  All but a disk that runs full are noticed
        before training starts, and before anything is written to a new `config.output`.
    """
    processes.start(config.hosts)
    with processes.together():
        return _run(config)


class _Prepared(NamedTuple):
    """What a run needs beside its state."""

    mesh: Mesh
    tokenizer: Tokenizer
    model: T5Config
    tx: optax.GradientTransformation
    abstract: train.TrainState
    heldout_texts: Any
    chunks: batches.Source
    heldout: batches.Source
    example: Callable[[np.ndarray, np.random.Generator], batches.Batch]


def _prepare(config: PretrainConfig, folder: Path) -> _Prepared:
    """Reads the text, and makes the folder the run's."""
    options = runfolder.recorded(config, free=_FREE)
    runfolder.check(folder, options, unrecorded=_UNRECORDED)
    ingredients.check_files(config.model, config.tokenizer)
    mesh = sharding.make_mesh(config.mesh)
    train.check_batch_size(config.batch_size, mesh=mesh, accumulate=config.step.accumulate)
    texts, heldout_texts = corpus.read(config.data)
    tokenizer = ingredients.tokenizer(
        folder,
        lambda: corpus.documents(texts),
        source=config.tokenizer,
        vocab_size=config.vocab_size or 4000,
        say=processes.say,
    )
    ingredients.check_sentinels(
        tokenizer, corruption=config.corruption, input_length=config.input_length
    )
    changes = {"dropout_rate": config.dropout_rate, "remat": config.remat}
    model_config = ingredients.model(
        config.model,
        tokenizer,
        dtype=config.dtype,
        changes={name: value for name, value in changes.items() if value is not None},
    )

    length = config.corruption.raw_length(config.input_length)
    chunks = batches.Chunks(batches.TokenStream(batches.tokenize(texts, tokenizer)), length)
    heldout_stream = batches.TokenStream(batches.tokenize(heldout_texts, tokenizer))
    heldout = batches.Chunks(heldout_stream, length, name="held-out text")

    def example(tokens: np.ndarray, rng: np.random.Generator) -> batches.Batch:
        return batches.span_corruption_example(
            tokens,
            tokenizer=tokenizer,
            corruption=config.corruption,
            decoder_start_id=model_config.decoder_start_id,
            rng=rng,
        )

    tx = optimizer.make(config.optimizer, total_steps=config.fit.steps, stacked=stacked)
    abstract = train.abstract_state(model_config, tx, mesh=mesh, options=config.step)
    runfolder.claim(
        folder,
        options,
        runfolder.digest(chunks),
        model=model_config,
        tokenizer=tokenizer,
        write=processes.is_first(),
    )
    return _Prepared(
        mesh, tokenizer, model_config, tx, abstract, heldout_texts, chunks, heldout, example
    )


def _run(config: PretrainConfig) -> Text2Text:
    folder = Path(config.output).expanduser()
    jax.devices()  # all processes at once, before process 0 reads the text
    with processes.first_then_others("the preparation of the run"):
        made = _prepare(config, folder)
    mesh, total_steps = made.mesh, config.fit.steps
    rows = placement.rows(config.batch_size, mesh=mesh)
    data = batches.training(
        made.chunks, made.example, batch_size=config.batch_size, seed=config.seed, rows=rows
    )

    def eval_batches(rows: Sequence[int] | np.ndarray | None) -> list[batches.Batch]:
        found = batches.evaluation(
            made.heldout,
            made.example,
            batch_size=config.batch_size,
            seed=config.seed,
            max_examples=config.eval_examples,
            rows=rows,
        )
        return list(found)

    checkpoints = Checkpoints(
        folder / CHECKPOINTS,
        keep=config.fit.keep_checkpoints,
        keep_every=config.fit.keep_every,
        keep_best=config.fit.keep_best,
    )
    state = fitting.restore(checkpoints, made.abstract, data, warn=processes.say)
    if state is None:
        state = train.init_state(
            made.model, made.tx, mesh=mesh, seed=config.seed, options=config.step
        )
    else:
        processes.say(f"continuing at step {int(state.step)} of {total_steps} from {folder}")
    _describe(config, made, state)

    eval_step = train.make_eval_step(made.model, mesh=mesh)
    train_step = train.make_train_step(
        made.model,
        made.tx,
        schedule=schedule.learning_rate(config.optimizer.schedule, total_steps=total_steps),
        mesh=mesh,
        options=config.step,
        seed=config.seed,
    )
    measured = eval_batches(rows)
    past = runlog.evaluations(folder, until=int(state.step))
    with runlog.open_log(
        folder, total_steps=total_steps, start_step=int(state.step), process=processes.index()
    ) as log:
        fitted = fitting.fit(
            config.fit,
            state,
            data,
            train_step=train_step,
            evaluate=lambda params, step: train.evaluate(eval_step, params, measured, mesh=mesh),
            checkpoints=checkpoints,
            log=log,
            mesh=mesh,
            pad_id=made.model.pad_id,
            locate=lambda step: batches.chunk_numbers(
                len(made.chunks), step - 1, batch_size=config.batch_size, seed=config.seed
            ),
            step_flops=_step_flops(config, made),
            profiler=Profiler(folder / "profile", steps=config.fit.profile_steps),
            past=past,
        )
    checkpoints.close()
    t5 = Text2Text(made.model, processes.gathered(fitting.judged(fitted.state)), made.tokenizer)
    if fitted.evaluation is None:
        processes.say(
            f"saved step {int(fitted.state.step)} in {folder}; the same command continues it"
        )
    elif processes.is_first():
        _show(config, made, t5, fitted.evaluation, eval_batches(None))
    processes.barrier("the end of the run")
    return t5


def _show(
    config: PretrainConfig,
    made: _Prepared,
    t5: Text2Text,
    evaluation: dict[str, float],
    eval_batches: Sequence[batches.Batch],
) -> None:
    """Prints what came out, beside guesses that read nothing, and sentences."""
    counts = baselines.count_targets(made.chunks, made.example, made.model.vocab_size)
    uniform, unigram = baselines.losses(counts, eval_batches)
    processes.say(
        f"\nheld-out loss {evaluation['loss']:.3f} nats a target token, accuracy "
        f"{evaluation['accuracy']:.1%}; by guessing at random {uniform:.3f}, "
        f"by token frequency {unigram:.3f}"
    )
    processes.say("\nheld-out sentences, [what stood there -> what the model fills in]:")
    sentences = infill.sentences(corpus.documents(made.heldout_texts), count=6)
    for line in infill.show(t5, sentences, seed=config.seed):
        processes.say(f"  {line}")
    processes.say(
        f"\nuse it:  import t5jax; t5 = t5jax.load({str(Path(config.output).expanduser())!r})"
    )


def _step_flops(config: PretrainConfig, made: _Prepared) -> float:
    input_length, target_length = config.corruption.lengths(
        config.corruption.raw_length(config.input_length)
    )
    return flops.train_step(
        made.model,
        batch_size=config.batch_size,
        input_length=input_length,
        target_length=target_length,
    )


def _describe(config: PretrainConfig, made: _Prepared, state: train.TrainState) -> None:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    num_chunks = len(made.chunks)
    num_tokens = num_chunks * config.corruption.raw_length(config.input_length)
    epochs = config.fit.steps * config.batch_size / num_chunks
    devices = " x ".join(f"{axis}={size}" for axis, size in made.mesh.shape.items())
    several = f", {processes.count()} processes" if processes.count() > 1 else ""
    processes.say(
        f"model {config.model}: {parameters / 1e6:.1f} M parameters, vocabulary "
        f"{made.model.vocab_size}, {made.model.dtype}, on {jax.default_backend()} "
        f"({devices}{several})"
    )
    processes.say(
        f"corpus: {num_tokens / 1e6:.1f} M tokens; {config.fit.steps} steps of "
        f"{config.batch_size} x {config.input_length} are {epochs:.1f} epochs"
    )
