"""Checkpoints of every known format, in and out."""

from . import formats as formats
from . import hf as hf
from . import t5x as t5x
from .convert import (
    REPORT_FILE as REPORT_FILE,
)
from .convert import (
    Conversion as Conversion,
)
from .convert import (
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
    find_tokenizer as find_tokenizer,
)
from .open import (
    load_pretrained as load_pretrained,
)
from .open import (
    locate_checkpoint as locate_checkpoint,
)
from .open import (
    open_checkpoint as open_checkpoint,
)
from .open import (
    save_pretrained as save_pretrained,
)
from .source import (
    Weights as Weights,
)
