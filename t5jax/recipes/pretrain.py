"""A whole pre-training run: text, vocabulary, span corruption, training, a look at the result."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from t5jax.data import (
    Batch,
    Chunks,
    DataConfig,
    ExampleSource,
    TokenStream,
    batch_chunks,
    corpus_documents,
    evaluation_batches,
    read_corpus,
    tokenize_dataset,
    training_batches,
)
from t5jax.data.objectives import SpanCorruption, span_corruption_example
from t5jax.models import is_stacked
from t5jax.optim import OptimizerConfig, ScheduleConfig, make_optimizer
from t5jax.parallel import (
    abort_together,
    barrier,
    gather_arrays,
    initialize,
    is_main_process,
    local_rows,
    main_process_first,
    make_mesh,
    print_once,
)
from t5jax.recipes import baselines, infilling
from t5jax.text2text import Text2Text
from t5jax.training import (
    UNRECORDED,
    RunConfig,
    RunParts,
    TrainingRun,
    abstract_state,
    check_batch_size,
    check_files,
    check_lengths,
    check_run_dir,
    check_sentinels,
    claim_run_dir,
    corpus_digest,
    evaluate_loss,
    inference_params,
    make_eval_step,
    recorded_options,
    setup_model,
    setup_tokenizer,
)

# Options that may differ when a run is continued, beside those that may in any run.
_FREE = ("eval_examples",)


# Options that a run begun before there were any does not record, and what it was trained with.
_UNRECORDED = {**UNRECORDED, "step.label_smoothing": 0.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """Pre-trains a T5 by span corruption.

    Without arguments: a tiny model on the Python documentation of this machine, in minutes.
    Stopped by Ctrl-C, SIGTERM or a crash, the same command continues where it was.
    """

    output: str = "runs/pretrain"
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
    optimizer: OptimizerConfig = OptimizerConfig(
        name="adafactor",
        schedule=ScheduleConfig(name="rsqrt", learning_rate=0.3, warmup_steps=100),
    )

    def __post_init__(self):
        super().__post_init__()
        self._check_counts("eval_examples")
        self.corruption.raw_length(self.input_length)

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of an example's inputs, and of its targets."""
        return self.corruption.lengths(self.corruption.raw_length(self.input_length))


