"""Training on pairs of texts, of one task or several, judged by what the model writes."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from t5jax.checkpoint import average_checkpoints, choose_checkpoints, is_best
from t5jax.data import (
    Batch,
    MixtureBatches,
    Pair,
    Pairs,
    Split,
    Task,
    check_task_names,
    heldout_batches,
    mixing_rates,
    mixture_stream,
    truncate_ids,
)
from t5jax.models import Params, T5Config, is_stacked, resolve_dtype
from t5jax.optim import make_optimizer
from t5jax.parallel import (
    abort_together,
    barrier,
    broadcast_from_main,
    gather_arrays,
    initialize,
    is_main_process,
    local_rows,
    main_process_first,
    make_mesh,
    num_batch_shards,
    print_once,
)
from t5jax.pretrained import (
    CHECKPOINTS,
    find_tokenizer,
    load_pretrained,
    locate_checkpoint,
    open_checkpoint,
)
from t5jax.recipes import finetune_config, finetune_data, validation
from t5jax.recipes.finetune_config import FinetuneConfig
from t5jax.recipes.finetune_data import TaskTexts
from t5jax.recipes.validation import EvalSplit, results_table
from t5jax.text2text import Text2Text
from t5jax.tokenizers import Tokenizer
from t5jax.training import (
    UNRECORDED,
    RunParts,
    TrainingRun,
    abstract_state,
    check_batch_size,
    check_files,
    check_lengths,
    check_run_dir,
    check_vocabulary,
    claim_run_dir,
    evaluate_loss,
    final_step,
    inference_params,
    make_eval_step,
    ranking_keys,
    read_evaluations,
    recorded_options,
    setup_model,
    setup_tokenizer,
)

MODEL = "model"


PREDICTIONS = "predictions"


class FinetuneResult(NamedTuple):
    """What came out of `finetune`."""

    t5: Text2Text
    """Also saved in the run's folder, as `model`."""
    validation: dict[str, dict[str, float]] | None
    """Task -> metric -> percent; None if the run was interrupted."""
    test: dict[str, dict[str, float]] | None
    """As `validation`, of the tasks that have a test split."""


def finetune(
    tasks: Sequence[Task],
    config: FinetuneConfig,
    *,
    architecture: Mapping[str, Any] | None = None,
) -> FinetuneResult:
    """Trains on tasks, or goes on training, until the run is complete or interrupted.

    With several processes all must call it, with the same arguments but for `hosts.index`.

    Args:
      tasks: what to learn; texts of all are mixed.
      config: how.
      architecture: fields of T5Config instead of those of 'tiny', for `config.model` left out.
    Raises:
      ValueError, OSError: bad options, tasks or files, noticed before training starts.
    """
    check_task_names(tasks)
    if architecture is not None and (config.checkpoint or config.model != "tiny"):
        raise ValueError(
            "architecture must be left out with a checkpoint or a model, got both; use one."
        )
    initialize(config.hosts)
    with abort_together():
        return _run(list(tasks), config, architecture)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Prepared(RunParts):
    """What fine-tuning needs, with the examples of its tasks."""

    pairs: dict[str, Pairs]
    shares: dict[str, float]
    trials: list[EvalSplit]


def _run(
    tasks: list[Task], config: FinetuneConfig, architecture: Mapping[str, Any] | None
) -> FinetuneResult:
    jax.devices()  # all processes at once, before process 0 reads the data
    with main_process_first("the preparation of the run"):
        made = _prepare(tasks, config, architecture)
    data = MixtureBatches(
        mixture_stream(list(made.pairs.values()), list(made.shares.values()), seed=config.seed),
        batch_size=config.batch_size,
        limits=config.limits,
        pack=config.pack,
        pad_id=made.model.pad_id,
        decoder_start_id=made.model.decoder_start_id,
        rows=local_rows(config.batch_size, mesh=made.mesh),
    )
    run = TrainingRun(config, made)
    state = run.begin(data, lambda: _loaded(config, made.mesh))
    run.describe(state)
    _describe(config, made)
    past = run.past(state)
    numbers = ranking_keys(config.judge, past)
    interrupted = False
    if int(state.step) < final_step(config.fit, int(state.step), numbers):
        fitted = run.fit(
            state,
            data,
            evaluate=_evaluation(config, made),
            past=past,
            lengths=config.lengths,
        )
        state, interrupted = fitted.state, fitted.interrupted
        del fitted
    run.checkpoints.close()
    if interrupted:
        params = gather_arrays(inference_params(state))
        barrier("the end of the run")
        return FinetuneResult(Text2Text(made.model, params, made.tokenizer), None, None)
    if int(state.step) < config.fit.steps:
        print_once(
            f"stopped at step {int(state.step)}: {config.fit.patience} evaluations without a better"
        )
    del state
    return _finish(config, made)


