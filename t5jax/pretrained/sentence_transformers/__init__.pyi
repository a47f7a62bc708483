"""Sentence encoders in sentence-transformers' format."""

from .read import (
    PROJECTION_TENSOR as PROJECTION_TENSOR,
    open_projection as open_projection,
    read_sentence_encoder as read_sentence_encoder,
    transformer_folder as transformer_folder,
)
from .write import (
    write_sentence_transformers as write_sentence_transformers,
)

__all__: list[str] = []
