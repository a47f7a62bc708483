"""The training step and the loop around it."""

from .loop import (
    FitConfig as FitConfig,
    final_step as final_step,
    inference_params as inference_params,
    ranking_keys as ranking_keys,
)
from .metrics_log import (
    read_evaluations as read_evaluations,
)
from .run import (
    UNRECORDED as UNRECORDED,
    RunConfig as RunConfig,
    RunParts as RunParts,
    TrainingRun as TrainingRun,
)
from .run_dir import (
    check_run_dir as check_run_dir,
    claim_run_dir as claim_run_dir,
    corpus_digest as corpus_digest,
    recorded_options as recorded_options,
)
from .setup import (
    check_files as check_files,
    check_sentinels as check_sentinels,
    check_vocabulary as check_vocabulary,
    setup_model as setup_model,
    setup_tokenizer as setup_tokenizer,
)
from .step import (
    StepConfig as StepConfig,
    abstract_state as abstract_state,
    check_batch_size as check_batch_size,
    check_lengths as check_lengths,
    evaluate_loss as evaluate_loss,
    init_state as init_state,
    make_eval_step as make_eval_step,
    make_train_step as make_train_step,
    shard_batch as shard_batch,
)
