"""Fine-tuning: tasks, tokenizer, model, mixture, optimizer, trainer and final report."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from t5jax.data import Task, check_task_names
from t5jax.generation import GenerationConfig, from_generation_file
from t5jax.models import is_stacked
from t5jax.optim import make_optimizer
from t5jax.parallel import (
    abort_together,
    barrier,
    gather_arrays,
    initialize,
    is_main_process,
    log_once,
    main_process_first,
)
from t5jax.pretrained import find_generation_settings, locate_checkpoint
from t5jax.recipes.finetune_config import RESUMABLE, FinetuneConfig
from t5jax.recipes.finetune_data import (
    data_digest,
    log_mixture,
    mixing_shares,
    mixture_batches,
    read_task_texts,
    recorded_task_options,
    tokenize_pairs,
    validation_splits,
)
from t5jax.recipes.finetune_model import MODEL, resulting_params
from t5jax.recipes.validation import EvalSplit, TaskEvaluator, results_table, score_splits
from t5jax.text2text import Text2Text
from t5jax.training import (
    UNRECORDED,
    RunLock,
    Tracker,
    abstract_state,
    check_files,
    check_run_dir,
    claim_run_dir,
    inference_params,
    init_state,
    initial_params,
    log_model,
    open_checkpoints,
    ranking_keys,
    read_evaluations,
    recorded_options,
    restore_run,
    run_trainer,
    save_options,
    setup_mesh,
    setup_model,
    setup_tokenizer,
)


class FinetuneResult(NamedTuple):
    """Result of `finetune`.

    Attributes:
      t5: fine-tuned model; unless interrupted, it is also saved in the run directory, as `model`.
      validation: task -> metric -> percent; None if the run was interrupted.
      test: same for the tasks that have a test split.

    Examples:
      >>> scores = {"translate": {"bleu": 27.5, "chrf": 54.0}}
      >>> result = t5jax.recipes.FinetuneResult(t5, validation=scores, test={})
      >>> result.validation["translate"]["bleu"]
      27.5
    """

    t5: Text2Text
    validation: dict[str, dict[str, float]] | None
    test: dict[str, dict[str, float]] | None


def finetune(
    tasks: Sequence[Task],
    config: FinetuneConfig,
    *,
    architecture: Mapping[str, Any] | None = None,
    trackers: Sequence[Tracker] = (),
) -> FinetuneResult:
    """Fine-tune a model on tasks, or resume a run, until it is complete or interrupted.

    In a multi-process run, every process must call it with the same arguments except
    `hosts.index`.

    Args:
      tasks: tasks to learn; their examples are mixed.
      config: options of the run.
      architecture: overrides of fields of the 'tiny' T5Config; only if `config.checkpoint` and
        `config.model` are not set.
      trackers: additional metric trackers, used by process 0 and closed at the end.
    Returns:
      The model and its scores on all validation and test examples.
    Raises:
      ValueError, OSError: invalid options, tasks or files, raised before training starts.
      RunAborted: another process failed or died, or this one failed in a multi-process run.

    Examples:
      >>> rows = [{"input": "count: a a", "target": "2"}, {"input": "count: a", "target": "1"}]
      >>> task = t5jax.Task(name="count", train=rows, validation=rows)
      >>> config = t5jax.FinetuneConfig(checkpoint="google/t5-v1_1-small", dropout_rate=0.1)
      >>> result = t5jax.finetune([task], config)  # doctest: +SKIP
      >>> result.validation  # doctest: +SKIP
      {'count': {'exact_match': 100.0}}
    """
    check_task_names(tasks)
    if architecture is not None and (config.checkpoint or config.model != "tiny"):
        raise ValueError(
            "architecture must be left out with a checkpoint or a model, got both; remove one."
        )
    initialize(config.hosts)
    with abort_together(), RunLock(config.folder) as lock:
        return _run(tasks, config, lock, architecture, trackers)


def _run(
    tasks: Sequence[Task],
    config: FinetuneConfig,
    lock: RunLock,
    architecture: Mapping[str, Any] | None,
    trackers: Sequence[Tracker],
) -> FinetuneResult:
    jax.devices()  # needs all processes at once, so before process 0 reads the data
    with main_process_first("the preparation of the run"):
        check_files(config.model, config.tokenizer)
        task_options, unrecorded = recorded_task_options(tasks)
        options = recorded_options(config, resumable=RESUMABLE) | task_options
        check_run_dir(config.folder, options, unrecorded={**UNRECORDED, **unrecorded})
        mesh = setup_mesh(config)

        texts = read_task_texts(tasks, say=log_once)
        path = None if config.checkpoint is None else locate_checkpoint(config.checkpoint)
        tokenizer = setup_tokenizer(config, texts.documents, checkpoint=path)
        model = setup_model(config, tokenizer, architecture=architecture, checkpoint=path)
        policy, generation = config.compute_policy(), _default_generation(config, path)
        checks = {
            "tokenizer": tokenizer,
            "limits": config.limits,
            "max_unknown": config.max_unknown_targets,
            "say": log_once,
        }
        pairs = tokenize_pairs(texts, **checks)
        shares = mixing_shares(tasks, pairs, size_limit=config.size_limit)
        splits = validation_splits(tasks, texts, **checks)

        steps = config.fit.steps
        optimizer = make_optimizer(config.optimizer, total_steps=steps, stacked=is_stacked)
        abstract = abstract_state(model, optimizer, mesh=mesh, options=config.step)
        digest = data_digest(pairs, splits)
        claim_run_dir(config.folder, options, digest, model=model, tokenizer=tokenizer, lock=lock)
        save_options(config)

    batches = mixture_batches(config, model, pairs, shares, mesh)
    evaluator = TaskEvaluator(
        config, model, tokenizer, splits, generation=generation, policy=policy, mesh=mesh
    )
    checkpoints = open_checkpoints(config)
    state = restore_run(config, checkpoints, abstract, batches)
    if state is None:
        init = functools.partial(init_state, model, optimizer, mesh=mesh, options=config.step)
        state = init(seed=config.seed, params=initial_params(config, mesh))
    log_model(model, state.params, policy, mesh)
    log_mixture(pairs, shares)

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
    )

    if result.interrupted:
        params = gather_arrays(inference_params(result.state))
        t5 = Text2Text(model, params, tokenizer, policy=policy, generation_config=generation)
        barrier("the end of the run")
        return FinetuneResult(t5, None, None)
    del state, result  # free the memory before loading the result
    keys = ranking_keys(evaluator, read_evaluations(config.folder, until=steps))
    params = resulting_params(config, abstract, keys)
    params = gather_arrays(params)
    t5 = Text2Text(model, params, tokenizer, policy=policy, generation_config=generation)
    return _report(config, t5, splits)


def _default_generation(config: FinetuneConfig, path: Path | None) -> GenerationConfig:
    """Return the generation options of the initial checkpoint, if any."""
    settings = {} if path is None else find_generation_settings(path)
    return from_generation_file(settings, source=config.checkpoint)


def _report(config: FinetuneConfig, t5: Text2Text, splits: Sequence[EvalSplit]) -> FinetuneResult:
    """Save the resulting model, score it on all held-out examples and log the scores."""
    if is_main_process():
        t5.save(config.folder / MODEL, overwrite=True)
    results = {}
    for name in ("validation", "test"):
        of_name = [split for split in splits if split.split == name]
        generation = config.writing(config.final_num_beams, t5.generation_config)
        results[name] = score_splits(t5, of_name, generation, config.folder, label=name)
        if of_name:
            log_once(f"{name}:")
        for line in results_table(results[name]):
            log_once(f"  {line}")
    log_once(f"use it:  import t5jax; t5 = t5jax.load({str(config.folder / MODEL)!r})")
    barrier("the end of the run")
    return FinetuneResult(t5, results["validation"], results["test"])
