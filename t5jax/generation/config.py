"""Generation options and their validation."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np

from t5jax.decoding import Automaton
from t5jax.errors import suggest

EarlyStopping = bool | Literal["never"]
Ids = Sequence[int]

# The stop automaton has one state per byte.
_MAX_STOP_CHARACTERS = 1000
# Caches and tables grow with it.
_MAX_NEW_TOKENS = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Generation options; the defaults are greedy decoding without constraints.

    Invalid, ineffective or contradictory options raise an error.

    Attributes:
      max_new_tokens: maximum number of tokens to generate, including EOS, excluding
        decoder_prefix.
      min_new_tokens: minimum number of tokens before EOS is allowed.
      num_beams: beam width; 1 = no beam search.
      length_penalty: exponent of the length penalty, which divides the log-probability of a beam:
        length**length_penalty, or ((5 + length) / 6)**length_penalty with "gnmt"; length includes
        EOS.  0 = no penalty; larger values favor longer outputs.
      penalty_form: "power" as in Hugging Face transformers, or "gnmt" as in T5X and the T5 paper,
        which used 0.6.
      early_stopping: end of a beam search.  True: num_beams finished sequences; False: the best
        open sequence, if it ended now, would not be among the num_beams best; "never": no
        continuation of it can be.
      temperature: 0 = greedy; above 0, sample from softmax(logits / temperature).
      top_k: sample from the k most likely tokens.
      top_p: nucleus sampling: smallest set of tokens with total probability >= p.
      min_p: sample from tokens at least min_p times as likely as the most likely one.
      typical_p: locally typical sampling: smallest set of most typical tokens with total
        probability >= p.
      seed: random seed for sampling.
      decoder_prefix: text or ids that the output starts with, one text for all inputs or a list
        with one entry per input; excluded from lengths and scores.
      forced_bos_token_id: id of the first token after the prefix.
      forced_eos_token_id: id of the last token of an output that reaches max_new_tokens.
      suppress_tokens: ids that are never generated.
      begin_suppress_tokens: ids that are not generated first, or second if the first is forced.
      repetition_penalty: divides positive and multiplies negative logits of tokens that already
        occur; above 1 makes them less likely.  (arXiv:1909.05858, section 4.1)
      no_repeat_ngram_size: size of n-grams that must not occur twice; 0 = off.
      bad_words: texts that must not be generated, as the tokenizer encodes them.
      bad_words_ids: id sequences that must not be generated.
      stop_strings: end the output before the first of these strings.
      allowed_texts: the only allowed outputs, as the tokenizer encodes them.
      automaton: constraint on the tokens after the prefix; see `t5jax.decoding.automaton`.
      batch_size: maximum number of inputs computed at once.
      max_input_tokens: maximum input length, including EOS; memory grows with its square.
      truncate: truncate longer inputs with a warning instead of raising an error.

    Examples:
      >>> t5jax.GenerationConfig(num_beams=4, length_penalty=0.6).max_new_tokens
      64
      >>> t5jax.GenerationConfig(top_p=0.9)
      Traceback (most recent call last):
      ValueError: top_p must come with a temperature above 0, ...
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
            if value is not None or getattr(GenerationConfig, name) is not None:
                _check_integer(name, value)
                if value >= 2**31 and name != "seed":  # which has a rule for both ends
                    raise ValueError(f"{name} must be less than 2**31, got {value!r:.30}.")
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is None and getattr(GenerationConfig, name) is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float | np.number):
                raise ValueError(f"{name} must be a number, got {value!r:.60}.")
        for name, (kind, types) in _LISTS.items():
            value = getattr(self, name)
            if value is None and name == "allowed_texts":
                continue
            # An iterator could be read only once.
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
        if self.max_new_tokens > _MAX_NEW_TOKENS:
            raise ValueError(
                f"max_new_tokens must be at most {_MAX_NEW_TOKENS}, got {self.max_new_tokens}."
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
            raise ValueError(f"top_k must be at least 1, got {self.top_k}; None disables it.")
        for name in ("top_p", "typical_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {value}; None disables it.")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1], got {self.min_p}.")

    def _check_constraints(self):
        for name in ("min_new_tokens", "no_repeat_ngram_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")
        if not 1e-6 <= self.repetition_penalty <= 1e6:
            raise ValueError(
                "repetition_penalty must be in [1e-6, 1e6], got "
                f"{self.repetition_penalty}; 1.0 = off."
            )
        for name in ("bad_words", "stop_strings", "allowed_texts"):
            for text in getattr(self, name) or ():
                try:
                    text.encode()
                except UnicodeEncodeError:
                    raise ValueError(
                        f"{name} must be Unicode texts, got {text!a:.60}, which is not."
                    ) from None
        for name in ("bad_words", "stop_strings"):
            if "" in getattr(self, name):
                raise ValueError(f"{name} must not contain the empty text; remove it.")
        num_characters = sum(map(len, self.stop_strings))
        if num_characters > _MAX_STOP_CHARACTERS:
            raise ValueError(
                f"stop_strings must have at most {_MAX_STOP_CHARACTERS} characters in total, got "
                f"{num_characters}."
            )
        if any(len(ids) == 0 for ids in self.bad_words_ids):
            raise ValueError("bad_words_ids must not contain the empty sequence; remove it.")
        if self.allowed_texts is not None and not len(self.allowed_texts):
            raise ValueError("allowed_texts must not be empty, got none; None disables it.")

    def _check_combinations(self):
        """Reject ineffective and contradictory options."""
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError(
                f"temperature must be 0 with num_beams above 1, got {self.temperature}; beam "
                "search does not sample."
            )
        for name in ("top_k", "top_p", "min_p", "typical_p"):
            value = getattr(self, name)
            if value is not None and not self.temperature:
                raise ValueError(
                    f"{name} must come with a temperature above 0, such as 1.0, got {name}={value} "
                    "with temperature 0."
                )
        for name in ("length_penalty", "penalty_form", "early_stopping"):
            value = getattr(self, name)
            if self.num_beams == 1 and value != getattr(GenerationConfig, name):
                raise ValueError(
                    f"{name} must come with num_beams above 1, got {value!r} with num_beams=1."
                )
        if self.forced_eos_token_id is not None and self.min_new_tokens >= self.max_new_tokens:
            raise ValueError(
                "min_new_tokens must be less than max_new_tokens with forced_eos_token_id, got "
                f"{self.min_new_tokens} and {self.max_new_tokens}."
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
                "stop_strings must not be set with allowed_texts or automaton, which define the "
                "end of an output."
            )
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            if getattr(self, name) in self.suppress_tokens:
                raise ValueError(f"{name} = {getattr(self, name)} must not be in suppress_tokens.")

    @property
    def sampling_params(self) -> dict[str, np.ndarray]:
        """Enabled sampling options as scalar arrays; empty for greedy decoding."""
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
_NUMBERS = (
    "length_penalty",
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
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


def _check_integer(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} must be an integer, got {value!r:.60}.")


class GenerationOverrides(TypedDict, total=False):
    """Fields of `GenerationConfig` as keyword arguments.

    Attributes:
      max_new_tokens: maximum number of tokens, including EOS.
      min_new_tokens: minimum number of tokens before EOS.
      num_beams: beam width.
      length_penalty: exponent of the length penalty.
      penalty_form: form of the length penalty.
      early_stopping: end of a beam search.
      temperature: sampling temperature; 0 = greedy.
      top_k: number of tokens to sample from.
      top_p: total probability of nucleus sampling.
      min_p: minimum probability relative to the most likely token.
      typical_p: total probability of locally typical sampling.
      seed: random seed for sampling.
      decoder_prefix: text or ids that the output starts with.
      forced_bos_token_id: first token.
      forced_eos_token_id: last token at the limit.
      suppress_tokens: ids that are never generated.
      begin_suppress_tokens: ids that are not generated first.
      repetition_penalty: penalty of tokens that already occur.
      no_repeat_ngram_size: size of n-grams that must not repeat.
      bad_words: texts that must not be generated.
      bad_words_ids: id sequences that must not be generated.
      stop_strings: strings that end the output.
      allowed_texts: the only allowed outputs.
      automaton: constraint on the tokens.
      batch_size: maximum number of inputs computed at once.
      max_input_tokens: maximum input length.
      truncate: truncate longer inputs instead of raising an error.

    Examples:
      >>> overrides: t5jax.generation.GenerationOverrides = {"num_beams": 4}
      >>> t5jax.GenerationConfig(**overrides).num_beams
      4
    """

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


# Names of other libraries that a similar name of ours would not explain.
_HINTS = {
    "constraints": "use allowed_texts or automaton.",
    "decoder_input_ids": "use decoder_prefix.",
    "decoder_start_token_id": "set decoder_start_id in the model's config.",
    "diversity_penalty": "sample with a temperature above 0 instead.",
    "do_sample": "set a temperature above 0 to sample.",
    "eos_token_id": "set eos_id in the model's config.",
    "force_words_ids": "use allowed_texts or automaton.",
    "length": "use max_new_tokens.",
    "logits_processor": "use the options, or an automaton.",
    "max_length": "use max_new_tokens, which does not count the start token.",
    "max_tokens": "use max_new_tokens.",
    "min_length": "use min_new_tokens, which does not count the start token.",
    "num_beam_groups": "sample with a temperature above 0 instead.",
    "num_return_sequences": "call generate_outputs, which takes it.",
    "pad_token_id": "set pad_id in the model's config.",
    "penalty_alpha": "sample with top_p or min_p instead.",
    "prefix_allowed_tokens_fn": "use automaton.",
    "return_dict_in_generate": "call generate_outputs.",
    "stop": "use stop_strings.",
    "stopping_criteria": "use stop_strings or max_new_tokens.",
    "streamer": "call stream.",
    "use_cache": "leave it out; generation always uses a cache.",
}


def check_option_names(names: Iterable[str]) -> None:
    """Raise TypeError for a name that is no option, with a hint."""
    options = [field.name for field in dataclasses.fields(GenerationConfig)]
    for name in names:
        if name not in options:
            hint = _HINTS.get(name) or suggest(
                name, options, f"the options are {', '.join(options)}."
            )
            raise TypeError(f"unknown option {name!r}; {hint}")


def override_config(
    config: GenerationConfig | None, overrides: Mapping[str, Any]
) -> GenerationConfig:
    """Return a config with some options replaced.

    Args:
      config: base config; defaults to `GenerationConfig()`.
      overrides: option -> value.
    Returns:
      The validated config.
    Raises:
      TypeError: an option is unknown; the message suggests the most similar one.
      ValueError: an option is invalid, ineffective or contradicts another.

    Examples:
      >>> t5jax.generation.override_config(None, {"num_beams": 4}).num_beams
      4
    """
    check_option_names(overrides)
    return dataclasses.replace(config or GenerationConfig(), **overrides)
