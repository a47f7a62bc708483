"""From documents to batches: tokens on disk, equal chunks, shuffled, corrupted and stacked.

Example `i` of epoch `e` depends on (seed, e, i) alone, so a run can stop anywhere and go on.
"""

import hashlib
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from t5jax.tokenizers import Tokenizer, encode_with_eos

if TYPE_CHECKING:
    import datasets


@runtime_checkable
class ExampleSource(Protocol):
    """Raw examples, by their number; lists and `Chunks` are sources."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class TokenStream:
    """All documents of a data set as one sequence of ids, an EOS behind each, read from disk."""

    def __init__(self, documents: "datasets.Dataset"):
        """`documents` has the column `ids`, as `tokenize_dataset` makes it."""
        column = documents.with_format("arrow").data.column("ids")
        # Arrow holds the ids of many documents in one buffer: views of it, no copies.
        self._pieces = [chunk.flatten().to_numpy() for chunk in column.chunks]
        self._ends = np.cumsum([len(piece) for piece in self._pieces], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def slice(self, start: int, stop: int) -> Int[np.ndarray, " S"]:
        """Ids from `start` up to `stop`, int32."""
        parts = []
        for i in range(int(np.searchsorted(self._ends, start, side="right")), len(self._pieces)):
            begin = int(self._ends[i]) - len(self._pieces[i])
            if begin >= stop:
                break
            parts.append(self._pieces[i][max(start - begin, 0) : stop - begin])
        return np.concatenate(parts).astype(np.int32)


class Chunks:
    """A token stream cut into pieces of equal length; an incomplete last piece is left out."""

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
    """Turns the column `text` into the column `ids`, each document ended by EOS.

    The result lies in the cache of `datasets`, memory-mapped, and is found there the next time.
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
