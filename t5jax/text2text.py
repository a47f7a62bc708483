"""A T5 with its tokenizer, from text to text."""

import functools
import os
import time
from collections.abc import Iterator, Sequence
from typing import Unpack

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from t5jax.errors import check_at_least
from t5jax.generation import (
    Engine,
    GenerationConfig,
    GenerationOutput,
    GenerationOverrides,
    RankedCandidate,
    Scorer,
    StreamedSequence,
    StreamEvent,
    StreamingDetokenizer,
    batch_bucket,
    detokenize,
    length_bucket,
    limit_lengths,
    make_outputs,
    override_config,
    unpad_batch,
)
from t5jax.models import (
    T5,
    ComputePolicy,
    LogitError,
    Params,
    T5Config,
    bind,
    check_saveable,
)
from t5jax.ops import is_kernel
from t5jax.pretrained import save_pretrained
from t5jax.tokenizers import Tokenizer, encode_with_eos


class Text2Text:
    """A T5 ready for use.

    Texts are tokenized, grouped by length, padded to a few fixed lengths and run through compiled
    programs; results come in the order of the texts.  The first call with a new combination of
    lengths compiles, later ones do not.

    Attributes:
      logit_error: change of the logits by rounding the weights, if they were rounded.
    """

    def __init__(
        self,
        config: T5Config,
        params: Params,
        tokenizer: Tokenizer | None,
        *,
        policy: ComputePolicy = ComputePolicy(),
        logit_error: LogitError | None = None,
    ):
        """Check that config, parameters and tokenizer fit together.

        Args:
          config: the architecture.
          params: as from `t5jax.models.init_params`.
          tokenizer: None leaves only the methods on ids.
          policy: how to compute; by default in float32.
          logit_error: change of the logits by rounding the weights, if they were rounded.
        Raises:
          ValueError: parameters of other shapes, or a tokenizer with more ids than embeddings.
        """
        self._model = bind(config, params, policy=policy)
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
        self._tokenizer = tokenizer
        self.logit_error = logit_error

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.params, is_leaf=is_kernel)
        count = sum(leaf.size for leaf in leaves)
        error = f", {self.logit_error}" if self.logit_error else ""
        return f"Text2Text({count / 1e6:.1f} M parameters, {self.config}, {self.policy}{error})"

    @property
    def config(self) -> T5Config:
        """The architecture."""
        return self._config

    @property
    def policy(self) -> ComputePolicy:
        """How the model computes.

        To compute in another way, make `Text2Text(t5.config, t5.params, t5.tokenizer, policy=...)`;
        the two share their parameters.
        """
        return self._model.policy

    @property
    def params(self) -> Params:
        """Nested dict of arrays.

        Other weights are another `Text2Text`: generation keeps a copy of some, so that only half of
        the methods would see changes in the dict.
        """
        return self._params

    @property
    def model(self) -> T5:
        """The `flax.nnx` module, for everything that the methods here do not do."""
        return self._model

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None if the model came without one; then only the methods on ids work."""
        return self._tokenizer

    @functools.cached_property
    def engine(self) -> Engine:
        """Generates ids from ids."""
        return Engine(self.config, self.params, self.tokenizer, policy=self.policy)

    @functools.cached_property
    def scorer(self) -> Scorer:
        """Computes states and log-probabilities of ids."""
        return Scorer(self.config, self.params, policy=self.policy)

    def generate(
        self,
        texts: Sequence[str],
        config: GenerationConfig | None = None,
        **overrides: Unpack[GenerationOverrides],
    ) -> list[str]:
        """Generate an output for every text.

        Args:
          texts: inputs, with whatever prefix the model was trained on.
          config: options of the generation; defaults to `GenerationConfig()`.
          **overrides: fields of `t5jax.GenerationConfig`, such as `max_new_tokens` (64),
            `num_beams` (1), `temperature` (0.0, greedy) or `stop_strings`; they take precedence.
        Returns:
          The outputs, in the order of the texts.
        Raises:
          TypeError: an unknown option.
          ValueError: an option out of range or without effect, options that contradict one another,
            a text longer than allowed, or constraints that leave no token to generate.
        """
        config = override_config(config, overrides)
        tokenizer = self._require_tokenizer()
        inputs = self.tokenize(texts, max_tokens=config.max_input_tokens, truncate=config.truncate)
        sequences = [row[0] for row in self.engine.generate(inputs, config)]
        dead = [i for i, one in enumerate(sequences) if one.finish_reason == "dead_end"]
        if dead:
            raise ValueError(
                f"constraints must leave something to generate, and left nothing for "
                f"{', '.join(f'texts[{i}]' for i in dead[:5])}; loosen them, or call "
                "generate_outputs, which returns such outputs as dead ends."
            )
        return [
            detokenize(
                tokenizer, one.ids, stop_strings=config.stop_strings, prefix_len=one.prefix_len
            )
            for one in sequences
        ]

    def generate_outputs(
        self,
        texts: Sequence[str],
        config: GenerationConfig | None = None,
        *,
        num_return_sequences: int = 1,
        num_alternatives: int = 0,
        cross_attention: bool = False,
        **overrides: Unpack[GenerationOverrides],
    ) -> list[list[GenerationOutput]]:
        """Generate outputs with their ids, log-probabilities and finish reasons.

        Args:
          texts: as in `generate`.
          config: as in `generate`.
          num_return_sequences: number of samples, or of the best sequences of a beam search, best
            first.  A beam search finds fewer if the model can generate only fewer.
          num_alternatives: number of most likely tokens to list in the place of each token.
          cross_attention: return the attention of each token to each input token.
          **overrides: as in `generate`.
        Returns:
          The outputs of each text.
        Raises:
          TypeError: as in `generate`.
          ValueError: as in `generate`, except for constraints that leave no token to generate: such
            an output has `finish_reason` "dead_end"; or several outputs where there is only one.
        """
        config = override_config(config, overrides)
        check_at_least(1, num_return_sequences=num_return_sequences)
        if not 0 <= num_alternatives <= self.config.vocab_size:
            raise ValueError(
                f"num_alternatives must be in [0, vocab_size = {self.config.vocab_size}], got "
                f"{num_alternatives}."
            )
        if num_return_sequences > config.num_beams and not config.temperature:
            raise ValueError(
                f"num_return_sequences must be at most num_beams = {config.num_beams}, got "
                f"{num_return_sequences}; use as many beams, or a temperature above 0 to sample."
            )
        tokenizer = self._require_tokenizer()
        inputs = self.tokenize(texts, max_tokens=config.max_input_tokens, truncate=config.truncate)
        return make_outputs(
            inputs,
            self.engine.generate(inputs, config, num_return_sequences=num_return_sequences),
            config=config,
            scorer=self.scorer,
            tokenizer=tokenizer,
            num_alternatives=num_alternatives,
            cross_attention=cross_attention,
        )

    def stream(
        self,
        texts: Sequence[str],
        config: GenerationConfig | None = None,
        **overrides: Unpack[GenerationOverrides],
    ) -> Iterator[StreamEvent]:
        """Generate an output for every text, and yield its pieces as soon as they are certain.

        The texts of a batch take turns; the pieces of each, joined, are the output of `generate`.

        Args:
          texts: as in `generate`.
          config: as in `generate`, without beams, since the best one is not known before the end.
          **overrides: as in `generate`.
        Returns:
          An iterator over the pieces.
        Raises:
          TypeError: as in `generate`.
          ValueError: as in `generate`, at once, except for constraints that leave no token to
            generate: such an output ends with the reason "dead_end".
        """
        config = override_config(config, overrides)
        if config.num_beams > 1:
            raise ValueError(
                f"num_beams must be 1 to stream, got {config.num_beams}; the best beam is known "
                "only at the end."
            )
        inputs = self.tokenize(texts, max_tokens=config.max_input_tokens, truncate=config.truncate)
        # A generator function would check nothing before the first piece is requested.
        return self._stream_text(self.engine.stream(inputs, config), config.stop_strings)

    def _stream_text(
        self, sequences: Iterator[StreamedSequence], stop_strings: Sequence[str]
    ) -> Iterator[StreamEvent]:
        tokenizer = self._require_tokenizer()
        detokenizers: dict[int, StreamingDetokenizer] = {}
        for row, ids, prefix_len, finish_reason in sequences:
            if row not in detokenizers:
                detokenizers[row] = StreamingDetokenizer(
                    tokenizer, stop_strings=stop_strings, prefix_len=prefix_len
                )
            text = detokenizers[row].grow(ids, ended=finish_reason is not None)
            if text or finish_reason is not None:
                yield StreamEvent(row, text, finish_reason)

    def generate_ids(
        self,
        encoder_tokens: Int[Array, "B S"] | Int[np.ndarray, "B S"],
        config: GenerationConfig | None = None,
        *,
        encoder_mask: Bool[Array, "B S"] | Bool[np.ndarray, "B S"],
        **overrides: Unpack[GenerationOverrides],
    ) -> Int[np.ndarray, "B T"]:
        """Generate ids from ids.

        Args:
          encoder_tokens: input ids.
          config: as in `generate`.
          encoder_mask: True on ids that are not padding.
          **overrides: as in `generate`.
        Returns:
          [B, T] int32, T = max_new_tokens and the longest prefix; rows end with EOS unless
          something else ended them, then padding.  A row is padding if constraints left nothing to
          generate.
        Raises:
          TypeError: as in `generate`.
          ValueError: as in `generate`; arrays of other shapes, or ids outside the vocabulary.
        """
        config = override_config(config, overrides)
        inputs = unpad_batch(
            np.asarray(encoder_tokens),
            np.asarray(encoder_mask, bool),
            vocab_size=self.config.vocab_size,
        )
        inputs = limit_lengths(
            inputs,
            config.max_input_tokens,
            truncate=config.truncate,
            eos_id=self.config.eos_id,
            name="encoder_tokens",
        )
        sequences = [row[0] for row in self.engine.generate(inputs, config)]
        width = config.max_new_tokens + max((one.prefix_len for one in sequences), default=0)
        ids = np.full((len(sequences), width), self.config.pad_id, np.int32)
        for row, one in zip(ids, sequences, strict=True):
            row[: len(one.ids)] = one.ids
        return ids

    def warmup(
        self,
        config: GenerationConfig | None = None,
        *,
        input_lengths: Sequence[int] = (64,),
        num_texts: Sequence[int] = (1,),
        **overrides: Unpack[GenerationOverrides],
    ) -> float:
        """Compile the programs of `generate`, so that no later call of these sizes has to.

        A program serves a whole bucket of lengths (`t5jax.generation.batching`), a power of two of
        texts, and all values of the options that are on.

        Args:
          config: as in `generate`.
          input_lengths: numbers of tokens of the inputs to come, EOS included.
          num_texts: numbers of inputs computed at once.
          **overrides: as in `generate`.
        Returns:
          The time it took, in seconds.
        """
        config = override_config(config, overrides)
        start = time.perf_counter()
        for length in dict.fromkeys(map(length_bucket, input_lengths)):
            for count in dict.fromkeys(map(batch_bucket, num_texts)):
                self.engine.generate([[self.config.eos_id] * length] * count, config)
        return time.perf_counter() - start

    def encode(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 32,
        max_input_tokens: int = 2048,
        truncate: bool = False,
    ) -> tuple[Float[np.ndarray, "B S D"], Bool[np.ndarray, "B S"]]:
        """Return the final encoder states of every token, and a mask that is True on tokens.

        Args:
          texts: inputs.
          batch_size: number of texts computed at once.
          max_input_tokens: longest text allowed, in tokens with EOS.
          truncate: cut longer texts, with a warning, instead of refusing them.
        Returns:
          States and mask; S is the length of the longest text with EOS, and states after the end of
          a text are 0.
        """
        check_at_least(1, batch_size=batch_size)
        inputs = self.tokenize(texts, max_tokens=max_input_tokens, truncate=truncate)
        return self.scorer.encode(inputs, batch_size=batch_size)

    def embed(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 32,
        max_input_tokens: int = 2048,
        truncate: bool = False,
    ) -> Float[np.ndarray, "B E"]:
        """Return one vector of length 1 for every text: the mean of its encoder states.

        If the model has a projection (sentence-T5, GTR), it is applied to the mean, and E is its
        width; otherwise E is d_model.  (arXiv:2108.08877, section 3)

        Args:
          texts: inputs.
          batch_size: as in `encode`.
          max_input_tokens: as in `encode`.
          truncate: as in `encode`.
        """
        check_at_least(1, batch_size=batch_size)
        inputs = self.tokenize(texts, max_tokens=max_input_tokens, truncate=truncate)
        return self.scorer.embed(inputs, batch_size=batch_size)

    def score(
        self,
        inputs: Sequence[str],
        targets: Sequence[str],
        *,
        batch_size: int = 32,
        max_input_tokens: int = 2048,
        truncate: bool = False,
    ) -> Float[np.ndarray, " B"]:
        """Return the log-probability, in nats, of each target and EOS given its input.

        Args:
          inputs: texts.
          targets: one for each input.
          batch_size: number of pairs computed at once.
          max_input_tokens: longest input or target allowed, in tokens with EOS.
          truncate: cut longer ones, with a warning, instead of refusing them.
        """
        if len(inputs) != len(targets):
            raise ValueError(
                "inputs and targets must have the same length, got "
                f"{len(inputs)} and {len(targets)}."
            )
        _check_texts("targets", targets)
        scores = self.score_candidates(
            inputs,
            [[target] for target in targets],
            batch_size=batch_size,
            max_input_tokens=max_input_tokens,
            truncate=truncate,
        )
        return np.array([row[0] for row in scores], np.float32)

    def score_candidates(
        self,
        inputs: Sequence[str],
        candidates: Sequence[Sequence[str]],
        *,
        batch_size: int = 32,
        max_input_tokens: int = 2048,
        truncate: bool = False,
    ) -> list[Float[np.ndarray, " k"]]:
        """Return the log-probabilities, in nats, of several targets for each input.

        An input is encoded once for all of its targets.

        Args:
          inputs: texts.
          candidates: targets of each input; their numbers may differ.
          batch_size: number of pairs computed at once; those of an input are always together.
          max_input_tokens: as in `score`.
          truncate: as in `score`.
        """
        scores = self.score_tokens(
            inputs,
            candidates,
            batch_size=batch_size,
            max_input_tokens=max_input_tokens,
            truncate=truncate,
        )
        return [np.array([one.sum() for one in row], np.float32) for row in scores]

    def score_tokens(
        self,
        inputs: Sequence[str],
        candidates: Sequence[Sequence[str]],
        *,
        batch_size: int = 32,
        max_input_tokens: int = 2048,
        truncate: bool = False,
    ) -> list[list[Float[np.ndarray, " T"]]]:
        """Return the log-probability, in nats, of every token of several targets for each input.

        Args:
          inputs: texts.
          candidates: as in `score_candidates`.
          batch_size: as in `score_candidates`.
          max_input_tokens: as in `score`.
          truncate: as in `score`.
        Returns:
          An array for each target, EOS included.
        """
        check_at_least(1, batch_size=batch_size)
        encoded = self.tokenize(
            inputs, max_tokens=max_input_tokens, truncate=truncate, name="inputs"
        )
        if len(inputs) != len(candidates):
            raise ValueError(
                "inputs and candidates must have the same length, got "
                f"{len(inputs)} and {len(candidates)}."
            )
        for i, row in enumerate(candidates):
            _check_texts(f"candidates[{i}]", row)
        targets = iter(
            self.tokenize(
                [text for row in candidates for text in row],
                max_tokens=max_input_tokens,
                truncate=truncate,
                name="targets",
            )
        )
        return self.scorer.score_candidates(
            encoded, [[next(targets) for _ in row] for row in candidates], batch_size=batch_size
        )

    def rank(
        self,
        inputs: Sequence[str],
        candidates: Sequence[str] | Sequence[Sequence[str]],
        *,
        batch_size: int = 32,
        max_input_tokens: int = 2048,
        truncate: bool = False,
    ) -> list[list[RankedCandidate]]:
        """Rank candidates by their log-probability, most likely first.

        T5 and T0 are evaluated on choices like this.  (arXiv:2110.08207, section 5)

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
        shared = [one for one in candidates if isinstance(one, str)]
        rows = [list(one) for one in candidates if not isinstance(one, str)]
        if shared and rows:
            raise TypeError("candidates must be texts, or lists of texts, got some of both.")
        rows = rows or [shared] * len(inputs)
        scores = self.score_candidates(
            inputs,
            rows,
            batch_size=batch_size,
            max_input_tokens=max_input_tokens,
            truncate=truncate,
        )
        return [
            [
                RankedCandidate(texts[k], k, float(log_probs[k]))
                for k in np.argsort(-log_probs, kind="stable").tolist()
            ]
            for texts, log_probs in zip(rows, scores, strict=True)
        ]

    def tokenize(
        self, texts: Sequence[str], *, max_tokens: int, truncate: bool, name: str = "texts"
    ) -> list[list[int]]:
        """Return the ids of every text, with EOS.

        Args:
          texts: texts to encode.
          max_tokens: longest text allowed, in tokens with EOS.
          truncate: cut longer texts, with a warning, instead of refusing them.
          name: name of the texts in messages.
        Raises:
          TypeError: not a list of strings.
          ValueError: a text that is too long, or no tokenizer.
        """
        tokenizer = self._require_tokenizer()
        _check_texts(name, texts)
        inputs = [encode_with_eos(tokenizer, text) for text in texts]
        return limit_lengths(
            inputs, max_tokens, truncate=truncate, eos_id=tokenizer.eos_id, name=name
        )

    def save(self, folder: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Write config, parameters and tokenizer to a folder that `t5jax.load` reads.

        Args:
          folder: written whole or not at all.
          overwrite: replace an existing folder, which otherwise is an error.
        Raises:
          ValueError: weights that were rounded when they were loaded.
        """
        check_saveable(self.params)
        save_pretrained(folder, self.config, self.params, self.tokenizer, overwrite=overwrite)

    def _require_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise ValueError(
                "this model was loaded without a tokenizer; pass `tokenizer=` to t5jax.load, put "
                "spiece.model into its folder, or call generate_ids with ids of your own."
            )
        return self._tokenizer


def _check_texts(name: str, texts: Sequence[str]) -> None:
    is_list = isinstance(texts, Sequence) and not isinstance(texts, str)
    if not is_list or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{name} must be a list of strings, got {texts!r:.60}.")
