"""Steps that changed nothing because their loss or gradient could not be trusted."""

import math
from collections.abc import Callable, Sequence
from typing import Any


class Skips:
    """Counts skipped steps, and stops a run in which nothing else happens any more."""

    def __init__(
        self,
        *,
        most: int,
        locate: Callable[[int], Sequence[int]] | None,
        report: Callable[[int, dict[str, Any]], None],
    ):
        """Counts from zero.

        Args:
          most: skipped steps in a row that are borne.
          locate: the numbers of the chunks of text that a step learns from.
          report: is given the step and what is known of it.
        """
        self._most = most
        self._locate = locate
        self._report = report
        self._in_a_row = 0
        self.total = 0

    def check(self, step: int, metrics: dict[str, float]) -> None:
        """Looks at the metrics of a step; steps come in order.

        Raises:
          ValueError: the loss is not finite and the step was not skipped, or too many were.
        """
        if not metrics.get("skipped"):
            if not math.isfinite(metrics["loss"]):
                raise ValueError(
                    f"the loss must be finite, got {metrics['loss']} at step {step}; lower the "
                    "learning rate and start anew, or continue with other text: checkpoints "
                    "before are intact."
                )
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self.total += 1
        chunks = [] if self._locate is None else [int(i) for i in self._locate(step)]
        self._report(step, {"skipped_steps": self.total, "skipped_chunks": chunks})
        if self._in_a_row > self._most:
            raise ValueError(
                f"at most {self._most} steps in a row may be skipped, got {self._in_a_row} up to "
                f"step {step}, with loss {metrics['loss']}; lower the learning rate, or look at "
                "the chunks of text in metrics.jsonl: checkpoints before are intact."
            )
