"""Everything that a user can say about a generation, in one place."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict, TypeVar

import numpy as np

from t5jax.constraints import Constraints, Ids
from t5jax.decoding import Automaton
from t5jax.errors import suggest
from t5jax.strategy import EarlyStopping, Strategy

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Constraints, Strategy):
    """How answers are searched for, what they may hold, and how inputs are computed.

    The fields are those of `t5jax.strategy.Strategy`, of `t5jax.constraints.Constraints`, and:

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
    def of(cls, given: dict[str, Any]) -> "Options":
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


class Given(TypedDict, total=False):
    """The fields of `Options`, each of which may be given by name."""

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


def shown(function: Function) -> Function:
    """Makes `help` and completion list the options that a function takes as `**options`."""
    signature = inspect.signature(function)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    taken = {p.name for p in named}
    options = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type
        )
        for field in dataclasses.fields(Options)
        if field.name not in taken
    ]
    function.__signature__ = signature.replace(parameters=[*named, *options])  # pyright: ignore
    return function
