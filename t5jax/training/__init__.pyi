"""The training step, the trainer around it, and the parts of a run."""

from .evaluation import (
    LossEvaluator as LossEvaluator,
)
from .evaluation import (
    baseline_losses as baseline_losses,
)
from .evaluation import (
    count_targets as count_targets,
)
from .evaluation import (
    evaluate_loss as evaluate_loss,
)
from .evaluation import (
    make_eval_step as make_eval_step,
)
from .run import (
    UNRECORDED as UNRECORDED,
)
from .run import (
    RunConfig as RunConfig,
)
from .run import (
    check_run_dir as check_run_dir,
)
from .run import (
    claim_run_dir as claim_run_dir,
)
from .run import (
    corpus_digest as corpus_digest,
)
from .run import (
    recorded_options as recorded_options,
)
from .setup import (
    check_files as check_files,
)
from .setup import (
    check_vocabulary as check_vocabulary,
)
from .setup import (
    open_checkpoints as open_checkpoints,
)
from .setup import (
    print_model as print_model,
)
from .setup import (
    restore_run as restore_run,
)
from .setup import (
    run_trainer as run_trainer,
)
from .setup import (
    setup_mesh as setup_mesh,
)
from .setup import (
    setup_model as setup_model,
)
from .setup import (
    setup_tokenizer as setup_tokenizer,
)
from .step import (
    StepConfig as StepConfig,
)
from .step import (
    TrainState as TrainState,
)
from .step import (
    abstract_state as abstract_state,
)
from .step import (
    inference_params as inference_params,
)
from .step import (
    init_state as init_state,
)
from .step import (
    make_train_step as make_train_step,
)
from .tracker import (
    Tracker as Tracker,
)
from .tracker import (
    read_evaluations as read_evaluations,
)
from .trainer import (
    Evaluator as Evaluator,
)
from .trainer import (
    FitConfig as FitConfig,
)
from .trainer import (
    FitResult as FitResult,
)
from .trainer import (
    Trainer as Trainer,
)
from .trainer import (
    ranking_keys as ranking_keys,
)
