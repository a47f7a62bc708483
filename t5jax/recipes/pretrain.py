"""Pre-training: text, tokenizer, objective, model, optimizer, trainer and final report."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from t5jax.data import (
    Batch,
    Chunks,
    ExampleSource,
    TokenStream,
    batch_chunks,
    corpus_documents,
    evaluation_batches,
    read_corpus,
    tokenize_dataset,
    training_batches,
)
from t5jax.data.objectives import Objective
from t5jax.models import is_stacked
from t5jax.optim import make_optimizer
from t5jax.parallel import (
    abort_together,
    barrier,
    gather_arrays,
    initialize,
    is_main_process,
    local_rows,
    log_once,
    main_process_first,
)
from t5jax.pretrained import locate_checkpoint
from t5jax.recipes.pretrain_config import RESUMABLE, UNRECORDED, PretrainConfig
from t5jax.text2text import Text2Text
from t5jax.tokenizers import Tokenizer
from t5jax.training import (
    LossEvaluator,
    RunLock,
    Tracker,
    abstract_state,
    baseline_losses,
    check_files,
    check_run_dir,
    claim_run_dir,
    corpus_digest,
    count_targets,
    inference_params,
    init_state,
    initial_params,
    log_model,
    open_checkpoints,
    recorded_options,
    restore_run,
    run_trainer,
    save_options,
    setup_mesh,
    setup_model,
    setup_tokenizer,
)

if TYPE_CHECKING:
    import datasets


class PretrainResult(NamedTuple):
    """Result of `pretrain`.

    Attributes:
      t5: trained model; it is also saved in the run directory.
      evaluation: held-out "loss", in nats per target token, and "accuracy", in [0, 1]; None if the
        run was interrupted.
      heldout: held-out documents, in the column "text".

    Examples:
      >>> result = t5jax.recipes.PretrainResult(t5, {"loss": 2.0, "accuracy": 0.55}, heldout=None)
      >>> f"perplexity {np.exp(result.evaluation['loss']):.2f}"
      'perplexity 7.39'
    """

    t5: Text2Text
    evaluation: dict[str, float] | None
    heldout: "datasets.Dataset"


def pretrain(config: PretrainConfig, *, trackers: Sequence[Tracker] = ()) -> PretrainResult:
    """Pre-train a model, or resume a run, until it is complete or interrupted.

    In a multi-process run, every process must call it with the same options except `hosts.index`;
    an error in one process ends the run in all of them.

    Args:
      config: options of the run.
      trackers: additional metric trackers, used by process 0 and closed at the end.
    Returns:
      The model, its held-out loss and the held-out text.
    Raises:
      ValueError, OSError: invalid options, text or files.  Except for a full disk, errors are
        raised before training starts and before anything is written to a new `config.output`.
      RunAborted: another process failed or died, or this one failed in a multi-process run.

    Examples:
      >>> data = t5jax.data.DataConfig(path="corpus.txt")
      >>> config = t5jax.recipes.PretrainConfig(output="runs/corpus", data=data)
      >>> result = t5jax.recipes.pretrain(config)  # doctest: +SKIP
      >>> t5jax.recipes.fill_blanks(result.t5, ["The <extra_id_0> sleeps."])  # doctest: +SKIP
      [['cat']]
    """
    initialize(config.hosts)
    with abort_together(), RunLock(config.folder) as lock:
        return _run(config, lock, trackers)


def _run(config: PretrainConfig, lock: RunLock, trackers: Sequence[Tracker]) -> PretrainResult:
    jax.devices()  # needs all processes at once, so before process 0 reads the text
    with main_process_first("the preparation of the run"):
        check_files(config.model, config.tokenizer)
        options = recorded_options(config, resumable=RESUMABLE)
        check_run_dir(config.folder, options, unrecorded=UNRECORDED, resumable=RESUMABLE)
        mesh = setup_mesh(config)

        text, heldout_text = read_corpus(config.data)
        path = None if config.checkpoint is None else locate_checkpoint(config.checkpoint)
        tokenizer = setup_tokenizer(config, lambda: corpus_documents(text), checkpoint=path)
        model, policy = setup_model(config, tokenizer, checkpoint=path), config.compute_policy()
        objective = config.make_objective(tokenizer, decoder_start_id=model.decoder_start_id)
        raw_length = objective.lengths(config.input_length).raw
        chunks = Chunks(TokenStream(tokenize_dataset(text, tokenizer)), raw_length)
        heldout_stream = TokenStream(tokenize_dataset(heldout_text, tokenizer))
        heldout = Chunks(heldout_stream, raw_length, name="held-out text")

        steps = config.fit.steps
        optimizer = make_optimizer(config.optimizer, total_steps=steps, stacked=is_stacked)
        abstract = abstract_state(model, optimizer, mesh=mesh, options=config.step)
        digest = corpus_digest(chunks)
        claim_run_dir(config.folder, options, digest, model=model, tokenizer=tokenizer, lock=lock)
        save_options(config)

    size, seed, rows = config.batch_size, config.seed, local_rows(config.batch_size, mesh=mesh)
    batches = training_batches(chunks, objective.example, batch_size=size, seed=seed, rows=rows)
    heldout_batches = _heldout_batches(config, heldout, objective, rows)
    evaluator = LossEvaluator(model, heldout_batches, policy=policy, mesh=mesh)
    checkpoints = open_checkpoints(config)
    state = restore_run(config, checkpoints, abstract, batches)
    if state is None:
        init = functools.partial(init_state, model, optimizer, mesh=mesh, options=config.step)
        state = init(seed=seed, params=initial_params(config, mesh))
    log_model(model, state.params, policy, mesh)
    _log_corpus(config, chunks, raw_length, tokenizer)

    result = run_trainer(
        config,
        state,
        batches,
        model=model,
        policy=policy,
        optimizer=optimizer,
        mesh=mesh,
        evaluator=evaluator,
        checkpoints=checkpoints,
        trackers=trackers,
        chunk_ids=lambda step: batch_chunks(len(chunks), step - 1, batch_size=size, seed=seed),
    )

    params = inference_params(result.state)
    t5 = Text2Text(model, gather_arrays(params), tokenizer, policy=policy)
    evaluation = None
    if not result.interrupted:
        evaluation = result.evaluation or evaluator.evaluate(params, steps)
        if is_main_process():
            counts = count_targets(chunks, objective, model.vocab_size)
            baselines = baseline_losses(counts, list(_heldout_batches(config, heldout, objective)))
            _log_losses(evaluation, *baselines)
    barrier("the end of the run")
    return PretrainResult(t5, evaluation, heldout_text)


def _heldout_batches(
    config: PretrainConfig,
    heldout: ExampleSource,
    objective: Objective,
    rows: Sequence[int] | np.ndarray | None = None,
) -> Iterator[Batch]:
    return evaluation_batches(
        heldout,
        objective.example,
        batch_size=config.batch_size,
        seed=config.seed,
        max_examples=config.eval_examples,
        rows=rows,
    )


def _log_corpus(
    config: PretrainConfig, chunks: ExampleSource, raw_length: int, tokenizer: Tokenizer
) -> None:
    num_tokens = len(chunks) * raw_length
    epochs = config.fit.steps * config.batch_size / len(chunks)
    unknown = _unknown_rate(chunks, tokenizer)
    log_once(
        f"corpus: {num_tokens / 1e6:.1f} M tokens, {unknown:.1%} unknown; {config.fit.steps} steps "
        f"of {config.batch_size} x {config.input_length} are {epochs:.1f} epochs"
    )
    if unknown > 0.01:
        log_once(
            f"warning: {unknown:.1%} of the tokens are unknown, and the losses count them; train a "
            "tokenizer on the text, or use bytes"
        )


def _unknown_rate(chunks: ExampleSource, tokenizer: Tokenizer) -> float:
    """Return the fraction of unknown tokens in up to 1000 evenly spaced chunks."""
    step = -(-len(chunks) // 1000)
    return float(np.mean([chunks[i] == tokenizer.unk_id for i in range(0, len(chunks), step)]))


def _log_losses(evaluation: Mapping[str, float], uniform: float, unigram: float) -> None:
    log_once(
        f"held-out loss {evaluation['loss']:.3f} nats/token (uniform baseline {uniform:.3f}, "
        f"unigram baseline {unigram:.3f}), accuracy {evaluation['accuracy']:.1%}"
    )
