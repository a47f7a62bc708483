"""What `t5jax.load` returns: a model with its parameters and tokenizer, from text to text."""

import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from t5jax import generate, pretrained
from t5jax.config import T5Config
from t5jax.decode import beam
from t5jax.model import T5, Params, bind
from t5jax.strategy import EarlyStopping, Strategy
from t5jax.tokenizer import Tokenizer

_GREEDY = Strategy()


class Answer(NamedTuple):
    """One of the answers of `Text2Text.n_best`."""

    text: str
    ids: list[int]
    """With EOS, unless the limit came first."""
    score: float
    """Log-probability divided by the penalty of the length."""
    log_prob: float
    """Of all ids, in nats."""


class Text2Text:
    """A T5 ready for use.

    Texts are tokenised, grouped by length, padded to a few fixed lengths and run through compiled
    programs; results come in the order of the texts.  The first call with a new combination of
    lengths compiles, later ones do not.

    Attributes:
      config: the architecture.
      params: nested dict of arrays.
      tokenizer: None if the model came without one; then only the methods on ids work.
    """

    def __init__(self, config: T5Config, params: Params, tokenizer: Tokenizer | None):
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
        self.config = config
        self.params = params
        self._tokenizer = tokenizer

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return f"Text2Text({count / 1e6:.1f} M parameters, {self.config})"

    @property
    def model(self) -> T5:
        """The `flax.nnx` module, for everything that the methods here do not do."""
        return self._model

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._tokenizer

    def generate(
        self,
        texts: Sequence[str],
        *,
        max_new_tokens: int = 64,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        penalty_form: Literal["power", "gnmt"] = "power",
        early_stopping: EarlyStopping = False,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        typical_p: float | None = None,
        seed: int = 0,
        batch_size: int = 32,
        max_input_tokens: int = 2048,
    ) -> list[str]:
        """Writes an answer to every text.

        Args:
          texts: inputs, with whatever prefix the model was trained on.
          max_new_tokens: most tokens of an answer.
          num_beams: 1 takes one token at a time; above, beam search keeps that many sequences.
          length_penalty: of beam search, as the following two; see `Strategy`.
          penalty_form: "power" as in Hugging Face transformers, "gnmt" as in T5X.
          early_stopping: when a beam search is done.
          temperature: 0 takes the most likely token each time; above, tokens are drawn at random.
          top_k: draw from this many of the likeliest tokens.
          top_p: draw from the likeliest tokens that have this probability together.
          min_p: draw from tokens at least this many times as likely as the likeliest.
          typical_p: draw from the most typical tokens that have this probability together.
          seed: of the draws.  An answer depends on it, on its text and on its place in `texts`.
          batch_size: texts computed at once.
          max_input_tokens: longest input allowed, since memory grows with its square.
        Raises:
          ValueError: an option out of range or without effect, or a text longer than allowed.
        """
        strategy = Strategy(
            num_beams=num_beams,
            length_penalty=length_penalty,
            penalty_form=penalty_form,
            early_stopping=early_stopping,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            seed=seed,
        )
        _check_positive(max_new_tokens=max_new_tokens, batch_size=batch_size)
        inputs = self._encode_texts("texts", texts, max_input_tokens)
        tokenizer = self._need_tokenizer()

        def run(rows, tokens, mask):
            return self._generate(rows, tokens, mask, max_new_tokens, strategy)

        return [tokenizer.decode(ids) for ids in self._run(inputs, run, batch_size)]

    def n_best(
        self,
        texts: Sequence[str],
        *,
        num_beams: int,
        num_return_sequences: int | None = None,
        max_new_tokens: int = 64,
        length_penalty: float = 1.0,
        penalty_form: Literal["power", "gnmt"] = "power",
        early_stopping: EarlyStopping = False,
        batch_size: int = 32,
        max_input_tokens: int = 2048,
    ) -> list[list[Answer]]:
        """The best answers to every text that a beam search finds, best first.

        Args:
          texts: as in `generate`.
          num_beams: open sequences, at least 2.
          num_return_sequences: how many answers to return; all `num_beams` if None.  A text gets
            fewer if the model can write only fewer.
          max_new_tokens: as in `generate`, like all others.
          length_penalty: as in `generate`.
          penalty_form: as in `generate`.
          early_stopping: as in `generate`.
          batch_size: as in `generate`.
          max_input_tokens: as in `generate`.
        Raises:
          ValueError: as from `generate`, or more answers than beams.
        """
        wanted = num_beams if num_return_sequences is None else num_return_sequences
        _check_positive(num_return_sequences=wanted, max_new_tokens=max_new_tokens)
        _check_positive(batch_size=batch_size)
        if num_beams < 2 or wanted > num_beams:
            raise ValueError(
                "num_beams must be at least 2 and at least num_return_sequences, got "
                f"{num_beams} beams for {wanted} answers."
            )
        strategy = Strategy(
            num_beams=num_beams,
            length_penalty=length_penalty,
            penalty_form=penalty_form,
            early_stopping=early_stopping,
        )
        inputs = self._encode_texts("texts", texts, max_input_tokens)
        tokenizer = self._need_tokenizer()

        def run(rows, tokens, mask):
            found = self._beams(rows, tokens, mask, max_new_tokens, strategy)
            arrays = map(np.asarray, found)
            return list(zip(*arrays, strict=True))

        def answer(ids, score, log_prob):
            ended = ids == self.config.eos_id
            length = int(ended.argmax()) + 1 if ended.any() else max_new_tokens
            kept = ids[:length].tolist()
            return Answer(tokenizer.decode(kept), kept, float(score), float(log_prob))

        return [
            [answer(*parts) for parts in zip(*beams, strict=True) if parts[1] > -np.inf][:wanted]
            for beams in self._run(inputs, run, batch_size)
        ]

    def generate_ids(
        self,
        encoder_tokens: Int[Array, "B S"] | Int[np.ndarray, "B S"],
        *,
        encoder_mask: Bool[Array, "B S"] | Bool[np.ndarray, "B S"],
        max_new_tokens: int,
        strategy: Strategy = _GREEDY,
    ) -> Int[np.ndarray, "B T"]:
        """`generate` from ids to ids, for one batch.

        Args:
          encoder_tokens: input ids.
          encoder_mask: True on ids that are not padding.
          max_new_tokens: most tokens of an answer, T.
          strategy: the options of `generate` that say how an answer is searched for.
        Returns:
          [B, T] int32; rows end with EOS, then padding, unless they reached the limit.
        """
        _check_positive(max_new_tokens=max_new_tokens)
        tokens, mask = np.asarray(encoder_tokens), np.asarray(encoder_mask)
        if tokens.ndim != 2 or tokens.shape != mask.shape:
            raise ValueError(
                "encoder_tokens and encoder_mask must both have shape [B, S], got "
                f"{tokens.shape} and {mask.shape}."
            )
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.config.vocab_size:
            raise ValueError(
                f"ids must be in [0, vocab_size = {self.config.vocab_size}), got "
                f"{tokens.min()} to {tokens.max()}; another tokenizer made them."
            )
        if not len(tokens):
            return np.zeros((0, max_new_tokens), np.int32)
        count, length = tokens.shape
        room = ((0, generate.rows_bucket(count) - count), (0, generate.bucket(length) - length))
        tokens = np.pad(tokens.astype(np.int32), room, constant_values=self.config.pad_id)
        mask = np.pad(mask.astype(bool), room)
        rows = np.where(np.arange(len(tokens)) < count, np.arange(len(tokens)), -1)
        return self._generate(rows, tokens, mask, max_new_tokens, strategy)[:count]

    def score(
        self,
        inputs: Sequence[str],
        targets: Sequence[str],
        *,
        batch_size: int = 32,
        max_input_tokens: int = 2048,
    ) -> Float[np.ndarray, " B"]:
        """Log-probability, in nats, that each input is answered by its target and then EOS.

        Args:
          inputs: texts.
          targets: one for each input.
          batch_size: pairs computed at once.
          max_input_tokens: longest input or target allowed.
        """
        _check_positive(batch_size=batch_size)
        tokenizer = self._need_tokenizer()
        encoded = self._encode_texts("inputs", inputs, max_input_tokens)
        wanted = self._encode_texts("targets", targets, max_input_tokens)
        if len(inputs) != len(targets):
            raise ValueError(
                f"inputs and targets must be as many, got {len(inputs)} and {len(targets)}."
            )

        def run(rows, tokens, mask):
            labels, label_mask = generate.pad_batch(
                [wanted[i] for i in rows if i >= 0], pad_id=tokenizer.pad_id, num_rows=len(rows)
            )
            return np.asarray(
                generate.score(self.params, tokens, mask, labels, label_mask, config=self.config)
            )

        return np.array(self._run(encoded, run, batch_size), np.float32)

    def encode(
        self, texts: Sequence[str], *, batch_size: int = 32, max_input_tokens: int = 2048
    ) -> tuple[Float[np.ndarray, "B S D"], Bool[np.ndarray, "B S"]]:
        """Final encoder states of every token, and which positions are tokens.

        S is the length, EOS included, of the longest text; states behind a text's end are 0.
        """
        _check_positive(batch_size=batch_size)
        encoded = self._encode_texts("texts", texts, max_input_tokens)
        lengths = np.array([len(ids) for ids in encoded], np.int32)

        def run(rows, tokens, mask):
            del rows
            states = generate.encode(self.params, tokens, mask, config=self.config)
            return np.asarray(states.astype(jnp.float32))

        width = int(lengths.max(initial=0))
        mask = np.arange(width)[None, :] < lengths[:, None]
        states = np.zeros((*mask.shape, self.config.d_model), np.float32)
        for i, row in enumerate(self._run(encoded, run, batch_size)):
            states[i, : lengths[i]] = row[: lengths[i]]
        return states, mask

    def embed(
        self, texts: Sequence[str], *, batch_size: int = 32, max_input_tokens: int = 2048
    ) -> Float[np.ndarray, "B E"]:
        """One vector of length 1 for every text: the mean of its encoder states.

        If the model has a projection (sentence-T5, GTR), it is applied to the mean, and E is its
        width; otherwise E is d_model.  (arXiv:2108.08877, section 3)
        """
        _check_positive(batch_size=batch_size)
        encoded = self._encode_texts("texts", texts, max_input_tokens)

        def run(rows, tokens, mask):
            del rows
            return np.asarray(generate.embed(self.params, tokens, mask, config=self.config))

        width = self.config.projection_dim or self.config.d_model
        rows = self._run(encoded, run, batch_size)
        return np.array(rows, np.float32).reshape(len(texts), width)

    def save(self, folder: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Writes config, parameters and tokenizer to a folder that `t5jax.load` reads.

        Args:
          folder: made whole or not at all.
          overwrite: replace an existing folder, which otherwise is an error.
        """
        pretrained.save(folder, self.config, self.params, self.tokenizer, overwrite=overwrite)

    def _need_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise ValueError(
                "this model was loaded without a tokenizer; pass `tokenizer=` to t5jax.load, put "
                "spiece.model into its folder, or call generate_ids with ids of your own."
            )
        return self._tokenizer

    def _encode_texts(self, name: str, texts: Sequence[str], limit: int) -> list[list[int]]:
        tokenizer = self._need_tokenizer()
        readable = isinstance(texts, Sequence) and not isinstance(texts, str)
        if not readable or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"{name} must be a list of strings, got {texts!r:.60}.")
        encoded = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
        for i, ids in enumerate(encoded):
            if len(ids) > limit:
                raise ValueError(
                    f"{name}[{i}] must have at most {limit} tokens, got {len(ids)}; shorten it or "
                    "raise max_input_tokens."
                )
        return encoded

    def _run(self, encoded, run, batch_size: int) -> list[Any]:
        return generate.by_length(encoded, run, batch_size=batch_size, pad_id=self.config.pad_id)

    def _generate(self, rows, tokens, mask, max_new_tokens, strategy: Strategy) -> np.ndarray:
        if strategy.num_beams > 1:
            found = self._beams(rows, tokens, mask, max_new_tokens, strategy)
            return np.asarray(found.tokens)[:, 0, :max_new_tokens]
        draws = {
            name: np.asarray(value, np.float32 if isinstance(value, float) else np.int32)
            for name, value in strategy.draws.items()
        }
        ids = generate.generate(
            self.params,
            tokens,
            mask,
            np.asarray(rows, np.int32),
            config=self.config,
            max_len=generate.bucket(max_new_tokens),
            limit=np.int32(max_new_tokens),
            draws=draws,
            # Few programs for many values.
            most_k=generate.bucket(strategy.top_k) if strategy.top_k else 0,
        )
        return np.asarray(ids)[:, :max_new_tokens]

    def _beams(self, rows, tokens, mask, max_new_tokens, strategy: Strategy) -> beam.Beams:
        return generate.beam_search(
            self.params,
            tokens,
            mask,
            np.asarray(rows, np.int32),
            config=self.config,
            max_len=generate.bucket(max_new_tokens),
            limit=np.int32(max_new_tokens),
            num_beams=strategy.num_beams,
            length_penalty=np.float32(strategy.length_penalty),
            penalty_form=strategy.penalty_form,
            early_stopping=strategy.early_stopping,
        )


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
