"""What `t5jax.load` returns: a model with its parameters and tokenizer, from text to text."""

import functools
import os
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Unpack

import numpy as np
from jaxtyping import Array, Bool, Int

from t5jax.decoding import LogitsProcessors
from t5jax.generation import (
    Engine,
    FinishReason,
    GeneratedSequence,
    GenerationConfig,
    GenerationOutput,
    GenerationOverrides,
    Scorer,
    StreamingDetokenizer,
    Writing,
    batch_bucket,
    check_positive,
    length_bucket,
    make_outputs,
    output_text,
    show_options,
)
from t5jax.models import check_saveable
from t5jax.pretrained import save_pretrained


class StreamEvent(NamedTuple):
    """A piece of an answer that `Text2Text.stream` gives out."""

    row: int
    """Place of the input in `texts`."""
    text: str
    """What the answer goes on with; may be empty in the last piece."""
    finish_reason: FinishReason | None
    """Why the answer has ended, in its last piece."""


class Text2Text(Scorer):
    """A T5 ready for use.

    Texts are tokenised, grouped by length, padded to a few fixed lengths and run through compiled
    programs; results come in the order of the texts.  The first call with a new combination of
    lengths compiles, later ones do not.

    Attributes:
      config: the architecture.
      params: nested dict of arrays.
      tokenizer: None if the model came without one; then only the methods on ids work.
      logit_error: what rounding the weights has changed, if they were rounded.
    """

    @functools.cached_property
    def _writer(self) -> Engine:
        return Engine(self.config, self.params)

    @show_options
    def generate(self, texts: Sequence[str], **options: Unpack[GenerationOverrides]) -> list[str]:
        """Writes an answer to every text.

        Args:
          texts: inputs, with whatever prefix the model was trained on.
          **options: any field of `t5jax.generation.GenerationConfig`, such as `max_new_tokens`
            (64), `num_beams` (1), `temperature` (0.0, the likeliest token each time) or `stop_strings`.
        Raises:
          TypeError: an option that there is not.
          ValueError: an option out of range or without effect, options that contradict one another,
            a text longer than allowed, or constraints that leave no token to write.
        """
        given = GenerationConfig.of(dict(options))
        tokenizer = self._need_tokenizer()
        found, prefixes = self._write("texts", texts, given, 1)
        dead = [i for i, (one,) in enumerate(found) if one.finish_reason == "dead_end"]
        if dead:
            raise ValueError(
                f"constraints must leave something to write, and left nothing for "
                f"{', '.join(f'texts[{i}]' for i in dead[:5])}; loosen them, or call `answers`, "
                "which tells of each."
            )
        return [
            output_text(one, len(prefix), given, tokenizer)
            for (one,), prefix in zip(found, prefixes, strict=True)
        ]

    @show_options
    def answers(
        self,
        texts: Sequence[str],
        *,
        num_return_sequences: int = 1,
        num_alternatives: int = 0,
        cross_attention: bool = False,
        **options: Unpack[GenerationOverrides],
    ) -> list[list[GenerationOutput]]:
        """Answers to every text, with their ids, log-probabilities and the reason why they ended.

        Args:
          texts: as in `generate`.
          num_return_sequences: the best so many answers that a beam search finds, best first, or so
            many draws.  Beams may find fewer if the model can write only fewer.
          num_alternatives: likeliest tokens to tell of in the place of each token.
          cross_attention: whether to tell how much each token reads from each of the input.
          **options: as in `generate`.
        Raises:
          TypeError: as from `generate`.
          ValueError: as from `generate`, but for constraints that leave no token to write: such an
            answer has `finish_reason` "dead_end"; or several answers where there is but one.
        """
        given = GenerationConfig.of(dict(options))
        check_positive(num_return_sequences=num_return_sequences)
        if not 0 <= num_alternatives <= self.config.vocab_size:
            raise ValueError(
                f"num_alternatives must be in [0, vocab_size = {self.config.vocab_size}], got "
                f"{num_alternatives}."
            )
        if num_return_sequences > given.num_beams and not given.temperature:
            raise ValueError(
                f"num_return_sequences must be at most num_beams = {given.num_beams}, got "
                f"{num_return_sequences}; use as many beams, or a temperature above 0 to draw."
            )
        inputs = self.encode_texts("texts", texts, given.max_input_tokens, given.truncate)
        found, prefixes = self.write_ids(inputs, given, num_return_sequences)
        return make_outputs(
            Writing(inputs, prefixes, found),
            given,
            params=self.params,
            config=self.config,
            tokenizer=self._need_tokenizer(),
            num_alternatives=num_alternatives,
            with_attention=cross_attention,
        )

    @show_options
    def stream(
        self, texts: Sequence[str], **options: Unpack[GenerationOverrides]
    ) -> Iterator[StreamEvent]:
        """Writes an answer to every text, and gives out its pieces as soon as they are certain.

        All texts of a batch grow side by side; the pieces of each, joined, are what `generate`
        returns.

        Args:
          texts: as in `generate`.
          **options: as in `generate`, but for beams, of which none is certain before the end.
        Raises:
          TypeError: as from `generate`.
          ValueError: as from `generate`; constraints that leave nothing to write end an answer with
            the reason "dead_end".
        """
        given = GenerationConfig.of(dict(options))
        if given.num_beams > 1:
            raise ValueError(
                f"num_beams must be 1 to stream, got {given.num_beams}; the best beam is not known "
                "before the end."
            )
        inputs = self.encode_texts("texts", texts, given.max_input_tokens, given.truncate)
        # Now, where the caller can still be told what is wrong.
        return self._stream(inputs, given, *self._rules(len(inputs), given))

    def _stream(
        self,
        inputs: list[list[int]],
        options: GenerationConfig,
        prefixes: list[list[int]],
        rules: LogitsProcessors,
    ) -> Iterator[StreamEvent]:
        tokenizer = self._need_tokenizer()
        growing = [
            StreamingDetokenizer(
                tokenizer, stop_strings=options.stop_strings, prefix_len=len(prefix)
            )
            for prefix in prefixes
        ]
        for grown in self._writer.stream(inputs, prefixes, options, rules):
            for row, whole, ids in grown:
                text = growing[row].grow(whole.ids if whole else ids, ended=whole is not None)
                if text or whole:
                    yield StreamEvent(row, text, whole.finish_reason if whole else None)

    @show_options
    def generate_ids(
        self,
        encoder_tokens: Int[Array, "B S"] | Int[np.ndarray, "B S"],
        *,
        encoder_mask: Bool[Array, "B S"] | Bool[np.ndarray, "B S"],
        **options: Unpack[GenerationOverrides],
    ) -> Int[np.ndarray, "B T"]:
        """`generate` from ids to ids.

        Args:
          encoder_tokens: input ids.
          encoder_mask: True on ids that are not padding.
          **options: as in `generate`.
        Returns:
          [B, T] int32, T = max_new_tokens and the longest prefix; rows end with EOS unless
          something else ended them, then padding.  A row that constraints left nothing to write
          is padding.
        """
        given = GenerationConfig.of(dict(options))
        tokens, mask = np.asarray(encoder_tokens), np.asarray(encoder_mask)
        if tokens.ndim != 2 or tokens.shape != mask.shape:
            raise ValueError(
                "encoder_tokens and encoder_mask must both have shape [B, S], got "
                f"{tokens.shape} and {mask.shape}."
            )
        ids = tokens[mask.astype(bool)]
        if ids.size and not 0 <= ids.min() <= ids.max() < self.config.vocab_size:
            raise ValueError(
                f"ids must be in [0, vocab_size = {self.config.vocab_size}), got "
                f"{ids.min()} to {ids.max()}; another tokenizer made them."
            )
        inputs = [_between(row) for row in np.where(mask, tokens.astype(np.int64), -1)]
        inputs = self.check_lengths(
            "encoder_tokens", inputs, given.max_input_tokens, given.truncate
        )
        found, prefixes = self.write_ids(inputs, given, 1)
        width = given.max_new_tokens + max(map(len, prefixes), default=0)
        ids = np.full((len(found), width), self.config.pad_id, np.int32)
        for row, (one,) in zip(ids, found, strict=True):
            row[: len(one.ids)] = one.ids
        return ids

    def warmup(
        self,
        *,
        input_lengths: Sequence[int] = (64,),
        num_texts: Sequence[int] = (1,),
        **options: Unpack[GenerationOverrides],
    ) -> float:
        """Compiles what `generate` needs, so that no later call of these sizes waits for it.

        A program serves a whole bucket of lengths (`t5jax.generation.batching`), a power of two of
        texts, and all values of the options that are on.

        Args:
          input_lengths: tokens of inputs to come, EOS included.
          num_texts: how many of them are computed at once.
          **options: as in `generate`.
        Returns:
          Seconds that it took.
        """
        given = GenerationConfig.of(dict(options))
        begun = time.perf_counter()
        for length in dict.fromkeys(map(length_bucket, input_lengths)):
            for count in dict.fromkeys(map(batch_bucket, num_texts)):
                self.write_ids([[self.config.eos_id] * length] * count, given, 1)
        return time.perf_counter() - begun

    def save(self, folder: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Writes config, parameters and tokenizer to a folder that `t5jax.load` reads.

        Args:
          folder: made whole or not at all.
          overwrite: replace an existing folder, which otherwise is an error.
        Raises:
          ValueError: weights that were rounded when they were loaded.
        """
        check_saveable(self.params)
        save_pretrained(folder, self.config, self.params, self.tokenizer, overwrite=overwrite)

    def _write(self, name: str, texts: Sequence[str], options: GenerationConfig, count: int):
        inputs = self.encode_texts(name, texts, options.max_input_tokens, options.truncate)
        return self.write_ids(inputs, options, count)

    def write_ids(
        self,
        inputs: Sequence[Sequence[int]],
        options: GenerationConfig,
        count: int,
        *,
        places: Sequence[int] | None = None,
    ) -> tuple[list[list[GeneratedSequence]], list[list[int]]]:
        """What `answers` is made of: ids in, sequences and the prefixes they begin with out.

        Args:
          inputs: ids of each input, with EOS.
          options: of the generation.
          count: answers for each input.
          places: numbers of the inputs, which their draws depend on; where they stand if None.
        """
        prefixes, rules = self._rules(len(inputs), options)
        found = self._writer.write(inputs, prefixes, options, rules, count=count, places=places)
        return found, prefixes

    def _rules(
        self, count: int, options: GenerationConfig
    ) -> tuple[list[list[int]], LogitsProcessors]:
        prefixes = options.prefixes(
            count, self.config, self._tokenizer, most=options.max_input_tokens
        )
        limit = options.max_new_tokens
        return prefixes, options.rules(self.config, self._tokenizer, max_new_tokens=limit)


def _between(ids: np.ndarray) -> list[int]:
    """A row without the masked positions, below 0, at its ends; only distances count in T5."""
    (kept,) = np.nonzero(ids >= 0)
    return ids[kept[0] : kept[-1] + 1].tolist() if len(kept) else []
