"""Ids in, ids out: batches, prefixes, strategies and the reasons why an answer ended."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from t5jax.decoding import Finish, LogitsProcessors, LoopState
from t5jax.generation import batching, compiled
from t5jax.generation.config import GenerationConfig
from t5jax.models import DecoderCache, DecodeStep, IncrementalDecoder, Params, T5Config

FinishReason = Literal["eos", "length", "stop", "dead_end"]


_REASONS: dict[int, FinishReason] = {
    Finish.EOS: "eos",
    Finish.LIMIT: "length",
    Finish.STOP: "stop",
    Finish.DEAD_END: "dead_end",
}


class GeneratedSequence(NamedTuple):
    """One sequence that a model has written."""

    ids: list[int]
    """With prefix, and with EOS if it was written."""
    finish_reason: FinishReason
    score: float
    """Log-probability divided by the penalty of the length; NaN without beams."""
    log_prob: float
    """Of what stands behind the prefix, as the rules have left it; NaN without beams."""


class Engine:
    """Writes answers to inputs given as ids.

    Attributes:
      config: of the model.
      params: of the model.
    """

    def __init__(self, config: T5Config, params: Params):
        self.config = config
        self.params = params

    @functools.cached_property
    def stepper(self) -> IncrementalDecoder:
        """The decoder's weights, laid out for writing at the first call."""
        return compiled.prepare_decoder(self.params, config=self.config)

    def write(
        self,
        encoded: Sequence[Sequence[int]],
        prefixes: Sequence[Sequence[int]],
        options: GenerationConfig,
        rules: LogitsProcessors,
        *,
        count: int = 1,
        places: Sequence[int] | None = None,
    ) -> list[list[GeneratedSequence]]:
        """Answers to every input, in order; computed by length.

        Args:
          encoded: ids of every input.
          prefixes: what the answers to each begin with.
          options: strategy, limits and batch size.
          rules: of `options`.
          count: answers for each input: the best of a beam search, which may find fewer, or draws.
          places: numbers of the inputs, which their draws depend on; where they stand if None.
        """
        numbers = np.arange(len(encoded)) if places is None else np.asarray(places)

        def run(rows, tokens, mask):
            batch = _Batch.of(self.config, prefixes, options, rows, numbers, count)
            if options.num_beams > 1:
                return self._search(batch, tokens, mask, options, rules)
            step, state = self._start(batch, tokens, mask)
            width = batch.prefix.shape[1]
            state = self._advance(batch, step, state, options, rules, width + batch.max_len)
            check_finite(state.failed)
            return batch.written(state)

        found = batching.by_length(
            encoded, run, batch_size=options.batch_size, pad_id=self.config.pad_id
        )
        return [answers[:count] for answers in found]

    def stream(
        self,
        encoded: Sequence[Sequence[int]],
        prefixes: Sequence[Sequence[int]],
        options: GenerationConfig,
        rules: LogitsProcessors,
    ) -> Iterator[list[tuple[int, GeneratedSequence | None, list[int]]]]:
        """Answers as they grow: after every token, what each row of a batch has come to.

        Yields:
          For each row that has grown: the place of its input, the whole answer if it has ended, and
          all its ids so far.
        """
        for rows, tokens, mask in batching.batches_by_length(
            encoded, batch_size=options.batch_size, pad_id=self.config.pad_id
        ):
            numbers = np.arange(len(encoded))
            batch = _Batch.of(self.config, prefixes, options, rows, numbers, 1)
            step, state = self._start(batch, tokens, mask)
            open_rows = {i: int(row) for i, row in enumerate(rows) if row >= 0}
            most = 1 + min(int(batch.prefix_lens[i]) for i in open_rows)
            while open_rows:
                state = self._advance(batch, step, state, options, rules, most)
                most = 1
                check_finite(state.failed)
                answers = [found[0] for found in batch.written(state)]
                finish = np.asarray(state.finish)
                grown = []
                for i, row in list(open_rows.items()):
                    ended = finish[i] != Finish.GOING_ON
                    grown.append((row, answers[i] if ended else None, answers[i].ids))
                    if ended:
                        del open_rows[i]
                yield grown

    def _read(
        self, batch: "_Batch", tokens, mask, num_beams: int
    ) -> tuple[DecodeStep, DecoderCache]:
        return compiled.prefill(
            self.params,
            self.stepper,
            tokens,
            mask,
            config=self.config,
            max_len=batch.prefix.shape[1] + batch.max_len,
            num_beams=num_beams,
        )

    def _start(self, batch: "_Batch", tokens, mask) -> tuple[DecodeStep, LoopState]:
        step, cache = self._read(batch, tokens, mask, batch.per_input)
        state = compiled.start_loop(
            cache, batch.rows, batch.prefix, config=self.config, max_len=batch.max_len
        )
        return step, state

    def _advance(
        self,
        batch: "_Batch",
        step,
        state: LoopState,
        options: GenerationConfig,
        rules: LogitsProcessors,
        most: int,
    ) -> LoopState:
        draws = {
            name: np.asarray(value, np.int32 if name in ("top_k", "seed") else np.float32)
            for name, value in options.draws.items()
        }
        return compiled.advance_loop(
            step,
            state,
            batch.rows,
            batch.samples,
            batch.prefix_lens,
            rules,
            draws,
            limit=np.int32(options.max_new_tokens),
            most=np.int32(most),
            # Few programs for many values.
            most_k=batching.length_bucket(options.top_k) if options.top_k else 0,
        )

    def _search(
        self, batch: "_Batch", tokens, mask, options: GenerationConfig, rules: LogitsProcessors
    ) -> list[list[GeneratedSequence]]:
        step, cache = self._read(batch, tokens, mask, options.num_beams)
        found = compiled.search_beams(
            step,
            cache,
            batch.rows[:: batch.per_input],
            batch.prefix[:: batch.per_input],
            batch.prefix_lens[:: batch.per_input],
            rules,
            limit=np.int32(options.max_new_tokens),
            length_penalty=np.float32(options.length_penalty),
            max_len=batch.max_len,
            num_beams=options.num_beams,
            penalty_form=options.penalty_form,
            early_stopping=options.early_stopping,
        )
        check_finite(found.failed)
        arrays = [np.asarray(part) for part in found[:-1]]
        answers = []
        for tokens, scores, log_probs, finish, lengths in zip(*arrays, strict=True):
            kept = [k for k in range(options.num_beams) if scores[k] > -np.inf]
            row = [
                GeneratedSequence(
                    tokens[k, 1 : lengths[k] + 1].tolist(),
                    _REASONS[int(finish[k])],
                    float(scores[k]),
                    float(log_probs[k]),
                )
                for k in kept
            ]
            answers.append(row or [GeneratedSequence([], "dead_end", -np.inf, -np.inf)])
        return answers


