"""T5 in JAX: text in, text out."""

from . import checkpoint as checkpoint
from . import data as data
from . import decoding as decoding
from . import evaluation as evaluation
from . import generation as generation
from . import models as models
from . import ops as ops
from . import optim as optim
from . import parallel as parallel
from . import planning as planning
from . import pretrained as pretrained
from . import profiling as profiling
from . import recipes as recipes
from . import tokenizers as tokenizers
from . import training as training
from .data.tasks import Task as Task
from .generation.config import GenerationConfig as GenerationConfig
from .generation.outputs import GenerationOutput as GenerationOutput
from .loading import export_hf as export_hf
from .loading import load as load
from .models.config import T5Config as T5Config
from .optim.optimizer import OptimizerConfig as OptimizerConfig
from .optim.schedules import ScheduleConfig as ScheduleConfig
from .recipes.finetune import finetune as finetune
from .recipes.finetune_config import FinetuneConfig as FinetuneConfig
from .recipes.pretrain import pretrain as pretrain
from .recipes.pretrain_config import PretrainConfig as PretrainConfig
from .text2text import StreamEvent as StreamEvent
from .text2text import Text2Text as Text2Text
from .training.step import StepConfig as StepConfig
from .training.trainer import FitConfig as FitConfig

__version__: str
