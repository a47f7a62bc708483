"""The training step and the loop around it."""

from .loop import (
    FitConfig as FitConfig,
)
from .loop import (
    final_step as final_step,
)
from .loop import (
    inference_params as inference_params,
)
from .loop import (
    ranking_keys as ranking_keys,
)
from .metrics_log import (
    read_evaluations as read_evaluations,
)
from .run import (
    UNRECORDED as UNRECORDED,
)
from .run import (
    RunConfig as RunConfig,
)
from .run import (
    RunParts as RunParts,
)
from .run import (
    TrainingRun as TrainingRun,
)
from .run_dir import (
    check_run_dir as check_run_dir,
)
from .run_dir import (
    claim_run_dir as claim_run_dir,
)
from .run_dir import (
    corpus_digest as corpus_digest,
)
from .run_dir import (
    recorded_options as recorded_options,
)
from .setup import (
    check_files as check_files,
)
from .setup import (
    check_sentinels as check_sentinels,
)
from .setup import (
    check_vocabulary as check_vocabulary,
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
    abstract_state as abstract_state,
)
from .step import (
    check_batch_size as check_batch_size,
)
from .step import (
    check_lengths as check_lengths,
)
from .step import (
    evaluate_loss as evaluate_loss,
)
from .step import (
    init_state as init_state,
)
from .step import (
    make_eval_step as make_eval_step,
)
from .step import (
    make_train_step as make_train_step,
)
from .step import (
    shard_batch as shard_batch,
)
