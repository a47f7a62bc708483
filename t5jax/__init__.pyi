"""T5 in JAX: text in, text out."""

from . import (
    checkpoint as checkpoint,
    data as data,
    decoding as decoding,
    evaluation as evaluation,
    generation as generation,
    models as models,
    ops as ops,
    optim as optim,
    parallel as parallel,
    planning as planning,
    pretrained as pretrained,
    profiling as profiling,
    recipes as recipes,
    tokenizers as tokenizers,
    training as training,
)
from .data.tasks import (
    Task as Task,
)
from .generation.config import (
    GenerationConfig as GenerationConfig,
)
from .generation.outputs import (
    GenerationOutput as GenerationOutput,
    StreamEvent as StreamEvent,
)
from .loading import (
    export_hf as export_hf,
    load as load,
)
from .models.config import (
    ComputePolicy as ComputePolicy,
    T5Config as T5Config,
)
from .optim.optimizer import (
    OptimizerConfig as OptimizerConfig,
)
from .optim.schedules import (
    ScheduleConfig as ScheduleConfig,
)
from .recipes.finetune import (
    finetune as finetune,
)
from .recipes.finetune_config import (
    FinetuneConfig as FinetuneConfig,
)
from .recipes.pretrain import (
    pretrain as pretrain,
)
from .recipes.pretrain_config import (
    PretrainConfig as PretrainConfig,
)
from .text2text import (
    Text2Text as Text2Text,
)
from .training.step import (
    StepConfig as StepConfig,
)
from .training.trainer import (
    FitConfig as FitConfig,
)

__version__: str

__all__ = [
    "ComputePolicy",
    "FinetuneConfig",
    "FitConfig",
    "GenerationConfig",
    "GenerationOutput",
    "OptimizerConfig",
    "PretrainConfig",
    "ScheduleConfig",
    "StepConfig",
    "StreamEvent",
    "T5Config",
    "Task",
    "Text2Text",
    "__version__",
    "checkpoint",
    "data",
    "decoding",
    "evaluation",
    "export_hf",
    "finetune",
    "generation",
    "load",
    "models",
    "ops",
    "optim",
    "parallel",
    "planning",
    "pretrain",
    "pretrained",
    "profiling",
    "recipes",
    "tokenizers",
    "training",
]