def _loaded(config: FinetuneConfig, mesh: Mesh) -> Params | None:
    """The parameters to start from; all processes read them together."""
    if config.checkpoint is None:
        return None
    return load_pretrained(config.checkpoint, dtype=np.dtype(np.float32), mesh=mesh)[1]


def _evaluation(
    config: FinetuneConfig, made: _Prepared
) -> Callable[[Params, int], dict[str, float]]:
    """Loss, and metrics of what is written, on the validation examples."""
    eval_step = make_eval_step(made.model, mesh=made.mesh)
    watched = [one.spread(config.eval_examples) for one in made.trials if one.split != "test"]
    measured = [batch for one in watched for batch in _batches(config, made, one)]

    def evaluate(params: Params, step: int) -> dict[str, float]:
        t5 = Text2Text(made.model, gather_arrays(params), made.tokenizer)
        results = _examine(config, t5, watched, f"{step}", num_beams=config.num_beams)
        return {
            **evaluate_loss(eval_step, params, measured, mesh=made.mesh),
            "score": validation.mean_score(results),
            **{f"{task}/{name}": x for task, found in results.items() for name, x in found.items()},
        }

    return evaluate


def _finish(config: FinetuneConfig, made: _Prepared) -> FinetuneResult:
    """Chooses the result, saves and measures it."""
    folder = config.folder
    found = choose_checkpoints(
        folder / CHECKPOINTS,
        choice=config.use,
        count=config.average,
        every=config.fit.checkpoint_every,
    )
    name = "params" if made.abstract.average is None else "average"
    params = average_checkpoints(folder / CHECKPOINTS, found, name, made.abstract.params)
    t5 = Text2Text(made.model, gather_arrays(params), made.tokenizer)
    if is_main_process():
        t5.save(folder / MODEL, overwrite=True)
    which = f"the {config.use} checkpoint" if len(found) == 1 else f"the mean of {len(found)}"
    print_once(f"\nthe result is {which} (step {', '.join(map(str, found))}): {folder / MODEL}")
    if config.use == "best":
        evaluations = read_evaluations(folder, until=config.fit.steps)
        numbers = ranking_keys(config.judge, evaluations)
        if not is_best(folder / CHECKPOINTS, found[0], numbers):
            print_once(
                f"warning: an evaluation was better than that of step {found[0]}, and its "
                "checkpoint is not there; a run keeps it that has --use best from its start."
            )
    results: dict[Split, dict[str, dict[str, float]]] = {}
    for split in ("validation", "test"):
        trials = [one for one in made.trials if one.split == split]
        if trials:
            results[split] = _examine(config, t5, trials, split, num_beams=config.final_num_beams)
            print_once(f"{split}:")
            for line in results_table(results[split]):
                print_once(f"  {line}")
    print_once(f"\nuse it:  import t5jax; t5 = t5jax.load({str(folder / MODEL)!r})")
    barrier("the end of the run")
    return FinetuneResult(t5, results["validation"], results.get("test", {}))


def _prepare(
    tasks: list[Task],
    config: FinetuneConfig,
    architecture: Mapping[str, Any] | None,
) -> _Prepared:
    """Reads the tasks, and makes the folder the run's."""
    options = recorded_options(config, free=finetune_config.RESUMABLE_OPTIONS)
    unrecorded: dict[str, Any] = dict(UNRECORDED)
    for task in tasks:
        options[f"tasks.{task.name}.weight"] = task.weight
        options[f"tasks.{task.name}.metrics"] = list(task.metrics)
        how = {
            f"tasks.{task.name}.metric_options.{name}": value
            for name, value in dataclasses.asdict(task.metric_options).items()
        }
        options.update(how)
        unrecorded.update(how)
    check_run_dir(config.folder, options, unrecorded=unrecorded)
    check_files(config.model, config.tokenizer)
    mesh = make_mesh(config.mesh)
    check_batch_size(config.batch_size, mesh=mesh, accumulate=config.step.accumulate)
    inputs, targets = config.lengths
    check_lengths({"inputs": inputs, "targets": targets}, mesh=mesh)
    say = print_once
    texts = finetune_data.read_task_texts(tasks, say=say)
    # Parameters are read later, by all processes together.
    path = None if config.checkpoint is None else locate_checkpoint(config.checkpoint)
    tokenizer = _tokenizer(config, texts, path)
    model = _model(config, tokenizer, path, architecture)
    pairs = finetune_data.tokenize_pairs(texts, tokenizer=tokenizer, limits=config.limits, say=say)
    shares = mixing_rates(
        {name: len(found) for name, found in pairs.items()},
        {task.name: task.weight for task in tasks},
        size_limit=config.size_limit,
    )
    trials = finetune_data.validation_splits(
        tasks, texts, tokenizer=tokenizer, limits=config.limits, say=say
    )
    for one in trials:
        one.check()
    tx = make_optimizer(config.optimizer, total_steps=config.fit.steps, stacked=is_stacked)
    abstract = abstract_state(model, tx, mesh=mesh, options=config.step)
    claim_run_dir(
        config.folder,
        options,
        finetune_data.data_digest(pairs, trials),
        model=model,
        tokenizer=tokenizer,
        write=is_main_process(),
    )
    return _Prepared(
        mesh=mesh,
        tokenizer=tokenizer,
        model=model,
        tx=tx,
        abstract=abstract,
        pairs=pairs,
        shares=shares,
        trials=trials,
    )


