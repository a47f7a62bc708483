"""A whole pre-training run: text, vocabulary, span corruption, training, a look at the result."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from t5jax import batches, corpus, infill, optimizer, runfolder, schedule, sharding, train
from t5jax import fit as fitting
from t5jax import tokenizer as tokenizers
from t5jax.checkpoint import Checkpoints
from t5jax.config import Remat, T5Config, pad_vocab
from t5jax.corpus import DataConfig
from t5jax.denoise import SpanCorruption
from t5jax.fit import FitConfig
from t5jax.loading import resolve_dtype
from t5jax.model import stacked
from t5jax.optimizer import OptimizerConfig
from t5jax.pretrained.folder import CHECKPOINTS
from t5jax.runlog import RunLog
from t5jax.schedule import ScheduleConfig
from t5jax.sharding import MeshConfig
from t5jax.text2text import Text2Text
from t5jax.tokenizer import Tokenizer
from t5jax.train import StepConfig

# The model of a run without arguments: minutes on two cores.
TINY = {
    "d_model": 128,
    "d_ff": 512,
    "d_kv": 32,
    "num_heads": 4,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "tie_embeddings": True,
    "scale_logits": True,
}
# Options that may differ when a run is continued: what it learns does not depend on them, but for
# the last bits where devices divide a sum in another way.
_FREE = (
    "output",
    "mesh",
    "remat",
    "eval_examples",
    "step.accumulate",
    "step.vocab_chunks",
    *(
        f"fit.{name}"
        for name in ("eval_every", "checkpoint_every", "keep_checkpoints", "log_every")
    ),
)


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
    """Folder of a tokenizer, such as a downloaded T5's.  Without it, one is trained."""
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

    Returns:
      The model as it is then, also saved in `config.output`.
    Raises:
      ValueError, OSError: bad options, text or files.  All but a disk that runs full are noticed
        before training starts, and before anything is written to a new `config.output`.
    """
    folder = Path(config.output).expanduser()
    options = _options(config)
    runfolder.check(folder, options)
    _check_inputs(config)
    mesh = sharding.make_mesh(config.mesh)
    train.check_batch_size(config.batch_size, mesh=mesh)
    texts, heldout_texts = corpus.read(config.data)
    tokenizer = _tokenizer(config, folder, texts)
    model_config = _model_config(config, tokenizer)

    length = config.corruption.raw_length(config.input_length)
    stream = batches.TokenStream(batches.tokenize(texts, tokenizer))
    chunks = batches.Chunks(stream, length)
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

    data = batches.training(chunks, example, batch_size=config.batch_size, seed=config.seed)
    eval_batches = list(
        batches.evaluation(
            heldout,
            example,
            batch_size=config.batch_size,
            seed=config.seed,
            max_examples=config.eval_examples,
        )
    )

    total_steps = config.fit.steps
    tx = optimizer.make(config.optimizer, total_steps=total_steps, stacked=stacked)
    abstract = train.abstract_state(model_config, tx, mesh=mesh, options=config.step)
    runfolder.claim(
        folder, options, runfolder.digest(chunks), model=model_config, tokenizer=tokenizer
    )
    checkpoints = Checkpoints(folder / CHECKPOINTS, keep=config.fit.keep_checkpoints)
    state = fitting.restore(checkpoints, abstract, data, warn=_say)
    if state is None:
        state = train.init_state(model_config, tx, mesh=mesh, seed=config.seed, options=config.step)
    else:
        _say(f"continuing at step {int(state.step)} of {total_steps} from {folder}")
    _describe(config, model_config, state, mesh, num_tokens=len(stream), num_chunks=len(chunks))

    eval_step = train.make_eval_step(model_config, mesh=mesh)
    train_step = train.make_train_step(
        model_config,
        tx,
        schedule=schedule.learning_rate(config.optimizer.schedule, total_steps=total_steps),
        mesh=mesh,
        options=config.step,
        seed=config.seed,
    )
    with RunLog(folder, total_steps=total_steps, start_step=int(state.step)) as log:
        fitted = fitting.fit(
            config.fit,
            state,
            data,
            train_step=train_step,
            evaluate=lambda params: train.evaluate(eval_step, params, eval_batches, mesh=mesh),
            checkpoints=checkpoints,
            log=log,
            mesh=mesh,
            pad_id=model_config.pad_id,
        )
    checkpoints.close()
    t5 = Text2Text(model_config, fitted.state.params, tokenizer)
    if fitted.evaluation is None:
        _say(f"saved step {int(fitted.state.step)} in {folder}; the same command continues it")
        return t5
    counts = _count_targets(chunks, example, model_config.vocab_size)
    uniform, unigram = _baselines(counts, eval_batches)
    _say(
        f"\nheld-out loss {fitted.evaluation['loss']:.3f} nats a target token, accuracy "
        f"{fitted.evaluation['accuracy']:.1%}; by guessing at random {uniform:.3f}, "
        f"by token frequency {unigram:.3f}"
    )
    _say("\nheld-out sentences, [what stood there -> what the model fills in]:")
    sentences = infill.sentences(corpus.documents(heldout_texts), count=6)
    for line in infill.show(t5, sentences, seed=config.seed):
        _say(f"  {line}")
    _say(f"\nuse it:  import t5jax; t5 = t5jax.load({str(folder)!r})")
    return t5


def _say(message: str) -> None:
    print(message, flush=True)


def _tokenizer(config: PretrainConfig, folder: Path, texts: Any) -> Tokenizer:
    """The run's own tokenizer if it has one already, else the one asked for."""
    found = tokenizers.load(folder) if folder.is_dir() else None
    if found is None and config.tokenizer is not None:
        found = tokenizers.load(config.tokenizer)
    if found is None:
        vocab_size = config.vocab_size or 4000
        _say(f"training a vocabulary of {vocab_size} pieces")
        found = tokenizers.train(corpus.documents(texts), vocab_size=vocab_size)
    if found.pad_id == found.unk_id:
        raise ValueError(
            f"the tokenizer must have a padding id of its own, got {found.pad_id} for padding and "
            "for unknown text; train one with scripts/train_tokenizer.py."
        )
    length = config.corruption.raw_length(config.input_length)
    _, spans = config.corruption.counts(length)
    if spans > found.num_sentinels:
        raise ValueError(
            f"an input of {config.input_length} tokens must hide at most {found.num_sentinels} "
            f"spans, one for each sentinel of the tokenizer, got {spans}; lower input_length or "
            "corruption.density, or raise corruption.mean_span."
        )
    return found


