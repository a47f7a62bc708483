"""Whole runs: pre-training, fine-tuning, batch inference."""

from .batch_inference import (
    Generate as Generate,
    generate_file as generate_file,
)
from .finetune import (
    PREDICTIONS as PREDICTIONS,
    finetune as finetune,
)
from .finetune_config import (
    FinetuneConfig as FinetuneConfig,
)
from .infilling import (
    fill_blanks as fill_blanks,
)
from .pretrain import (
    PretrainConfig as PretrainConfig,
    pretrain as pretrain,
)
