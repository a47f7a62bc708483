"""Held-out examples of a task, what a model writes for them, and how right that is."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from t5jax.data import Example, Split, Task
from t5jax.evaluation.metrics import compute_metrics, mean_score, used_options
from t5jax.fileio import write_atomically
from t5jax.generation import GenerationConfig
from t5jax.text2text import Text2Text


class EvalSplit(NamedTuple):
    """One split of a task."""

    task: Task
    split: Split
    examples: Sequence[Example]
    inputs: Sequence[list[int]]
    """Ids of each input, EOS included."""

    def spread(self, count: int | None) -> "EvalSplit":
        """At most `count` of the examples, evenly spaced; all if None."""
        total = len(self.examples)
        if count is None or count >= total:
            return self
        places = [place * total // count for place in range(count)]
        return self._replace(
            examples=[self.examples[place] for place in places],
            inputs=[self.inputs[place] for place in places],
        )

    def predictions(self, t5: Text2Text, options: GenerationConfig) -> list[str]:
        """What the model writes for each input, after the task's `postprocess`."""
        assert t5.tokenizer is not None
        sequences = t5.engine.generate(self.inputs, options)
        return [self._processed(t5.tokenizer.decode(one.ids)) for (one,) in sequences]

    def references(self) -> list[list[str]]:
        """What is right for each input, after the task's `postprocess`."""
        return [[self._processed(text) for text in one.references] for one in self.examples]

    def scores(self, predictions: Sequence[str]) -> dict[str, float]:
        """The task's metrics, by name; NaN where these predictions have none.

        Such as the correlation of numbers, where a prediction is no number.
        """
        found, references = {}, self.references()
        for name in self.task.metrics:
            try:
                found[name] = self._measure(name, predictions, references)
            except ValueError:
                found[name] = math.nan
        return found

    def check(self) -> None:
        """Measures the references themselves, so that what cannot be measured is known early.

        Raises:
          ValueError: a metric cannot take the references, or lacks its library.
        """
        references = self.references()
        first = [texts[0] for texts in references]
        for name in self.task.metrics:
            try:
                self._measure(name, first, references)
            except ValueError as error:
                raise ValueError(f"{self.split} of task {self.task.name!r}: {error}") from error

    def _measure(
        self, name: str, predictions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> float:
        options = used_options([name], self.task.metric_options)
        return compute_metrics([name], predictions, references, options)[name].score

    def write(self, path: Path, predictions: Sequence[str]) -> None:
        """Writes predictions beside inputs and references, as `t5jax evaluate` reads them."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = zip(self.examples, predictions, self.references(), strict=True)
        lines = (
            json.dumps(
                {"input": one.input, "prediction": prediction, "references": references},
                ensure_ascii=False,
            )
            for one, prediction, references in rows
        )
        write_atomically(path, "".join(f"{line}\n" for line in lines))

    def _processed(self, text: str) -> str:
        return text if self.task.postprocess is None else self.task.postprocess(text)


def results_table(results: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Lines of a table of results, task -> metric -> percent."""
    for task, found in results.items():
        yield f"{task}: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items())
    if len(results) > 1:
        yield f"score over tasks: {mean_score(results):.2f}"
