"""How an answer is searched for: greedily, by draws, or with beams."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict, TypeVar

import numpy as np

from t5jax.decoding import Automaton
from t5jax.errors import suggest
from t5jax.generation.constraints import Constraints, Ids

EarlyStopping = bool | Literal["never"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strategy:
    """What `generate` does at every token; the default takes the likeliest.

    Attributes:
      num_beams: open sequences of a beam search; 1 searches for nothing.
      length_penalty: beams are ranked by log-probability divided by a penalty of the length, EOS
        included: length**length_penalty, or ((5 + length) / 6)**length_penalty with "gnmt".  0 is
        no penalty; above, longer answers win.
      penalty_form: "power" as in Hugging Face transformers, or "gnmt" as in T5X and T5's paper,
        which took 0.6.
      early_stopping: when beams are done.  True: with as many ended sequences as beams; False: when
        the best open one would not be among them if it ended now; "never": when no continuation of
        it can be.
      temperature: 0 takes the likeliest token; above, tokens are drawn from
        softmax(logits / temperature).
      top_k: draw from the k likeliest tokens.
      top_p: draw from the fewest likeliest tokens that have this probability together.
      min_p: draw from tokens at least this many times as likely as the likeliest.
      typical_p: draw from the tokens of most typical surprise that have this probability together.
      seed: of the draws.
    """

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

    def __post_init__(self):
        if self.num_beams < 1:
            raise ValueError(f"num_beams must be at least 1, got {self.num_beams}.")
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
        self._check_together()

    def _check_together(self):
        """No option is without effect."""
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError(
                f"temperature must be 0 with beams, which draw nothing, got {self.temperature}."
            )
        for name in ("top_k", "top_p", "min_p", "typical_p"):
            value = getattr(self, name)
            if value is not None and not self.temperature:
                raise ValueError(
                    f"{name} must come with a temperature above 0, such as 1.0, got {name}={value} "
                    "without one."
                )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            of_beams = field.name in ("length_penalty", "penalty_form", "early_stopping")
            if of_beams and self.num_beams == 1 and value != field.default:
                raise ValueError(
                    f"{field.name} must come with num_beams above 1, got {value!r} without beams."
                )

    @property
    def draws(self) -> dict[str, float | int]:
        """What `advance_loop` needs to draw: the options that are on, or nothing."""
        if not self.temperature:
            return {}
        names = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


Function = TypeVar("Function", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig(Constraints, Strategy):
    """How answers are searched for, what they may hold, and how inputs are computed.

    The fields are those of `t5jax.generation.Strategy`, of `t5jax.generation.Constraints`, and:

    Attributes:
      max_new_tokens: most tokens of an answer, EOS included, the prefix not.
      batch_size: inputs computed at once.
      max_input_tokens: longest input allowed, EOS included; memory grows with its square.
      truncate: cut longer inputs, and say how many in a warning, instead of refusing them.
    """

    max_new_tokens: int = 64
    batch_size: int = 32
    max_input_tokens: int = 2048
    truncate: bool = False

    def __post_init__(self):
        for name in _LISTS:
            _check_list(name, getattr(self, name))
        for name in _COUNTS:
            _check_count(name, getattr(self, name))
        Strategy.__post_init__(self)
        Constraints.__post_init__(self)
        for name in ("max_new_tokens", "batch_size", "max_input_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
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

    @classmethod
    def of(cls, given: dict[str, Any]) -> "GenerationConfig":
        """Options by name.

        Raises:
          TypeError: no such option; the message suggests the nearest.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                hint = suggest(name, known, f"there are {', '.join(known)}.")
                raise TypeError(f"unknown option {name!r}; {hint}")
        return cls(**given)


_LISTS = {
    "suppress_tokens": int,
    "begin_suppress_tokens": int,
    "bad_words": str,
    "bad_words_ids": Sequence,
    "stop_strings": str,
    "allowed_texts": str,
}


_COUNTS = (
    "num_beams",
    "top_k",
    "seed",
    "min_new_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "no_repeat_ngram_size",
    "max_new_tokens",
    "batch_size",
    "max_input_tokens",
)


def _check_list(name: str, given: Any) -> None:
    """A list can be read twice, which an iterator cannot."""
    if given is None and name == "allowed_texts":
        return
    if isinstance(given, str) or not isinstance(given, Sequence | np.ndarray):
        raise ValueError(f"{name} must be a list, got {given!r:.60}.")
    for one in given:
        if _LISTS[name] is int:
            _check_count(name, one)
        elif not isinstance(one, _LISTS[name] | np.ndarray):
            what = "texts" if _LISTS[name] is str else "lists of ids"
            raise ValueError(f"{name} must be a list of {what}, got {one!r:.60} in it.")


def _check_count(name: str, given: Any) -> None:
    if given is not None and (isinstance(given, bool) or not isinstance(given, int | np.integer)):
        raise ValueError(f"{name} must be a whole number, got {given!r:.60}.")


class GenerationOverrides(TypedDict, total=False):
    """The fields of `GenerationConfig`, each of which may be given by name."""

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
    min_new_tokens: int
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
    max_new_tokens: int
    batch_size: int
    max_input_tokens: int
    truncate: bool


def show_options(function: Function) -> Function:
    """Makes `help` and completion list the options that a function takes as `**options`."""
    signature = inspect.signature(function)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    taken = {p.name for p in named}
    options = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type
        )
        for field in dataclasses.fields(GenerationConfig)
        if field.name not in taken
    ]
    function.__signature__ = signature.replace(parameters=[*named, *options])  # pyright: ignore
    return function
