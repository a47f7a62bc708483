"""What a model makes of texts that it is given: states, embeddings, and how likely answers are."""

import sys
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from t5jax.generation import batching, scoring
from t5jax.models import T5, LogitError, Params, T5Config, bind
from t5jax.ops import is_kernel
from t5jax.tokenizers import Tokenizer


class RankedCandidate(NamedTuple):
    """A candidate of `Text2Text.rank`."""

    text: str
    place: int
    """Among the candidates as they were given."""
    log_prob: float
    """Of all its tokens and EOS, in nats."""


class Scorer:
    """The half of `Text2Text` that writes nothing."""

    def __init__(
        self,
        config: T5Config,
        params: Params,
        tokenizer: Tokenizer | None,
        *,
        logit_error: LogitError | None = None,
    ):
        """Checks that the three fit together.

        Raises:
          ValueError: parameters of other shapes, or a tokenizer with more ids than embeddings.
        """
        self._model = bind(config, params)
        if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"the tokenizer must have at most vocab_size = {config.vocab_size} ids, got "
                f"{tokenizer.vocab_size}; it belongs to another model."
            )
        if tokenizer is not None and tokenizer.eos_id != config.eos_id:
            raise ValueError(
                f"the tokenizer must end sequences as the model does, with eos_id = "
                f"{config.eos_id}, got {tokenizer.eos_id}; it belongs to another model."
            )
        self._config = config
        self._params = params
        self.logit_error = logit_error
        self._tokenizer = tokenizer

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.params, is_leaf=is_kernel)
        count = sum(leaf.size for leaf in leaves)
        error = f", {self.logit_error}" if self.logit_error else ""
        return f"Text2Text({count / 1e6:.1f} M parameters, {self.config}{error})"

    @property
    def config(self) -> T5Config:
        """The architecture."""
        return self._config

    @property
    def params(self) -> Params:
        """Nested dict of arrays.  Other weights are another `Text2Text`: some are laid out anew for
        writing, once, so that changes in the dict would be seen by one half of the methods."""
        return self._params

    @property
    def model(self) -> T5:
        """The `flax.nnx` module, for everything that the methods here do not do."""
        return self._model

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._tokenizer

    def encode(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 32,
        max_input_tokens: int = 2048,
        truncate: bool = False,
    ) -> tuple[Float[np.ndarray, "B S D"], Bool[np.ndarray, "B S"]]:
        """Final encoder states of every token, and which positions are tokens.

        S is the length, EOS included, of the longest text; states behind a text's end are 0.
        """
        check_positive(batch_size=batch_size)
        encoded = self.encode_texts("texts", texts, max_input_tokens, truncate)
        lengths = np.array([len(ids) for ids in encoded], np.int32)

        def run(rows, tokens, mask):
            del rows
            states = scoring.encode_batch(self.params, tokens, mask, config=self.config)
            return np.asarray(states.astype(jnp.float32))

        width = int(lengths.max(initial=0))
        mask = np.arange(width)[None, :] < lengths[:, None]
        states = np.zeros((*mask.shape, self.config.d_model), np.float32)
        for i, row in enumerate(self._run(encoded, run, batch_size)):
            states[i, : lengths[i]] = row[: lengths[i]]
        return states, mask

    def embed(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 32,
        max_input_tokens: int = 2048,
        truncate: bool = False,
    ) -> Float[np.ndarray, "B E"]:
        """One vector of length 1 for every text: the mean of its encoder states.

        If the model has a projection (sentence-T5, GTR), it is applied to the mean, and E is its
        width; otherwise E is d_model.  (arXiv:2108.08877, section 3)
        """
        check_positive(batch_size=batch_size)
        encoded = self.encode_texts("texts", texts, max_input_tokens, truncate)

        def run(rows, tokens, mask):
            del rows
            return np.asarray(scoring.embed_batch(self.params, tokens, mask, config=self.config))

        width = self.config.projection_dim or self.config.d_model
        rows = self._run(encoded, run, batch_size)
        return np.array(rows, np.float32).reshape(len(texts), width)

    def score(
        self,
        inputs: Sequence[str],
        targets: Sequence[str],
        *,
        batch_size: int = 32,
        max_input_tokens: int = 2048,
        truncate: bool = False,
    ) -> Float[np.ndarray, " B"]:
        """Log-probability, in nats, that each input is answered by its target and then EOS.

        Args:
          inputs: texts.
          targets: one for each input.
          batch_size: pairs computed at once.
          max_input_tokens: longest input or target allowed.
          truncate: cut longer ones, and say how many in a warning, instead of refusing them.
        """
        if len(inputs) != len(targets):
            raise ValueError(
                f"inputs and targets must be as many, got {len(inputs)} and {len(targets)}."
            )
        check_list("targets", targets)
        found = self.score_candidates(
            inputs,
            [[target] for target in targets],
            batch_size=batch_size,
            max_input_tokens=max_input_tokens,
            truncate=truncate,
        )
        return np.array([row[0] for row in found], np.float32)

    def score_candidates(
        self,
        inputs: Sequence[str],
        candidates: Sequence[Sequence[str]],
        *,
        batch_size: int = 32,
        max_input_tokens: int = 2048,
        truncate: bool = False,
    ) -> list[Float[np.ndarray, " k"]]:
        """`score` of several targets for each input, which is encoded once for all of them.

        Args:
          inputs: texts.
          candidates: for each input, its targets; they need not be as many for all.
          batch_size: pairs computed at once, and one input's pairs always together.
          max_input_tokens: as in `score`.
          truncate: as in `score`.
        """
        tokens = self.score_tokens(
            inputs,
            candidates,
            batch_size=batch_size,
            max_input_tokens=max_input_tokens,
            truncate=truncate,
        )
        return [np.array([one.sum() for one in row], np.float32) for row in tokens]

    def score_tokens(
        self,
        inputs: Sequence[str],
        candidates: Sequence[Sequence[str]],
        *,
        batch_size: int = 32,
        max_input_tokens: int = 2048,
        truncate: bool = False,
    ) -> list[list[Float[np.ndarray, " T"]]]:
        """`score_candidates` token by token: log-probabilities of each target's ids and of EOS."""
        check_positive(batch_size=batch_size)
        encoded = self.encode_texts("inputs", inputs, max_input_tokens, truncate)
        if len(inputs) != len(candidates):
            raise ValueError(
                f"inputs and candidates must be as many, got {len(inputs)} and {len(candidates)}."
            )
        for i, row in enumerate(candidates):
            check_list(f"candidates[{i}]", row)
        flat = [text for row in candidates for text in row]
        ids = iter(self.encode_texts("targets", flat, max_input_tokens, truncate))
        wanted = [[next(ids) for _ in row] for row in candidates]
        widest = max(map(len, wanted), default=0)

        def run(rows, tokens, mask):
            listed = [wanted[i] if i >= 0 else [] for i in rows]
            width = max(map(len, listed))
            if not width:
                return listed
            width = batching.batch_bucket(width)
            targets, _ = batching.pad_batch(
                [ids for row in listed for ids in [*row, *[[]] * (width - len(row))]],
                pad_id=self.config.pad_id,
            )
            found = scoring.score_tokens(self.params, tokens, mask, targets, config=self.config)
            log_probs = np.asarray(found.log_probs).reshape(len(rows), width, -1)
            return [
                [log_probs[i, k, : len(ids)] for k, ids in enumerate(row)]
                for i, row in enumerate(listed)
            ]

        return self._run(encoded, run, max(1, batch_size // max(widest, 1)))

    def rank(
        self,
        inputs: Sequence[str],
        candidates: Sequence[str] | Sequence[Sequence[str]],
        *,
        batch_size: int = 32,
        max_input_tokens: int = 2048,
        truncate: bool = False,
    ) -> list[list[RankedCandidate]]:
        """Orders candidate answers by how likely the model would write them, likeliest first.

        This is how T5 and T0 are evaluated on choices.  (arXiv:2110.08207, section 5)

        Args:
          inputs: texts.
          candidates: the same for all inputs, or a list for each of them.
          batch_size: as in `score_candidates`.
          max_input_tokens: as in `score`.
          truncate: as in `score`.
        """
        if not isinstance(candidates, Sequence) or isinstance(candidates, str):
            raise TypeError(
                f"candidates must be a list of texts, or of such lists, got {candidates!r:.60}."
            )
        same = [one for one in candidates if isinstance(one, str)]
        each = [list(one) for one in candidates if not isinstance(one, str)]
        if same and each:
            raise TypeError("candidates must be texts, or lists of texts, got some of both.")
        listed = each or [same] * len(inputs)
        scores = self.score_candidates(
            inputs,
            listed,
            batch_size=batch_size,
            max_input_tokens=max_input_tokens,
            truncate=truncate,
        )
        return [
            [
                RankedCandidate(texts[k], k, float(row[k]))
                for k in np.argsort(-row, kind="stable").tolist()
            ]
            for texts, row in zip(listed, scores, strict=True)
        ]

    def _need_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise ValueError(
                "this model was loaded without a tokenizer; pass `tokenizer=` to t5jax.load, put "
                "spiece.model into its folder, or call generate_ids with ids of your own."
            )
        return self._tokenizer

    def encode_texts(
        self, name: str, texts: Sequence[str], limit: int, truncate: bool
    ) -> list[list[int]]:
        """Ids of texts, with EOS.

        Args:
          name: what to call the texts in a message.
          texts: to be encoded.
          limit: longest text allowed, in tokens with EOS.
          truncate: cut longer ones, with a warning, instead of refusing them.
        Raises:
          TypeError: no list of strings.
          ValueError: a text that is too long, or no tokenizer.
        """
        tokenizer = self._need_tokenizer()
        check_list(name, texts)
        encoded = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
        return self.check_lengths(name, encoded, limit, truncate)

    def check_lengths(
        self, name: str, encoded: list[list[int]], limit: int, truncate: bool
    ) -> list[list[int]]:
        """Refuses inputs of more than `limit` ids, or cuts them; as of `encode_texts`."""
        long = [i for i, ids in enumerate(encoded) if len(ids) > limit]
        for i in long:
            if not truncate:
                raise ValueError(
                    f"{name}[{i}] must have at most {limit} tokens, got {len(encoded[i])}; shorten "
                    "it, raise max_input_tokens, or cut it with truncate=True."
                )
            encoded[i] = [*encoded[i][: limit - 1], self.config.eos_id]
        if long:
            shown = ", ".join(f"{name}[{i}]" for i in long[:3]) + ", ..." * (len(long) > 3)
            warnings.warn(
                f"{len(long)} of {len(encoded)} {name} were cut to {limit} tokens: {shown}.",
                stacklevel=_first_outside(),
            )
        return encoded

    def _run(self, encoded, run, batch_size: int) -> list[Any]:
        return batching.by_length(encoded, run, batch_size=batch_size, pad_id=self.config.pad_id)


def _first_outside() -> int:
    """The stack level, as of the caller, of the first frame that is not in this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("t5jax."):
        level, frame = level + 1, frame.f_back
    return level


def check_list(name: str, texts: Sequence[str]) -> None:
    readable = isinstance(texts, Sequence) and not isinstance(texts, str)
    if not readable or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{name} must be a list of strings, got {texts!r:.60}.")


def check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
