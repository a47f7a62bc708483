"""Whole runs: pre-training, fine-tuning, batch inference."""

from . import baselines as baselines
from . import finetune as finetune
from . import finetune_config as finetune_config
from . import finetune_data as finetune_data
from . import infilling as infilling
from . import pretrain as pretrain
from .batch_inference import (
    GenerateFileConfig as GenerateFileConfig,
)
from .batch_inference import (
    generate_file as generate_file,
)
from .finetune import (
    PREDICTIONS as PREDICTIONS,
)
from .finetune_config import (
    FinetuneConfig as FinetuneConfig,
)
from .infilling import (
    fill_blanks as fill_blanks,
)
from .pretrain import (
    PretrainConfig as PretrainConfig,
)