class _Batch(NamedTuple):
    """Rows of a loop: some for each input, next to one another."""

    rows: np.ndarray
    samples: np.ndarray
    prefix: np.ndarray
    prefix_lens: np.ndarray
    max_len: int
    per_input: int

    @classmethod
    def of(
        cls,
        config: T5Config,
        prefixes: Sequence[Sequence[int]],
        options: GenerationConfig,
        rows: np.ndarray,
        numbers: np.ndarray,
        count: int,
    ) -> "_Batch":
        given = [prefixes[i] if i >= 0 else [] for i in rows]
        longest = max(map(len, given), default=0)
        width = 1 << (longest - 1).bit_length() if longest else 0
        prefix = np.full((len(rows), width), config.pad_id, np.int32)
        for row, ids in zip(prefix, given, strict=True):
            row[: len(ids)] = ids
        return cls(
            rows=np.repeat(np.where(rows < 0, -1, numbers[rows]), count).astype(np.int32),
            samples=np.tile(np.arange(count, dtype=np.int32), len(rows)),
            prefix=np.repeat(prefix, count, axis=0),
            prefix_lens=np.repeat(np.array([len(ids) for ids in given], np.int32), count),
            max_len=batching.length_bucket(options.max_new_tokens),
            per_input=count,
        )

    def written(self, state: LoopState) -> list[list[GeneratedSequence]]:
        tokens, lengths = np.asarray(state.sequences), np.asarray(state.lengths)
        finish = np.asarray(state.finish)
        nan = float("nan")
        found = [
            GeneratedSequence([], "dead_end", -np.inf, -np.inf)
            if end == Finish.DEAD_END
            else GeneratedSequence(
                row[1 : length + 1].tolist(), _REASONS.get(int(end), "length"), nan, nan
            )
            for row, length, end in zip(tokens, lengths, finish, strict=True)
        ]
        return [found[i : i + self.per_input] for i in range(0, len(found), self.per_input)]


def check_finite(failed: Any) -> None:
    """Raises if a loop has met logits that are not finite.

    Args:
      failed: the position where it did, or -1.
    Raises:
      ValueError: it did.
    """
    if int(failed) >= 0:
        raise ValueError(
            f"logits must be finite, got NaN or infinity at step {int(failed)} of the decoder; the "
            "weights are damaged, or too large for their type: load them with dtype='float32' or "
            "dtype='bfloat16'."
        )
