"""How an answer is searched for: greedily, by draws, or with beams."""

import dataclasses
from typing import Literal

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
        """What `generate.advance` needs to draw: the options that are on, or nothing."""
        if not self.temperature:
            return {}
        names = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}
