"""Checkpoints of every known format, in and out."""

from . import formats as formats, hf as hf, t5x as t5x
from .convert import (
    REPORT_FILE as REPORT_FILE,
    Conversion as Conversion,
    convert_checkpoint as convert_checkpoint,
)
from .describe import (
    describe_checkpoint as describe_checkpoint,
)
from .model_folder import (
    CONFIG_FILE as CONFIG_FILE,
)
from .native import (
    CHECKPOINTS as CHECKPOINTS,
)
from .open import (
    find_generation_settings as find_generation_settings,
    find_tokenizer as find_tokenizer,
    load_pretrained as load_pretrained,
    locate_checkpoint as locate_checkpoint,
    open_checkpoint as open_checkpoint,
    save_pretrained as save_pretrained,
)
from .sentence_transformers import (
    read_sentence_encoder as read_sentence_encoder,
)
from .source import (
    Weights as Weights,
)

__all__ = [
    "Conversion",
    "Weights",
    "convert_checkpoint",
    "describe_checkpoint",
    "formats",
    "hf",
    "load_pretrained",
    "open_checkpoint",
    "save_pretrained",
    "t5x",
]
