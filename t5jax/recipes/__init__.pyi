"""Whole runs: pre-training, fine-tuning, batch inference."""

from .batch_inference import (
    FileReport as FileReport,
    generate_file as generate_file,
)
from .finetune import (
    FinetuneResult as FinetuneResult,
    finetune as finetune,
)
from .finetune_config import (
    FinetuneConfig as FinetuneConfig,
)
from .infilling import (
    fill_blanks as fill_blanks,
    plain_sentences as plain_sentences,
    show_blanks as show_blanks,
)
from .pretrain import (
    PretrainResult as PretrainResult,
    pretrain as pretrain,
)
from .pretrain_config import (
    PretrainConfig as PretrainConfig,
)
from .validation import (
    PREDICTIONS as PREDICTIONS,
)

__all__ = [
    "FileReport",
    "FinetuneConfig",
    "FinetuneResult",
    "PretrainConfig",
    "PretrainResult",
    "fill_blanks",
    "finetune",
    "generate_file",
    "plain_sentences",
    "pretrain",
    "show_blanks",
]
