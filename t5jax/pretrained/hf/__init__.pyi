"""Hugging Face checkpoints: transformers, sentence-transformers and the hub."""

from .config import (
    read_hf_config as read_hf_config,
)
from .hub import (
    download_snapshot as download_snapshot,
)
from .load import (
    holds_hf_model as holds_hf_model,
    open_hf as open_hf,
)
from .save import (
    save_hf as save_hf,
)
from .sentence_transformers import (
    PROJECTION_PATH as PROJECTION_PATH,
    transformer_folder as transformer_folder,
)
