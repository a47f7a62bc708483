"""A whole pre-training run: text, vocabulary, span corruption, training, a look at the result."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from t5jax import batches, corpus, infill, optimizer, schedule, sharding, train
from t5jax import fit as fitting
from t5jax import tokenizer as tokenizers
from t5jax.checkpoint import Checkpoints
from t5jax.config import Remat, T5Config, pad_vocab, presets
from t5jax.corpus import DataConfig
from t5jax.denoise import SpanCorruption
from t5jax.fit import FitConfig
from t5jax.model import stacked
from t5jax.optimizer import OptimizerConfig
from t5jax.pretrained.folder import CHECKPOINTS, CONFIG_FILE
from t5jax.runlog import RunLog
from t5jax.schedule import ScheduleConfig
from t5jax.sharding import MeshConfig
from t5jax.text2text import Text2Text, resolve_dtype
from t5jax.tokenizer import Tokenizer

RUN_FILE = "run.json"
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
# Options that may differ when a run is continued, since the numbers do not depend on them.
_FREE = (
    "output",
    "mesh",
    "eval_examples",
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
    vocab_size: int = 4000
    """Pieces of the tokenizer that is trained, to which 100 sentinels are added."""
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
    fit: Annotated[FitConfig, tyro.conf.arg(name="")] = FitConfig(steps=800)
    optimizer: OptimizerConfig = OptimizerConfig(
        name="adafactor",
        schedule=ScheduleConfig(name="rsqrt", learning_rate=0.3, warmup_steps=100),
    )
    """How parameters are updated."""
    z_loss: float = 1e-4
    """Weight of the z-loss."""
    dropout_rate: float | None = None
    """Instead of the model's."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type to compute in; auto is bfloat16 on TPU and GPU and float32 on a CPU."""
    remat: Remat = "none"
    """What the backward pass recomputes to save memory: nothing, all but matrix products ('dots'),
    or each block ('full')."""
    mesh: MeshConfig = MeshConfig()
    """How devices share the work."""
    seed: int = 0
    """Of initial parameters, data order, corruption and dropout."""

    def __post_init__(self):
        for name in ("batch_size", "eval_examples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.z_loss < 0:
            raise ValueError(f"z_loss must be at least 0, got {self.z_loss}; T5 uses 1e-4.")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}.")
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
    _check_folder(folder, options)
    mesh = sharding.make_mesh(config.mesh)
    train.check_batch_size(config.batch_size, mesh=mesh)
    texts, heldout_texts = corpus.read(config.data)
    tokenizer = _tokenizer(config, folder, texts)
    model_config = _model_config(config, tokenizer)

    length = config.corruption.raw_length(config.input_length)
    stream = batches.TokenStream(batches.tokenize(texts, tokenizer))
    chunks = batches.Chunks(stream, length)
    heldout_stream = batches.TokenStream(batches.tokenize(heldout_texts, tokenizer))
    heldout = batches.Chunks(heldout_stream, length)
    _claim(folder, options, num_tokens=len(stream), model=model_config, tokenizer=tokenizer)

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
    checkpoints = Checkpoints(folder / CHECKPOINTS, keep=config.fit.keep_checkpoints)
    abstract = train.abstract_state(model_config, tx, mesh=mesh)
    state = fitting.restore(checkpoints, abstract, data, warn=_say)
    if state is None:
        state = train.init_state(model_config, tx, mesh=mesh, seed=config.seed)
    else:
        _say(f"continuing at step {int(state.step)} of {total_steps} from {folder}")
    _describe(config, model_config, state, mesh, num_tokens=len(stream), num_chunks=len(chunks))

    eval_step = train.make_eval_step(model_config, mesh=mesh)
    train_step = train.make_train_step(
        model_config,
        tx,
        schedule=schedule.learning_rate(config.optimizer.schedule, total_steps=total_steps),
        mesh=mesh,
        z_loss=config.z_loss,
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
    if found is not None:
        return found
    if config.tokenizer is not None:
        if not Path(config.tokenizer).is_dir():
            raise FileNotFoundError(
                f"tokenizer must be a folder with spiece.model, got {config.tokenizer}, which "
                "does not exist; leave it out to train one on the corpus."
            )
        found = tokenizers.load(config.tokenizer)
        if found is None:
            raise FileNotFoundError(
                f"{config.tokenizer} must hold spiece.model or a ByT5 tokenizer_config.json, and "
                "holds neither; leave --tokenizer out to train one on the corpus."
            )
    else:
        _say(f"training a vocabulary of {config.vocab_size} pieces")
        found = tokenizers.train(corpus.documents(texts), vocab_size=config.vocab_size)
    return found


def _model_config(config: PretrainConfig, tokenizer: Tokenizer) -> T5Config:
    changes: dict[str, Any] = {
        "dtype": resolve_dtype(config.dtype),
        "remat": config.remat,
        "pad_id": tokenizer.pad_id,
        "eos_id": tokenizer.eos_id,
        "decoder_start_id": tokenizer.pad_id,
    }
    if config.dropout_rate is not None:
        changes["dropout_rate"] = config.dropout_rate
    vocab_size = pad_vocab(tokenizer.vocab_size)
    if config.model == "tiny":
        return T5Config(**{**TINY, "vocab_size": vocab_size, **changes})
    if config.model in presets() or not config.model.endswith(".json"):
        return T5Config.preset(config.model, **{"vocab_size": vocab_size, **changes})
    found = T5Config.from_file(config.model)
    if found.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"{config.model}: vocab_size must be at least the tokenizer's {tokenizer.vocab_size}, "
            f"got {found.vocab_size}; {vocab_size} fits."
        )
    return found.replace(**changes)


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

    return dict(flatten("", dataclasses.asdict(config)))


def _check_folder(folder: Path, options: dict[str, Any]) -> None:
    """Raises unless the folder is free, or holds a run with these options."""
    path = folder / RUN_FILE
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(
                f"output must be a new or empty folder or a run to continue, got {folder}, which "
                "holds something else; choose another --output."
            )
        return
    found = _read_run(path)["options"]
    for name in sorted({*options, *found}):
        if options.get(name) != found.get(name):
            raise ValueError(
                f"{folder} holds another run: its {name} is {found.get(name)!r}, and "
                f"{options.get(name)!r} was asked for; choose another --output, or give the "
                "options of that run to continue it."
            )


def _claim(
    folder: Path,
    options: dict[str, Any],
    *,
    num_tokens: int,
    model: T5Config,
    tokenizer: Tokenizer,
) -> None:
    """Makes the folder this run's, or checks that it was trained on this corpus."""
    path = folder / RUN_FILE
    if path.exists():
        before = _read_run(path)["corpus_tokens"]
        if before != num_tokens:
            raise ValueError(
                f"the corpus of this run had {before} tokens when it began, and has {num_tokens} "
                "now; restore the text, or choose another --output."
            )
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        record = json.dumps({"options": options, "corpus_tokens": num_tokens}, indent=2)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(record + "\n", encoding="utf-8")
        temporary.replace(path)
    # Written again after a crash between these lines; all three are functions of the options.
    if tokenizers.load(folder) is None:
        tokenizer.save(folder)
    (folder / CONFIG_FILE).write_text(model.to_json(), encoding="utf-8")


def _read_run(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"options": dict(found["options"]), "corpus_tokens": int(found["corpus_tokens"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the record of a run; choose another --output.") from error


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