def pretrain(config: PretrainConfig) -> Text2Text:
    """Trains, or goes on training, until the run is complete or interrupted.

    With several processes all must call it, with the same options but for `hosts.index`; an error
    in one ends all of them, with exit status 1.

    Returns:
      The model as it is then, also saved in `config.output`.
    Raises:
      ValueError, OSError: bad options, text or files.  All but a disk that runs full are noticed
        before training starts, and before anything is written to a new `config.output`.
    """
    initialize(config.hosts)
    with abort_together():
        return _run(config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Prepared(RunParts):
    """What pre-training needs, with its text."""

    heldout_texts: Any
    chunks: ExampleSource
    heldout: ExampleSource
    example: Callable[[np.ndarray, np.random.Generator], Batch]


def _prepare(config: PretrainConfig) -> _Prepared:
    """Reads the text, and makes the folder the run's."""
    options = recorded_options(config, free=_FREE)
    check_run_dir(config.folder, options, unrecorded=_UNRECORDED)
    check_files(config.model, config.tokenizer)
    mesh = make_mesh(config.mesh)
    check_batch_size(config.batch_size, mesh=mesh, accumulate=config.step.accumulate)
    inputs, targets = config.lengths
    check_lengths({"inputs": inputs, "targets": targets}, mesh=mesh)
    texts, heldout_texts = read_corpus(config.data)
    tokenizer = setup_tokenizer(
        config.folder,
        lambda: corpus_documents(texts),
        source=config.tokenizer,
        vocab_size=config.vocab_size or 4000,
        say=print_once,
    )
    check_sentinels(tokenizer, corruption=config.corruption, input_length=config.input_length)
    model_config = setup_model(
        config.model, tokenizer, dtype=config.dtype, changes=config.model_changes
    )

    length = config.corruption.raw_length(config.input_length)
    chunks = Chunks(TokenStream(tokenize_dataset(texts, tokenizer)), length)
    heldout_stream = TokenStream(tokenize_dataset(heldout_texts, tokenizer))
    heldout = Chunks(heldout_stream, length, name="held-out text")

    def example(tokens: np.ndarray, rng: np.random.Generator) -> Batch:
        return span_corruption_example(
            tokens,
            tokenizer=tokenizer,
            corruption=config.corruption,
            decoder_start_id=model_config.decoder_start_id,
            rng=rng,
        )

    tx = make_optimizer(config.optimizer, total_steps=config.fit.steps, stacked=is_stacked)
    abstract = abstract_state(model_config, tx, mesh=mesh, options=config.step)
    claim_run_dir(
        config.folder,
        options,
        corpus_digest(chunks),
        model=model_config,
        tokenizer=tokenizer,
        write=is_main_process(),
    )
    return _Prepared(
        mesh=mesh,
        tokenizer=tokenizer,
        model=model_config,
        tx=tx,
        abstract=abstract,
        heldout_texts=heldout_texts,
        chunks=chunks,
        heldout=heldout,
        example=example,
    )


def _run(config: PretrainConfig) -> Text2Text:
    jax.devices()  # all processes at once, before process 0 reads the text
    with main_process_first("the preparation of the run"):
        made = _prepare(config)
    mesh = made.mesh
    rows = local_rows(config.batch_size, mesh=mesh)
    data = training_batches(
        made.chunks, made.example, batch_size=config.batch_size, seed=config.seed, rows=rows
    )

    def eval_batches(rows: Sequence[int] | np.ndarray | None) -> list[Batch]:
        found = evaluation_batches(
            made.heldout,
            made.example,
            batch_size=config.batch_size,
            seed=config.seed,
            max_examples=config.eval_examples,
            rows=rows,
        )
        return list(found)

    run = TrainingRun(config, made)
    state = run.begin(data)
    run.describe(state)
    _describe(config, made)
    eval_step = make_eval_step(made.model, mesh=mesh)
    measured = eval_batches(rows)
    fitted = run.fit(
        state,
        data,
        evaluate=lambda params, step: evaluate_loss(eval_step, params, measured, mesh=mesh),
        lengths=config.lengths,
        past=run.past(state),
        locate=lambda step: batch_chunks(
            len(made.chunks), step - 1, batch_size=config.batch_size, seed=config.seed
        ),
    )
    run.checkpoints.close()
    t5 = Text2Text(made.model, gather_arrays(inference_params(fitted.state)), made.tokenizer)
    if fitted.evaluation is not None and is_main_process():
        _show(config, made, t5, fitted.evaluation, eval_batches(None))
    barrier("the end of the run")
    return t5


def _show(
    config: PretrainConfig,
    made: _Prepared,
    t5: Text2Text,
    evaluation: dict[str, float],
    eval_batches: Sequence[Batch],
) -> None:
    """Prints what came out, beside guesses that read nothing, and sentences."""
    counts = baselines.count_targets(made.chunks, made.example, made.model.vocab_size)
    uniform, unigram = baselines.baseline_losses(counts, eval_batches)
    print_once(
        f"\nheld-out loss {evaluation['loss']:.3f} nats a target token, accuracy "
        f"{evaluation['accuracy']:.1%}; by guessing at random {uniform:.3f}, "
        f"by token frequency {unigram:.3f}"
    )
    print_once("\nheld-out sentences, [what stood there -> what the model fills in]:")
    sentences = infilling.plain_sentences(corpus_documents(made.heldout_texts), count=6)
    for line in infilling.show_blanks(t5, sentences, seed=config.seed):
        print_once(f"  {line}")
    print_once(f"\nuse it:  import t5jax; t5 = t5jax.load({str(config.folder)!r})")


def _describe(config: PretrainConfig, made: _Prepared) -> None:
    num_chunks = len(made.chunks)
    num_tokens = num_chunks * config.corruption.raw_length(config.input_length)
    epochs = config.fit.steps * config.batch_size / num_chunks
    print_once(
        f"corpus: {num_tokens / 1e6:.1f} M tokens; {config.fit.steps} steps of "
        f"{config.batch_size} x {config.input_length} are {epochs:.1f} epochs"
    )
