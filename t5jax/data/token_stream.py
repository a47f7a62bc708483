"""Token streams: tokenized documents on disk, joined, and cut into chunks of equal length."""

import hashlib
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from t5jax.tokenizers import Tokenizer, encode_with_eos

if TYPE_CHECKING:
    import datasets


@runtime_checkable
class ExampleSource(Protocol):
    """Protocol of indexed raw examples, such as a list or `Chunks`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class TokenStream:
    """The ids of all documents of a data set as one sequence, with EOS after each document.

    They are read from disk as they are needed.
    """

    def __init__(self, documents: "datasets.Dataset"):
        """Create a stream of a data set with the column `ids`, as `tokenize_dataset` makes it."""
        column = documents.with_format("arrow").data.column("ids")
        # Arrow holds the ids of many documents in one buffer: these are views, not copies.
        self._buffers = [chunk.flatten().to_numpy() for chunk in column.chunks]
        self._ends = np.cumsum([len(buffer) for buffer in self._buffers], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def slice(self, start: int, stop: int) -> Int[np.ndarray, " S"]:
        """Return the ids at positions from `start` up to `stop`, int32."""
        parts = []
        for i in range(int(np.searchsorted(self._ends, start, side="right")), len(self._buffers)):
            begin = int(self._ends[i]) - len(self._buffers[i])
            if begin >= stop:
                break
            parts.append(self._buffers[i][max(start - begin, 0) : stop - begin])
        return np.concatenate(parts).astype(np.int32)


class Chunks:
    """Chunks of equal length of a token stream; an incomplete last chunk is left out."""

    def __init__(self, stream: TokenStream, length: int, *, name: str = "text"):
        if len(stream) < length:
            raise ValueError(
                f"the {name} must have at least one chunk of {length} tokens, got {len(stream)} "
                "tokens in all; use more text or a shorter input length."
            )
        self._stream = stream
        self._length = length

    def __len__(self) -> int:
        return len(self._stream) // self._length

    def __getitem__(self, index: int) -> Int[np.ndarray, " S"]:
        return self._stream.slice(index * self._length, (index + 1) * self._length)


def tokenize_dataset(documents: "datasets.Dataset", tokenizer: Tokenizer) -> "datasets.Dataset":
    """Tokenize the column `text` to the column `ids`, with EOS at the end of each document.

    The result is memory-mapped from the cache of `datasets`, where the next call reads it again.
    """
    import datasets

    def encode(texts: list[str]) -> dict[str, list[list[int]]]:
        return {"ids": [encode_with_eos(tokenizer, text) for text in texts]}

    identity = hashlib.sha256(f"{documents._fingerprint} {tokenizer.fingerprint}".encode())
    return documents.map(
        encode,
        input_columns="text",
        batched=True,
        remove_columns=documents.column_names,
        features=datasets.Features({"ids": datasets.List(datasets.Value("int32"))}),
        new_fingerprint=identity.hexdigest()[:32],
        desc="tokenizing",
    )