def _check_inputs(config: PretrainConfig) -> None:
    """Raises, before anything slow is done, if a file that was named is not there."""
    if config.tokenizer is not None:
        if not Path(config.tokenizer).is_dir():
            raise FileNotFoundError(
                f"tokenizer must be a folder with spiece.model, got {config.tokenizer}, which "
                "does not exist; leave it out to train one on the corpus."
            )
        if tokenizers.load(config.tokenizer) is None:
            raise FileNotFoundError(
                f"{config.tokenizer} must hold spiece.model or a ByT5 tokenizer_config.json, and "
                "holds neither; leave --tokenizer out to train one on the corpus."
            )
    if config.model.endswith(".json"):
        if not Path(config.model).is_file():
            raise FileNotFoundError(
                f"model must be a preset or a JSON file, got {config.model}, which does not exist."
            )
        T5Config.from_file(config.model)


def _model_config(config: PretrainConfig, tokenizer: Tokenizer) -> T5Config:
    ids = {
        "pad_id": tokenizer.pad_id,
        "eos_id": tokenizer.eos_id,
        "decoder_start_id": tokenizer.pad_id,
    }
    changes: dict[str, Any] = {}
    if config.dropout_rate is not None:
        changes["dropout_rate"] = config.dropout_rate
    if config.remat is not None:
        changes["remat"] = config.remat
    if config.model.endswith(".json"):
        if config.dtype != "auto":
            changes["dtype"] = config.dtype
        return _check_vocabulary(T5Config.from_file(config.model), config.model, tokenizer).replace(
            **changes
        )
    changes |= {**ids, "dtype": resolve_dtype(config.dtype)}
    changes["vocab_size"] = pad_vocab(tokenizer.vocab_size)
    if config.model == "tiny":
        return T5Config(**{**TINY, **changes})
    return T5Config.preset(config.model, **changes)


def _check_vocabulary(model: T5Config, source: str, tokenizer: Tokenizer) -> T5Config:
    """The model, if its vocabulary is the tokenizer's."""
    if model.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"{source}: vocab_size must be at least the tokenizer's {tokenizer.vocab_size}, "
            f"got {model.vocab_size}; {pad_vocab(tokenizer.vocab_size)} fits."
        )
    for name in ("pad_id", "eos_id"):
        if getattr(model, name) != getattr(tokenizer, name):
            raise ValueError(
                f"{source}: {name} must be the tokenizer's {getattr(tokenizer, name)}, "
                f"got {getattr(model, name)}."
            )
    return model


def _options(config: PretrainConfig) -> dict[str, Any]:
    """All options on which the numbers of a run depend, by dotted name."""
    free = set(_FREE)
    if not config.optimizer.schedule.spans_run:
        free.add("fit.steps")  # such a run can be made longer

    def flatten(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if prefix in free:
            return
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from flatten(f"{prefix}.{name}".lstrip("."), inner)
        else:
            yield prefix, value

    # Resolved, so that a run begun on one kind of device does not change type on another.
    dtype = config.dtype if config.model.endswith(".json") else resolve_dtype(config.dtype)
    return {**dict(flatten("", dataclasses.asdict(config))), "dtype": dtype}


def _describe(
    config: PretrainConfig,
    model: T5Config,
    state: train.TrainState,
    mesh: Any,
    *,
    num_tokens: int,
    num_chunks: int,
) -> None:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    epochs = config.fit.steps * config.batch_size / num_chunks
    devices = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    _say(
        f"model {config.model}: {parameters / 1e6:.1f} M parameters, vocabulary "
        f"{model.vocab_size}, {model.dtype}, on {jax.default_backend()} ({devices})"
    )
    _say(
        f"corpus: {num_tokens / 1e6:.1f} M tokens; {config.fit.steps} steps of "
        f"{config.batch_size} x {config.input_length} are {epochs:.1f} epochs"
    )


def _count_targets(
    chunks: batches.Source, example: Any, vocab_size: int, *, max_examples: int = 2000
) -> np.ndarray:
    """How often each id is a target in the training data."""
    counts = np.zeros(vocab_size, np.int64)
    for i in range(min(len(chunks), max_examples)):
        targets = example(chunks[i], np.random.default_rng(i))["decoder_target_tokens"]
        counts += np.bincount(targets, minlength=vocab_size)
    return counts


def _baselines(counts: np.ndarray, eval_batches: Sequence[batches.Batch]) -> tuple[float, float]:
    """Held-out losses of two guesses that read nothing: all ids alike, and by their frequency."""
    # One more of each, so that an id never seen is unlikely rather than impossible.
    log_probs = np.log((counts + 1) / (counts + 1).sum())
    targets = np.concatenate([batch["decoder_target_tokens"].ravel() for batch in eval_batches])
    weights = np.concatenate([batch["decoder_loss_weights"].ravel() for batch in eval_batches])
    unigram = -float(np.sum(weights * log_probs[targets]) / np.sum(weights))
    return float(np.log(len(counts))), unigram
