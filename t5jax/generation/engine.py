"""Generation from ids to ids: prefill, then decode, for each batch of inputs."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, SupportsInt

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from t5jax.decoding import (
    Beams,
    Finish,
    LogitsProcessors,
    LoopState,
    StoppingRule,
    beam_search,
    decode_loop,
    gnmt_penalty,
    greedy,
    init_loop,
    min_p,
    power_penalty,
    sampler,
    top_k,
    top_p,
    typical,
)
from t5jax.generation.batching import (
    InputBatch,
    LoopRows,
    batches_by_length,
    length_bucket,
    loop_rows,
)
from t5jax.generation.config import EarlyStopping, GenerationConfig
from t5jax.generation.constraints import compile_constraints, encode_prefixes
from t5jax.models import (
    ComputePolicy,
    DecoderCache,
    DecodeStep,
    IncrementalDecoder,
    Params,
    T5Config,
    bind,
)
from t5jax.tokenizers import Tokenizer

FinishReason = Literal["eos", "length", "stop", "dead_end"]

_FINISH_REASONS: dict[int, FinishReason] = {
    Finish.EOS: "eos",
    Finish.LIMIT: "length",
    Finish.STOP: "stop",
    Finish.DEAD_END: "dead_end",
}


class GeneratedSequence(NamedTuple):
    """Generated sequence of ids.

    Attributes:
      ids: ids including the prefix, and EOS if it was generated.
      prefix_len: number of ids of the prefix.
      finish_reason: as in `GenerationOutput`.
      score: log-probability divided by the length penalty; NaN without beam search.
      log_prob: log-probability of the ids after the prefix, in nats, after logits processors; NaN
        without beam search.

    Examples:
      >>> sequence = t5jax.generation.GeneratedSequence(
      ...     [7, 5, 6, 1], prefix_len=1, finish_reason="eos", score=-0.4, log_prob=-1.2)
      >>> sequence.ids[sequence.prefix_len :]
      [5, 6, 1]
    """

    ids: list[int]
    prefix_len: int
    finish_reason: FinishReason
    score: float
    log_prob: float


class StreamedSequence(NamedTuple):
    """Sequence in progress, yielded by `Engine.stream`.

    Attributes:
      row: position of the input.
      ids: all ids so far, including the prefix.
      prefix_len: number of ids of the prefix.
      finish_reason: as in `GenerationOutput`, None while the sequence is growing.

    Examples:
      >>> sequence = t5jax.generation.StreamedSequence(
      ...     row=0, ids=[7, 5], prefix_len=1, finish_reason=None)
      >>> sequence.ids[sequence.prefix_len :]
      [5]
    """

    row: int
    ids: list[int]
    prefix_len: int
    finish_reason: FinishReason | None


class Engine:
    """Generation engine, from ids to ids.

    Attributes:
      model_config: architecture of the model.
      params: parameters of the model.
      tokenizer: tokenizer of the model; required for constraints given as text.
      policy: compute policy.

    Examples:
      >>> engine = t5jax.generation.Engine(t5.config, t5.params, None, policy=t5.policy)
      >>> automaton = t5jax.decoding.trie([[5, 6]], eos_id=1, vocab_size=97)
      >>> [[sequence]] = engine.generate([[8, 9, 1]], t5jax.GenerationConfig(automaton=automaton))
      >>> sequence.ids
      [5, 6, 1]
    """

    def __init__(
        self,
        model_config: T5Config,
        params: Params,
        tokenizer: Tokenizer | None,
        *,
        policy: ComputePolicy,
    ):
        self.model_config = model_config
        self.params = params
        self.tokenizer = tokenizer
        self.policy = policy

    @functools.cached_property
    def decoder(self) -> IncrementalDecoder:
        """Decoder weights in the decoding layout, copied at first use."""
        return prepare_decoder(self.params, config=self.model_config, policy=self.policy)

    def generate(
        self,
        inputs: Sequence[Sequence[int]],
        config: GenerationConfig,
        *,
        num_return_sequences: int = 1,
    ) -> list[list[GeneratedSequence]]:
        """Generate sequences for every input.

        Args:
          inputs: ids of every input, with EOS.
          config: generation options.
          num_return_sequences: number of samples per input, or maximum number of beams to return.
        Returns:
          The sequences of each input, best first, in the order of the inputs.
        Raises:
          ValueError: the constraints do not fit the model, no output satisfies them, or logits are
            not finite.
        """
        sequences: list[list[GeneratedSequence]] = [[] for _ in inputs]
        for batch in self.generate_batches(
            inputs, config, num_return_sequences=num_return_sequences
        ):
            for index, generated in batch.items():
                sequences[index] = generated
        return sequences

    def generate_batches(
        self,
        inputs: Sequence[Sequence[int]],
        config: GenerationConfig,
        *,
        num_return_sequences: int = 1,
        row_ids: Sequence[int] | None = None,
    ) -> Iterator[dict[int, list[GeneratedSequence]]]:
        """Generate sequences batch by batch, shortest inputs first.

        Args:
          inputs: ids of every input, with EOS.
          config: generation options.
          num_return_sequences: as in `generate`.
          row_ids: number of every input, which with the seed determines its samples; defaults to
            its position.
        Yields:
          For each batch, position of an input -> its sequences, best first.
        Raises:
          ValueError: as in `generate`.
        """
        prefixes, processors = self._compile(config, len(inputs))
        row_ids = range(len(inputs)) if row_ids is None else row_ids
        pad_id = self.model_config.pad_id
        for batch in self._batches(inputs, config):
            if config.num_beams > 1:
                rows = loop_rows(batch, prefixes, row_ids, pad_id=pad_id, num_samples=1)
                step, cache = self._prefill(batch, rows, config, num_beams=config.num_beams)
                beams = self._search_beams(step, cache, rows, config, processors)
                sequences = _beam_sequences(beams, rows, num_return_sequences)
            else:
                rows = loop_rows(
                    batch, prefixes, row_ids, pad_id=pad_id, num_samples=num_return_sequences
                )
                step, cache = self._prefill(batch, rows, config, num_beams=num_return_sequences)
                state = self._start_loop(cache, rows, config)
                state = self._advance_loop(
                    step, state, rows, config, processors, max_steps=state.sequences.shape[1] - 1
                )
                sequences = _loop_sequences(state, rows, num_return_sequences)
            # Padding rows come last.
            yield dict(zip(batch.indices, sequences, strict=False))

    def stream(
        self, inputs: Sequence[Sequence[int]], config: GenerationConfig
    ) -> Iterator[StreamedSequence]:
        """Generate a sequence for every input, and yield each after every token.

        Args:
          inputs: ids of every input, with EOS.
          config: generation options, without beam search.
        Returns:
          An iterator over the sequences, batch by batch, interleaved within a batch.
        Raises:
          ValueError: as in `generate`; constraints are checked before the iteration.
        """
        return self._stream(inputs, config, *self._compile(config, len(inputs)))

    def _stream(
        self,
        inputs: Sequence[Sequence[int]],
        config: GenerationConfig,
        prefixes: list[list[int]],
        processors: LogitsProcessors,
    ) -> Iterator[StreamedSequence]:
        for batch in self._batches(inputs, config):
            rows = loop_rows(
                batch, prefixes, range(len(inputs)), pad_id=self.model_config.pad_id, num_samples=1
            )
            step, cache = self._prefill(batch, rows, config, num_beams=1)
            state = self._start_loop(cache, rows, config)
            growing = dict(enumerate(batch.indices))
            max_steps = 1 + min(len(prefixes[index]) for index in batch.indices)
            while growing:
                state = self._advance_loop(
                    step, state, rows, config, processors, max_steps=max_steps
                )
                max_steps = 1
                tokens, lengths = np.asarray(state.sequences), np.asarray(state.lengths)
                finish = np.asarray(state.finish)
                for row, index in list(growing.items()):
                    reason = _FINISH_REASONS.get(int(finish[row]))
                    ids = [] if reason == "dead_end" else tokens[row, 1 : lengths[row] + 1].tolist()
                    if reason is not None:
                        del growing[row]
                    yield StreamedSequence(index, ids, len(prefixes[index]), reason)

    def _compile(
        self, config: GenerationConfig, num_inputs: int
    ) -> tuple[list[list[int]], LogitsProcessors]:
        prefixes = encode_prefixes(config, self.model_config, self.tokenizer, num_inputs=num_inputs)
        return prefixes, compile_constraints(config, self.model_config, self.tokenizer)

    def _batches(
        self, inputs: Sequence[Sequence[int]], config: GenerationConfig
    ) -> Iterator[InputBatch]:
        return batches_by_length(
            inputs, batch_size=config.batch_size, pad_id=self.model_config.pad_id
        )

    def _prefill(
        self, batch: InputBatch, rows: LoopRows, config: GenerationConfig, *, num_beams: int
    ) -> tuple[DecodeStep, DecoderCache]:
        return prefill(
            self.params,
            self.decoder,
            batch.tokens,
            batch.mask,
            config=self.model_config,
            policy=self.policy,
            max_len=rows.prefix.shape[1] + length_bucket(config.max_new_tokens),
            num_beams=num_beams,
        )

    def _start_loop(
        self, cache: DecoderCache, rows: LoopRows, config: GenerationConfig
    ) -> LoopState:
        return start_loop(
            cache,
            rows.row_ids,
            rows.prefix,
            config=self.model_config,
            max_len=length_bucket(config.max_new_tokens),
        )

    def _advance_loop(
        self,
        step: DecodeStep,
        state: LoopState,
        rows: LoopRows,
        config: GenerationConfig,
        processors: LogitsProcessors,
        *,
        max_steps: int,
    ) -> LoopState:
        state = advance_loop(
            step,
            state,
            rows.row_ids,
            rows.sample_ids,
            rows.prefix_lens,
            processors,
            config.sampling_params,
            limit=np.int32(config.max_new_tokens),
            max_steps=np.int32(max_steps),
            # A bucket, so that changing top_k rarely recompiles.
            max_k=length_bucket(config.top_k) if config.top_k else 0,
        )
        check_finite(state.failed)
        return state

    def _search_beams(
        self,
        step: DecodeStep,
        cache: DecoderCache,
        rows: LoopRows,
        config: GenerationConfig,
        processors: LogitsProcessors,
    ) -> Beams:
        beams = search_beams(
            step,
            cache,
            rows.row_ids,
            rows.prefix,
            rows.prefix_lens,
            processors,
            limit=np.int32(config.max_new_tokens),
            length_penalty=np.float32(config.length_penalty),
            max_len=length_bucket(config.max_new_tokens),
            num_beams=config.num_beams,
            penalty_form=config.penalty_form,
            early_stopping=config.early_stopping,
        )
        check_finite(beams.failed)
        return beams


def _loop_sequences(
    state: LoopState, rows: LoopRows, num_samples: int
) -> list[list[GeneratedSequence]]:
    """Return the samples of each input."""
    tokens, lengths = np.asarray(state.sequences), np.asarray(state.lengths)
    reasons: list[FinishReason] = [
        _FINISH_REASONS[code] for code in np.asarray(state.finish).tolist()
    ]
    nan = float("nan")
    sequences = [
        _dead_end(prefix_len)
        if reason == "dead_end"
        else GeneratedSequence(ids[1 : length + 1].tolist(), prefix_len, reason, nan, nan)
        for ids, length, prefix_len, reason in zip(
            tokens, lengths, rows.prefix_lens.tolist(), reasons, strict=True
        )
    ]
    return [sequences[i : i + num_samples] for i in range(0, len(sequences), num_samples)]


def _beam_sequences(
    beams: Beams, rows: LoopRows, num_return_sequences: int
) -> list[list[GeneratedSequence]]:
    """Return the best sequences of each input, best first."""
    tokens, lengths = np.asarray(beams.tokens), np.asarray(beams.lengths)
    finish = np.asarray(beams.finish)
    scores, log_probs = np.asarray(beams.scores), np.asarray(beams.log_probs)
    sequences = []
    for row, prefix_len in enumerate(rows.prefix_lens.tolist()):
        best = [
            GeneratedSequence(
                tokens[row, k, 1 : lengths[row, k] + 1].tolist(),
                prefix_len,
                _FINISH_REASONS[int(finish[row, k])],
                float(scores[row, k]),
                float(log_probs[row, k]),
            )
            for k in np.flatnonzero(scores[row] > -np.inf)[:num_return_sequences]
        ]
        sequences.append(best or [_dead_end(prefix_len)])
    return sequences


def _dead_end(prefix_len: int) -> GeneratedSequence:
    return GeneratedSequence([], prefix_len, "dead_end", -np.inf, -np.inf)


NOT_FINITE = (
    "the weights are corrupt or overflow: load them with dtype='float32' or dtype='bfloat16'."
)


def check_finite(failed: SupportsInt) -> None:
    """Check that all logits of a loop were finite.

    Args:
      failed: first position with non-finite logits, or -1.
    Raises:
      ValueError: `failed` is not -1.
    """
    if int(failed) >= 0:
        raise ValueError(
            f"logits must be finite, got NaN or infinity at step {int(failed)} of the decoder; "
            f"{NOT_FINITE}"
        )


@functools.partial(jax.jit, static_argnames=("config", "policy"))
def prepare_decoder(
    params: Params, *, config: T5Config, policy: ComputePolicy
) -> IncrementalDecoder:
    """Copy the decoder weights into the decoding layout.

    Args:
      params: parameters of the model.
      config: architecture of the model.
      policy: compute policy.
    Returns:
      The incremental decoder, to be reused between calls.
    """
    return bind(config, params, policy=policy).incremental_decoder()


@functools.partial(jax.jit, static_argnames=("config", "policy", "max_len", "num_beams"))
def prefill(
    params: Params,
    decoder: IncrementalDecoder,
    encoder_tokens: Int[Array, "B S"],
    encoder_mask: Bool[Array, "B S"],
    *,
    config: T5Config,
    policy: ComputePolicy,
    max_len: int,
    num_beams: int,
) -> tuple[DecodeStep, DecoderCache]:
    """Encode the inputs and precompute cross-attention keys and values.

    Args:
      params: parameters of the model.
      decoder: from `prepare_decoder`.
      encoder_tokens: [B, S] input ids.
      encoder_mask: [B, S] True on ids that are not padding.
      config: architecture of the model.
      policy: compute policy.
      max_len: cache capacity, in tokens.
      num_beams: number of loop rows per input.
    Returns:
      The step of a decoding loop and its empty cache.
    """
    model = bind(config, params, policy=policy)
    states = model.encode(encoder_tokens, encoder_mask=encoder_mask)
    return decoder.start(states, encoder_mask=encoder_mask, max_len=max_len, num_beams=num_beams)


@functools.partial(jax.jit, static_argnames=("config", "max_len"), donate_argnames=("cache",))
def start_loop(
    cache: DecoderCache,
    row_ids: Int[Array, " B"],
    prefix: Int[Array, "B P"],
    *,
    config: T5Config,
    max_len: int,
) -> LoopState:
    """Return the initial state of a decoding loop.

    Args:
      cache: from `prefill`.
      row_ids: [B] number of every row's input; negative in padding rows.
      prefix: [B, P] ids that every row starts with, padded on the right.
      config: architecture of the model.
      max_len: capacity after the prefix, in tokens.
    Returns:
      The state at position 0.
    """
    return init_loop(
        cache,
        start_tokens=jnp.full(row_ids.shape, config.decoder_start_id, jnp.int32),
        prefix=prefix,
        done=row_ids < 0,
        max_len=max_len,
        pad_id=config.pad_id,
    )


@functools.partial(jax.jit, static_argnames=("max_k",), donate_argnames=("state",))
def advance_loop(
    step: DecodeStep,
    state: LoopState,
    row_ids: Int[Array, " B"],
    sample_ids: Int[Array, " B"],
    prefix_lens: Int[Array, " B"],
    processors: LogitsProcessors,
    sampling_params: Mapping[str, Array],
    *,
    limit: Int[Array, ""],
    max_steps: Int[Array, ""],
    max_k: int = 0,
) -> LoopState:
    """Decode greedily or by sampling until all rows have ended, at most `max_steps` tokens.

    Args:
      step: from `prefill`.
      state: from `start_loop` or `advance_loop`.
      row_ids: [B] number of every row's input, which with the seed determines its samples.
      sample_ids: [B] number of every row among the samples of its input.
      prefix_lens: [B] number of tokens in every row's prefix.
      processors: logits processors.
      sampling_params: `GenerationConfig.sampling_params`; empty for greedy decoding.
      limit: maximum number of tokens after the prefix.
      max_steps: maximum number of tokens in this call.
      max_k: static upper bound of `sampling_params["top_k"]`.
    Returns:
      The state after the last token.
    """
    config = step.decoder.config
    chooser = greedy
    if sampling_params:
        seed = jax.random.key(sampling_params["seed"])
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(seed, row_ids)
        keys = jax.vmap(jax.random.fold_in)(keys, sample_ids)
        chooser = sampler(
            keys,
            temperature=sampling_params["temperature"],
            truncation=functools.partial(_truncate, params=sampling_params, max_k=max_k),
        )
    return decode_loop(
        step,
        state,
        sample_fn=chooser,
        processors=processors,
        prefix_lens=prefix_lens,
        max_new_tokens=limit,
        max_steps=max_steps,
        eos_id=config.eos_id,
        pad_id=config.pad_id,
    )


def _truncate(logits: Float[Array, "B V"], *, params: Mapping[str, Array], max_k: int) -> Array:
    # Same order as in Hugging Face transformers.
    if "top_k" in params:
        logits = top_k(logits, params["top_k"], max_k=max_k)
    if "top_p" in params:
        logits = top_p(logits, params["top_p"])
    if "min_p" in params:
        logits = min_p(logits, params["min_p"])
    if "typical_p" in params:
        logits = typical(logits, params["typical_p"])
    return logits


@functools.partial(
    jax.jit,
    static_argnames=("max_len", "num_beams", "penalty_form", "early_stopping"),
)
def search_beams(
    step: DecodeStep,
    cache: DecoderCache,
    row_ids: Int[Array, " B"],
    prefix: Int[Array, "B P"],
    prefix_lens: Int[Array, " B"],
    processors: LogitsProcessors,
    *,
    limit: Int[Array, ""],
    length_penalty: Float[Array, ""],
    max_len: int,
    num_beams: int,
    penalty_form: str,
    early_stopping: EarlyStopping,
) -> Beams:
    """Search for the `num_beams` best continuations of each input.

    Args:
      step: from `prefill`.
      cache: from `prefill`.
      row_ids: [B] number of every input; negative in padding rows.
      prefix: [B, P] ids that every sequence starts with, padded on the right.
      prefix_lens: [B] number of tokens in every input's prefix.
      processors: logits processors.
      limit: maximum number of tokens after the prefix.
      length_penalty: exponent of the length penalty.
      max_len: capacity after the prefix, in tokens.
      num_beams: beam width.
      penalty_form: as in `GenerationConfig`.
      early_stopping: as in `GenerationConfig`.
    Returns:
      The best finished sequences of each input.
    """
    config = step.decoder.config
    penalties = {"power": power_penalty, "gnmt": gnmt_penalty}
    stopping_rules: dict[EarlyStopping, StoppingRule] = {
        True: "full",
        False: "heuristic",
        "never": "never",
    }
    return beam_search(
        step,
        cache,
        num_beams=num_beams,
        penalty=penalties[penalty_form](length_penalty),
        early_stopping=stopping_rules[early_stopping],
        processors=processors,
        start_tokens=jnp.full(row_ids.shape, config.decoder_start_id, jnp.int32),
        prefix=prefix,
        prefix_lens=prefix_lens,
        done=row_ids < 0,
        max_new_tokens=limit,
        max_len=max_len,
        eos_id=config.eos_id,
        pad_id=config.pad_id,
    )
