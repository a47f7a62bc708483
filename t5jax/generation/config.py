"""Options of generation: declared, documented and checked here alone."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np

from t5jax.decoding import Automaton
from t5jax.errors import suggest

EarlyStopping = bool | Literal["never"]
Ids = Sequence[int]

# An automaton has a state for every byte of them.
_MAX_STOP_CHARACTERS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Options of `Text2Text.generate`; the defaults are greedy decoding without constraints.

    An option that is out of range, has no effect, or contradicts another is an error.

    Attributes:
      max_new_tokens: maximum number of tokens to generate, EOS included, `decoder_prefix` not.
      min_new_tokens: minimum number of tokens to generate before EOS.
      num_beams: number of beams; 1 is no beam search.
      length_penalty: beams are ranked by log-probability divided by a penalty of the length, EOS
        included: length**length_penalty, or ((5 + length) / 6)**length_penalty with "gnmt".  0 is
        no penalty; higher values favor longer outputs.
      penalty_form: "power" as in Hugging Face transformers, or "gnmt" as in T5X and the T5 paper,
        which used 0.6.
      early_stopping: when a beam search ends.  True: with as many finished sequences as beams;
        False: when the best open one would not be among them if it ended now; "never": when no
        continuation of it can be.
      temperature: 0 takes the most likely token; above 0, tokens are sampled from
        softmax(logits / temperature).
      top_k: sample from the k most likely tokens.
      top_p: sample from the smallest set of most likely tokens with this total probability.
      min_p: sample from tokens at least this many times as likely as the most likely.
      typical_p: sample from the most typical tokens with this total probability.
      seed: random seed of the sampling.
      decoder_prefix: start of the output: one text for all inputs or a list with one for each; ids
        in place of a text.  It counts in no length and no score.
      forced_bos_token_id: id of the first token after the prefix.
      forced_eos_token_id: id of the last token of an output that reaches max_new_tokens.
      suppress_tokens: ids that are never generated.
      begin_suppress_tokens: ids that are not generated first; second if the first is forced.
      repetition_penalty: logits of tokens that have occurred are divided by it if positive, and
        multiplied if negative; above 1 they become less likely.  (arXiv:1909.05858, section 4.1)
      no_repeat_ngram_size: no n-gram of this size occurs twice; 0 is off.
      bad_words: texts that are not generated, in the tokens that the tokenizer encodes them as.
      bad_words_ids: sequences of ids that are not generated.
      stop_strings: an output ends where its text contains one of them, and is cut before it.
      allowed_texts: an output is one of these, in the tokens that the tokenizer encodes it as.
      automaton: must accept the tokens after the prefix; see `t5jax.decoding.automaton`.
      batch_size: number of inputs computed at once.
      max_input_tokens: longest input allowed, EOS included; memory grows with its square.
      truncate: cut longer inputs, with a warning, instead of refusing them.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    penalty_form: Literal["power", "gnmt"] = "power"
    early_stopping: EarlyStopping = False
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    seed: int = 0
    decoder_prefix: str | Sequence[str | Ids] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    suppress_tokens: Ids = ()
    begin_suppress_tokens: Ids = ()
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words: Sequence[str] = ()
    bad_words_ids: Sequence[Ids] = ()
    stop_strings: Sequence[str] = ()
    allowed_texts: Sequence[str] | None = None
    automaton: Automaton | None = None
    batch_size: int = 32
    max_input_tokens: int = 2048
    truncate: bool = False

    def __post_init__(self):
        self._check_types()
        self._check_search_and_sampling()
        self._check_constraints()
        self._check_combinations()

    def _check_types(self):
        for name in _INTEGERS:
            value = getattr(self, name)
            if value is not None:
                _check_integer(name, value)
        for name, (kind, types) in _LISTS.items():
            value = getattr(self, name)
            if value is None and name == "allowed_texts":
                continue
            # A list can be read twice, an iterator cannot.
            if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
                raise ValueError(f"{name} must be a list of {kind}, got {value!r:.60}.")
            for item in value:
                if kind == "ids":
                    _check_integer(name, item)
                elif not isinstance(item, types):
                    raise ValueError(f"{name} must be a list of {kind}, got {item!r:.60} in it.")

    def _check_search_and_sampling(self):
        for name in ("max_new_tokens", "num_beams", "batch_size", "max_input_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.temperature >= 0:
            raise ValueError(
                f"temperature must be at least 0, got {self.temperature}; 0 is greedy."
            )
        if 0 < self.temperature < 1e-6 or self.temperature > 1e6:
            raise ValueError(
                f"temperature must be 0 or in [1e-6, 1e6], got {self.temperature}; 0 is greedy."
            )
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be in [0, 2**31), got {self.seed}.")
        if not abs(self.length_penalty) < 100:
            raise ValueError(
                f"length_penalty must be between -100 and 100, got {self.length_penalty}."
            )
        if self.penalty_form not in ("power", "gnmt"):
            raise ValueError(f"penalty_form must be 'power' or 'gnmt', got {self.penalty_form!r}.")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(
                f"early_stopping must be True, False or 'never', got {self.early_stopping!r}."
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}; None is all tokens.")
        for name in ("top_p", "typical_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {value}; None is all tokens.")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1], got {self.min_p}.")

    def _check_constraints(self):
        for name in ("min_new_tokens", "no_repeat_ngram_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")
        if not self.repetition_penalty > 0:
            raise ValueError(
                f"repetition_penalty must be above 0, got {self.repetition_penalty}; 1.0 is none."
            )
        for name in ("bad_words", "stop_strings"):
            if "" in getattr(self, name):
                raise ValueError(f"{name} must not contain the empty text, which is everywhere.")
        num_characters = sum(map(len, self.stop_strings))
        if num_characters > _MAX_STOP_CHARACTERS:
            raise ValueError(
                f"stop_strings must have at most {_MAX_STOP_CHARACTERS} characters together, got "
                f"{num_characters}."
            )
        if any(len(ids) == 0 for ids in self.bad_words_ids):
            raise ValueError(
                "bad_words_ids must not contain the empty sequence, which is everywhere."
            )
        if self.allowed_texts is not None and not len(self.allowed_texts):
            raise ValueError("allowed_texts must contain a text to generate, got none.")

    def _check_combinations(self):
        """Refuse options without effect, and options that contradict one another."""
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError(
                f"temperature must be 0 with num_beams above 1, got {self.temperature}; a beam "
                "search does not sample."
            )
        for name in ("top_k", "top_p", "min_p", "typical_p"):
            value = getattr(self, name)
            if value is not None and not self.temperature:
                raise ValueError(
                    f"{name} must come with a temperature above 0, such as 1.0, got {name}={value} "
                    "without one."
                )
        for name in ("length_penalty", "penalty_form", "early_stopping"):
            value = getattr(self, name)
            if self.num_beams == 1 and value != getattr(GenerationConfig, name):
                raise ValueError(
                    f"{name} must come with num_beams above 1, got {value!r} without beams."
                )
        if self.forced_eos_token_id is not None and self.min_new_tokens >= self.max_new_tokens:
            raise ValueError(
                "min_new_tokens must be less than max_new_tokens for a token to be forced at the "
                f"limit, got {self.min_new_tokens} and {self.max_new_tokens}."
            )
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens must be at most max_new_tokens = {self.max_new_tokens}, got "
                f"{self.min_new_tokens}."
            )
        if self.allowed_texts is not None and self.automaton is not None:
            raise ValueError("allowed_texts and automaton must not both be set; use one.")
        if (self.allowed_texts is not None or self.automaton is not None) and self.stop_strings:
            raise ValueError(
                "stop_strings must be left out with allowed_texts or an automaton, which say "
                "themselves where an output ends."
            )
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            if getattr(self, name) in self.suppress_tokens:
                raise ValueError(f"{name} = {getattr(self, name)} must not be suppressed too.")

    @property
    def sampling_params(self) -> dict[str, np.ndarray]:
        """Scalar arrays of the sampling options that are on; empty if decoding is greedy."""
        if not self.temperature:
            return {}
        return {
            name: np.asarray(getattr(self, name), dtype)
            for name, dtype in _SAMPLING_DTYPES.items()
            if getattr(self, name) is not None
        }


_INTEGERS = (
    "max_new_tokens",
    "min_new_tokens",
    "num_beams",
    "top_k",
    "seed",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "no_repeat_ngram_size",
    "batch_size",
    "max_input_tokens",
)
_LISTS = {
    "suppress_tokens": ("ids", int),
    "begin_suppress_tokens": ("ids", int),
    "bad_words": ("texts", str),
    "bad_words_ids": ("lists of ids", Sequence | np.ndarray),
    "stop_strings": ("texts", str),
    "allowed_texts": ("texts", str),
}
_SAMPLING_DTYPES = {
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "typical_p": np.float32,
    "seed": np.int32,
}


def _check_integer(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} must be a whole number, got {value!r:.60}.")


class GenerationOverrides(TypedDict, total=False):
    """Fields of `GenerationConfig` as keyword arguments."""

    max_new_tokens: int
    min_new_tokens: int
    num_beams: int
    length_penalty: float
    penalty_form: Literal["power", "gnmt"]
    early_stopping: EarlyStopping
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    seed: int
    decoder_prefix: str | Sequence[str | Ids] | None
    forced_bos_token_id: int | None
    forced_eos_token_id: int | None
    suppress_tokens: Ids
    begin_suppress_tokens: Ids
    repetition_penalty: float
    no_repeat_ngram_size: int
    bad_words: Sequence[str]
    bad_words_ids: Sequence[Ids]
    stop_strings: Sequence[str]
    allowed_texts: Sequence[str] | None
    automaton: Automaton | None
    batch_size: int
    max_input_tokens: int
    truncate: bool


def override_config(
    config: GenerationConfig | None, overrides: Mapping[str, Any]
) -> GenerationConfig:
    """Return a config with some options replaced.

    Args:
      config: defaults to `GenerationConfig()`.
      overrides: option -> value.
    Returns:
      The config, checked.
    Raises:
      TypeError: an unknown option; the message suggests the most similar one.
      ValueError: an option that is out of range, has no effect or contradicts another.

    Example:
      >>> override_config(None, {"num_beams": 4}).num_beams
      4
    """
    options = [field.name for field in dataclasses.fields(GenerationConfig)]
    for name in overrides:
        if name not in options:
            hint = suggest(name, options, f"the options are {', '.join(options)}.")
            raise TypeError(f"unknown option {name!r}; {hint}")
    if config is None:
        return GenerationConfig(**overrides)
    return dataclasses.replace(config, **overrides)
