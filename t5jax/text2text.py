"""T5 with its tokenizer, from text to text."""

import functools
import logging
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
    merge_config,
    override_config,
    to_generation_file,
    unpad_batch,
)
from t5jax.models import (
    T5,
    ComputePolicy,
    LogitError,
    Params,
    SentenceEncoder,
    T5Config,
    bind,
    check_saveable,
)
from t5jax.ops import is_kernel
from t5jax.pretrained import save_pretrained
from t5jax.tokenizers import Tokenizer, count_unknown, encode_with_eos

_log = logging.getLogger("t5jax")

# Default limit of inputs that no model sets, EOS included.
_MAX_TOKENS = 2048


class Text2Text:
    """T5 with its tokenizer, returned by `t5jax.load`.

    Texts are tokenized, grouped by length and padded to a few fixed lengths; results are in the
    order of the texts.  Each new combination of lengths compiles once.

    Attributes:
      generation_config: default generation options: those of the model's generation_config.json.
      logit_error: change of the logits caused by int8 weights; None for float weights.

    Examples:
      >>> t5.generate(["the baker"], allowed_texts=["Lisbon"])
      ['Lisbon']
      >>> t5.embed(["the baker", "my sister"]).shape
      (2, 16)
    """

    def __init__(
        self,
        config: T5Config,
        params: Params,
        tokenizer: Tokenizer | None,
        *,
        policy: ComputePolicy = ComputePolicy(),
        generation_config: GenerationConfig | None = None,
        sentence_encoder: SentenceEncoder | None = None,
        logit_error: LogitError | None = None,
    ):
        """Create a model from config, parameters and tokenizer.

        Args:
          config: architecture of the model.
          params: parameters, as returned by `t5jax.models.init_params`.
          tokenizer: tokenizer of the model; if None, only methods that take ids work.
          policy: compute policy; defaults to float32.
          generation_config: default generation options; defaults to `GenerationConfig()`.
          sentence_encoder: layers and settings of a sentence encoder, used by `embed`; defaults to
            the normalized mean of the states, after the projection if there is one.
          logit_error: change of the logits caused by int8 weights.
        Raises:
          ValueError: the parameters do not match the config, or the tokenizer has more ids than
            the vocabulary or another EOS id.
        """
        self._model = bind(config, params, policy=policy)
        if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"tokenizer must have at most vocab_size = {config.vocab_size} ids, got "
                f"{tokenizer.vocab_size}; use the model's tokenizer."
            )
        if tokenizer is not None and tokenizer.eos_id != config.eos_id:
            raise ValueError(
                f"tokenizer must end sequences with eos_id = {config.eos_id}, got "
                f"{tokenizer.eos_id}; use the model's tokenizer."
            )
        self._config = config
        self._params = params
        self._tokenizer = tokenizer
        self._reported_unknown = False
        self.generation_config = generation_config or GenerationConfig()
        self._sentence_encoder = sentence_encoder
        self.logit_error = logit_error

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.params, is_leaf=is_kernel)
        count = sum(leaf.size for leaf in leaves)
        error = f", {self.logit_error}" if self.logit_error else ""
        return f"Text2Text({count / 1e6:.1f} M parameters, {self.config}, {self.policy}{error})"

    @property
    def config(self) -> T5Config:
        """Architecture of the model."""
        return self._config

    @property
    def policy(self) -> ComputePolicy:
        """Compute policy.

        To change it, create `Text2Text(t5.config, t5.params, t5.tokenizer, policy=...)`; the two
        models share their parameters.  A sentence encoder also needs
        `sentence_encoder=t5.sentence_encoder`.
        """
        return self._model.policy

    @property
    def params(self) -> Params:
        """Parameters, a nested dict of arrays.

        Do not modify it: generation keeps a copy of the decoder weights, so only some methods would
        see the change.  Create another `Text2Text` for other weights.
        """
        return self._params

    @property
    def model(self) -> T5:
        """The `flax.nnx` module, for direct access to logits and encoder states."""
        return self._model

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Tokenizer of the model; if None, only methods that take ids work."""
        return self._tokenizer

    @property
    def sentence_encoder(self) -> SentenceEncoder | None:
        """Layers and settings read from a folder of sentence-transformers, or None."""
        return self._sentence_encoder

    @functools.cached_property
    def engine(self) -> Engine:
        """Generation engine, from ids to ids."""
        return Engine(self.config, self.params, self.tokenizer, policy=self.policy)

    @functools.cached_property
    def scorer(self) -> Scorer:
        """Scorer of ids: encoder states, embeddings and log-probabilities."""
        return Scorer(
            self.config,
            self.params,
            policy=self.policy,
            sentence_encoder=self.sentence_encoder,
        )

    def generate(
        self,
        texts: Sequence[str],
        config: GenerationConfig | None = None,
        **overrides: Unpack[GenerationOverrides],
    ) -> list[str]:
        """Generate an output for every text.

        Args:
          texts: inputs, including the task prefix the model was trained with.
          config: generation options; defaults to `generation_config`.
          **overrides: fields of `t5jax.GenerationConfig`, such as `max_new_tokens` (default 64),
            `num_beams` (1), `temperature` (0.0, greedy) or `stop_strings`; they override `config`.
        Returns:
          The outputs, in the order of the texts.
        Raises:
          TypeError: an option is unknown, or `texts` is not a list of strings.
          ValueError: an option is invalid, ineffective or contradicts another, a text is too long,
            the constraints rule out every token, or the model has no tokenizer.

        Examples:
          >>> t5.generate(["the baker", "my sister"], allowed_texts=["Lisbon"])
          ['Lisbon', 'Lisbon']
        """
        config = self._merge(config, overrides)
        tokenizer = self._require_tokenizer()
        inputs = self.tokenize(texts, max_tokens=config.max_input_tokens, truncate=config.truncate)
        sequences = [row[0] for row in self.engine.generate(inputs, config)]
        dead = [i for i, one in enumerate(sequences) if one.finish_reason == "dead_end"]
        if dead:
            raise ValueError(
                f"constraints must allow an output, but left nothing for "
                f"{', '.join(f'texts[{i}]' for i in dead[:5])}; loosen them, or call "
                "generate_outputs, which returns these outputs with finish_reason 'dead_end'."
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
          num_return_sequences: number of samples per text, or of beams to return; beam search may
            find fewer.
          num_alternatives: number of most likely tokens to return for each position.
          cross_attention: whether to return the attention of each token to each input token.
          **overrides: as in `generate`.
        Returns:
          The outputs of each text, best first for a beam search.
        Raises:
          TypeError: as in `generate`.
          ValueError: as in `generate`, except that an output whose constraints rule out every token
            has `finish_reason` "dead_end"; or `num_return_sequences` or `num_alternatives` is out
            of range.

        Examples:
          >>> [[output]] = t5.generate_outputs(["the baker"], allowed_texts=["Lisbon"])
          >>> output.text, output.finish_reason, len(output.token_log_probs) == len(output.ids)
          ('Lisbon', 'eos', True)
        """
        config = self._merge(config, overrides)
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
        """Generate an output for every text, and yield its pieces as soon as they are final.

        Pieces of different texts of a batch are interleaved; the pieces of a text, joined, equal
        the output of `generate`.

        Args:
          texts: as in `generate`.
          config: as in `generate`, with num_beams = 1: the best beam is known only at the end.
          **overrides: as in `generate`.
        Returns:
          An iterator over the pieces.
        Raises:
          TypeError: as in `generate`.
          ValueError: as in `generate`, before the iteration starts, except that an output whose
            constraints rule out every token has `finish_reason` "dead_end".

        Examples:
          >>> "".join(event.text for event in t5.stream(["the baker"], allowed_texts=["Lisbon"]))
          'Lisbon'
        """
        config = self._merge(config, overrides)
        if config.num_beams > 1:
            raise ValueError(
                f"num_beams must be 1 to stream, got {config.num_beams}; the best beam is known "
                "only at the end."
            )
        inputs = self.tokenize(texts, max_tokens=config.max_input_tokens, truncate=config.truncate)
        # A generator function would defer these checks to the first piece.
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
          encoder_tokens: [B, S] input ids, including EOS.
          config: as in `generate`.
          encoder_mask: [B, S] True on ids that are not padding.
          **overrides: as in `generate`.
        Returns:
          [B, T] int32, padded on the right; T is max_new_tokens plus the length of the longest
          prefix.  A row is all padding if the constraints ruled out every token.
        Raises:
          TypeError: an option is unknown.
          ValueError: as in `generate`, or the arrays are not both [B, S], or an id is outside the
            vocabulary.

        Examples:
          >>> automaton = t5jax.decoding.trie([[5, 6]], eos_id=1, vocab_size=97)
          >>> tokens, mask = np.array([[8, 9, 1]], np.int32), np.ones((1, 3), bool)
          >>> t5.generate_ids(tokens, encoder_mask=mask, automaton=automaton, max_new_tokens=4)
          array([[5, 6, 1, 0]], dtype=int32)
        """
        config = self._merge(config, overrides)
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
        """Compile the programs of `generate` for the given sizes ahead of time.

        A program serves a bucket of lengths (see `t5jax.generation.batching`), a power of two of
        texts, and all values of the enabled options.

        Args:
          config: as in `generate`.
          input_lengths: numbers of tokens per input to compile for, EOS included.
          num_texts: numbers of texts per batch to compile for.
          **overrides: as in `generate`.
        Returns:
          Elapsed time in seconds.
        Raises:
          TypeError: an option is unknown.
          ValueError: an option is invalid, ineffective or contradicts another.

        Examples:
          >>> t5.warmup(input_lengths=[16], allowed_texts=["Lisbon"]) > 0
          True
        """
        config = self._merge(config, overrides)
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
        max_input_tokens: int | None = None,
        truncate: bool = False,
    ) -> tuple[Float[np.ndarray, "B S D"], Bool[np.ndarray, "B S"]]:
        """Return the final encoder states of every text, and their mask.

        Args:
          texts: inputs.
          batch_size: maximum number of texts computed at once.
          max_input_tokens: maximum length of a text in tokens, EOS included.  Defaults to the limit
            of a sentence encoder, to which it truncates texts with a warning, or to 2048.
          truncate: truncate longer texts with a warning instead of raising an error.
        Returns:
          [B, S, D] float32 states, 0 on padding, and a [B, S] mask that is True on tokens; S is the
          length of the longest text, EOS included.
        Raises:
          TypeError: `texts` is not a list of strings.
          ValueError: a text is too long, the model has no tokenizer, or a state is not finite.

        Examples:
          >>> states, mask = t5.encode(["the baker", ""])
          >>> states.shape[2], int(mask[1].sum())  # the empty text is EOS alone
          (16, 1)
        """
        check_at_least(1, batch_size=batch_size)
        inputs = self._tokenize_for_encoder(texts, "", max_input_tokens, truncate)
        return self.scorer.encode(inputs, batch_size=batch_size)

    def embed(
        self,
        texts: Sequence[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int = 32,
        max_input_tokens: int | None = None,
        truncate: bool = False,
    ) -> Float[np.ndarray, "B E"]:
        """Return one embedding per text.

        For a folder of sentence-transformers, it is the vector of its `encode`: prompt, length
        limit and layers are the folder's.  For other models, it is the normalized mean of the
        encoder states, after the projection if there is one.  (arXiv:2108.08877, section 3)

        Args:
          texts: inputs.
          prompt: prompt to prepend to every text; "" for none.  Takes precedence over
            `prompt_name`.
          prompt_name: name of one of the model's prompts; defaults to the model's default prompt.
          batch_size: as in `encode`.
          max_input_tokens: as in `encode`.
          truncate: as in `encode`.
        Returns:
          [B, E] float32, rows of norm 1 unless a sentence encoder does not normalize; E is its
          output width, the width of the projection, or d_model without one.
        Raises:
          TypeError: as in `encode`.
          ValueError: as in `encode`, or the model has no prompt named `prompt_name`.

        Examples:
          >>> embeddings = t5.embed(["the baker", "my sister"])
          >>> np.linalg.norm(embeddings, axis=1).round(3).tolist()
          [1.0, 1.0]
        """
        check_at_least(1, batch_size=batch_size)
        encoder = self.scorer.sentence_encoder
        prompt = encoder.prompt(prompt=prompt, prompt_name=prompt_name)
        inputs = self._tokenize_for_encoder(texts, prompt, max_input_tokens, truncate)
        # The length of the prompt alone, although its last piece may merge with the text.
        alone = self._require_tokenizer().encode(encoder.prepare(prompt)) if prompt else []
        limit = max_input_tokens or encoder.max_tokens
        length = len(alone) if limit is None else min(len(alone), limit - 1)
        return self.scorer.embed(inputs, batch_size=batch_size, prompt_length=length)

    def _tokenize_for_encoder(
        self, texts: Sequence[str], prompt: str, max_input_tokens: int | None, truncate: bool
    ) -> list[list[int]]:
        """Return the ids of texts, prepared as the sentence encoder requires."""
        _check_texts("texts", texts)
        encoder = self.scorer.sentence_encoder
        if max_input_tokens is None:
            max_input_tokens = encoder.max_tokens or _MAX_TOKENS
            truncate = truncate or encoder.max_tokens is not None
        prepared = [encoder.prepare(prompt + text) for text in texts]
        return self.tokenize(prepared, max_tokens=max_input_tokens, truncate=truncate)

    def score(
        self,
        inputs: Sequence[str],
        targets: Sequence[str],
        *,
        batch_size: int = 32,
        max_input_tokens: int = 2048,
        truncate: bool = False,
    ) -> Float[np.ndarray, " B"]:
        """Return the log-probability of each target given its input.

        Args:
          inputs: texts.
          targets: one text per input.
          batch_size: maximum number of pairs computed at once.
          max_input_tokens: maximum length of an input or target in tokens, EOS included.
          truncate: truncate longer texts with a warning instead of raising an error.
        Returns:
          [B] float32 in nats, the sum over the tokens of the target, EOS included.
        Raises:
          TypeError: `inputs` or `targets` is not a list of strings.
          ValueError: the lists differ in length, a text is too long, or the model has no tokenizer.

        Examples:
          >>> log_probs = t5.score(["the baker", "my sister"], ["counts", "paints"])
          >>> log_probs.shape, bool((log_probs < 0).all())
          ((2,), True)
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
        """Return the log-probabilities of several targets per input.

        Each input is encoded once for all of its targets.

        Args:
          inputs: texts.
          candidates: targets of each input; their number may differ between inputs.
          batch_size: maximum number of pairs computed at once; the pairs of an input are never
            split.
          max_input_tokens: as in `score`.
          truncate: as in `score`.
        Returns:
          For each input, a float32 array in nats with one entry per target.
        Raises:
          TypeError: as in `score`.
          ValueError: as in `score`.

        Examples:
          >>> scores = t5.score_candidates(["the baker", "my sister"], [["counts", "paints"], []])
          >>> [row.shape for row in scores]
          [(2,), (0,)]
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
        """Return the token log-probabilities of several targets per input.

        Args:
          inputs: texts.
          candidates: as in `score_candidates`.
          batch_size: as in `score_candidates`.
          max_input_tokens: as in `score`.
          truncate: as in `score`.
        Returns:
          For each target of each input, a [T] float32 array in nats, EOS included.
        Raises:
          TypeError: as in `score`.
          ValueError: as in `score`.

        Examples:
          >>> [[counts, empty]] = t5.score_tokens(["the baker"], [["counts", ""]])
          >>> len(counts) == len(t5.tokenizer.encode("counts")) + 1, len(empty)
          (True, 1)
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
        """Rank candidates by log-probability, most likely first.

        This is rank classification, as in the evaluation of T0.  (arXiv:2110.08207, section 5)

        Args:
          inputs: texts.
          candidates: one list of texts for all inputs, or one list per input.
          batch_size: as in `score_candidates`.
          max_input_tokens: as in `score`.
          truncate: as in `score`.
        Returns:
          The ranked candidates of each input.
        Raises:
          TypeError: `candidates` is neither a list of texts nor a list of lists; or as in `score`.
          ValueError: as in `score`.

        Examples:
          >>> [ranked] = t5.rank(["the baker"], ["counts", "paints"])
          >>> sorted(candidate.text for candidate in ranked)
          ['counts', 'paints']
        """
        if not isinstance(candidates, Sequence) or isinstance(candidates, str):
            raise TypeError(
                f"candidates must be a list of texts, or of such lists, got {candidates!r:.60}."
            )
        shared = [one for one in candidates if isinstance(one, str)]
        rows = [list(one) for one in candidates if not isinstance(one, str)]
        if shared and rows:
            raise TypeError("candidates must be texts, or lists of texts, got a mix of both.")
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
          max_tokens: maximum length in tokens, EOS included.
          truncate: truncate longer texts with a warning instead of raising an error.
          name: name of the texts in messages.
        Returns:
          The ids of each text.
        Raises:
          TypeError: `texts` is not a list of strings.
          ValueError: a text is too long, or the model has no tokenizer.

        Examples:
          >>> t5.tokenize([""], max_tokens=8, truncate=False)
          [[1]]
        """
        tokenizer = self._require_tokenizer()
        _check_texts(name, texts)
        inputs = [encode_with_eos(tokenizer, text) for text in texts]
        if not self._reported_unknown and any(tokenizer.unk_id in ids for ids in inputs):
            self._reported_unknown = True
            counts = count_unknown(texts, inputs, tokenizer=tokenizer)
            _log.warning(f"{name}: {counts}; the model does not see them")
        return limit_lengths(
            inputs, max_tokens, truncate=truncate, eos_id=tokenizer.eos_id, name=name
        )

    def save(self, folder: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Save the model to a folder that `t5jax.load` reads.

        Config, parameters, tokenizer and those default generation options that
        generation_config.json can express.

        Args:
          folder: output folder, written atomically.
          overwrite: replace an existing folder instead of raising an error.
        Raises:
          ValueError: the weights are int8.
          FileExistsError: `folder` exists, is not empty, and `overwrite` is False.

        Examples:
          >>> t5.save("my-model")
          >>> t5jax.load("my-model").config == t5.config
          True
        """
        check_saveable(self.params)
        save_pretrained(
            folder,
            self.config,
            self.params,
            self.tokenizer,
            generation=to_generation_file(self.generation_config),
            sentence_encoder=self.sentence_encoder,
            overwrite=overwrite,
        )

    def _merge(
        self, config: GenerationConfig | None, overrides: GenerationOverrides
    ) -> GenerationConfig:
        if config is None:
            return merge_config(self.generation_config, overrides)
        return override_config(config, overrides)

    def _require_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise ValueError(
                "this model was loaded without a tokenizer; pass `tokenizer=` to t5jax.load, put "
                "spiece.model into its folder, or call generate_ids with token ids."
            )
        return self._tokenizer


def _check_texts(name: str, texts: Sequence[str]) -> None:
    is_list = isinstance(texts, Sequence) and not isinstance(texts, str)
    if not is_list or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{name} must be a list of strings, got {texts!r:.60}.")
