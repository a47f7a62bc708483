"""The training step and the loop around it."""

from .evaluation import (
    LossEvaluator as LossEvaluator,
    baseline_losses as baseline_losses,
    count_targets as count_targets,
    evaluate_loss as evaluate_loss,
    make_eval_step as make_eval_step,
)
from .run import (
    UNRECORDED as UNRECORDED,
    RunConfig as RunConfig,
    RunLock as RunLock,
    check_run_dir as check_run_dir,
    claim_run_dir as claim_run_dir,
    corpus_digest as corpus_digest,
    recorded_options as recorded_options,
    save_options as save_options,
)
from .setup import (
    check_files as check_files,
    check_vocabulary as check_vocabulary,
    initial_params as initial_params,
    log_model as log_model,
    open_checkpoints as open_checkpoints,
    restore_run as restore_run,
    run_trainer as run_trainer,
    setup_mesh as setup_mesh,
    setup_model as setup_model,
    setup_tokenizer as setup_tokenizer,
)
from .step import (
    StepConfig as StepConfig,
    TrainState as TrainState,
    abstract_state as abstract_state,
    inference_params as inference_params,
    init_state as init_state,
    make_train_step as make_train_step,
)
from .tracker import (
    Tracker as Tracker,
    read_evaluations as read_evaluations,
)
from .trainer import (
    Evaluator as Evaluator,
    FitConfig as FitConfig,
    FitResult as FitResult,
    Trainer as Trainer,
    final_step as final_step,
    ranking_keys as ranking_keys,
)

__all__ = [
    "Evaluator",
    "FitConfig",
    "FitResult",
    "LossEvaluator",
    "StepConfig",
    "Tracker",
    "TrainState",
    "Trainer",
    "abstract_state",
    "evaluate_loss",
    "inference_params",
    "init_state",
    "make_eval_step",
    "make_train_step",
]
