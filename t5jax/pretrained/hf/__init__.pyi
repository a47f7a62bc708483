"""Hugging Face checkpoints: transformers and the hub."""

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

__all__ = [
    "save_hf",
]