def _tokenizer(config: FinetuneConfig, texts: TaskTexts, path: Path | None) -> Tokenizer:
    if path is None or config.tokenizer is not None:
        return setup_tokenizer(
            config.folder,
            texts.documents,
            source=config.tokenizer,
            vocab_size=config.vocab_size or 4000,
            say=print_once,
        )
    found = find_tokenizer(path)
    if found is None:
        raise ValueError(
            f"tokenizer must be given for {config.checkpoint}, which comes without one; name its "
            "folder."
        )
    return found


def _model(
    config: FinetuneConfig,
    tokenizer: Tokenizer,
    path: Path | None,
    architecture: Mapping[str, Any] | None,
) -> T5Config:
    changes = config.model_changes
    if path is None:
        changes = {**(architecture or {}), **changes}
        return setup_model(config.model, tokenizer, dtype=config.dtype, changes=changes)
    loaded = open_checkpoint(path).config
    if not loaded.num_decoder_layers:
        raise ValueError(
            f"checkpoint must have a decoder, got {config.checkpoint}, an encoder alone; start "
            "from an encoder-decoder."
        )
    check_vocabulary(loaded, str(config.checkpoint), tokenizer)
    return loaded.replace(**changes, dtype=resolve_dtype(config.dtype))


def _batches(config: FinetuneConfig, made: _Prepared, one: EvalSplit) -> Iterator[Batch]:
    """Validation examples to compute a loss on; long references are cut for it."""
    targets = [
        truncate_ids(
            finetune_data.encode_with_eos(made.tokenizer, example.references[0]),
            config.target_length,
        )
        for example in one.examples
    ]
    pairs = Pairs([Pair(*both) for both in zip(one.inputs, targets, strict=True)])
    ways = num_batch_shards(made.mesh)
    size = -(-config.eval_batch_size // ways) * ways
    return heldout_batches(
        pairs,
        batch_size=size,
        lengths=config.lengths,
        pad_id=made.model.pad_id,
        decoder_start_id=made.model.decoder_start_id,
        rows=local_rows(size, mesh=made.mesh),
    )


def _examine(
    config: FinetuneConfig, t5: Text2Text, trials: Sequence[EvalSplit], name: str, *, num_beams: int
) -> dict[str, dict[str, float]]:
    """Metrics of each trial, the same in all processes; predictions are written."""
    results = {}
    for one in trials:
        if is_main_process():
            predictions = one.predictions(t5, config.writing(num_beams))
            one.write(config.folder / PREDICTIONS / f"{one.task.name}-{name}.jsonl", predictions)
            scores = one.scores(predictions)
        else:
            scores = dict.fromkeys(one.task.metrics, 0.0)
        values = broadcast_from_main(list(scores.values()))
        results[one.task.name] = dict(zip(scores, values, strict=True))
    return results


def _describe(config: FinetuneConfig, made: _Prepared) -> None:
    if (
        config.checkpoint is not None
        and not made.model.dropout_rate
        and config.dropout_rate is None
    ):
        print_once(
            "dropout is off, as the checkpoint has it; T5 is fine-tuned with --dropout-rate 0.1"
        )
    for name, found in made.pairs.items():
        inputs, targets = found.tokens
        print_once(
            f"task {name!r}: {len(found)} examples, {inputs / len(found):.1f} tokens an input, "
            f"{targets / len(found):.1f} a target, share {made.shares[name]:.1%}"
        )
