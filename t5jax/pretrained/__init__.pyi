"""Checkpoints of every known format, in and out."""

from . import formats as formats
from . import hf as hf
from . import t5x as t5x
from .convert import (
    Convert as Convert,
)
from .convert import (
    convert_checkpoint as convert_checkpoint,
)
from .describe import (
    Inspect as Inspect,
)
from .describe import (
    inspect_checkpoint as inspect_checkpoint,
)
from .native import (
    CHECKPOINTS as CHECKPOINTS,
)
from .native import (
    CONFIG_FILE as CONFIG_FILE,
)
from .native import (
    atomic_folder as atomic_folder,
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
