"""Validation of fine-tuning: held-out examples, predictions and scores."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from t5jax.data import (
    Batch,
    Example,
    Pair,
    Pairs,
    Split,
    Task,
    heldout_batches,
    truncate_ids,
)
from t5jax.evaluation.metrics import compute_metrics, mean_score, used_options
from t5jax.fileio import write_atomically
from t5jax.generation import GenerationConfig
from t5jax.models import ComputePolicy, Params, T5Config
from t5jax.parallel import (
    broadcast_from_main,
    gather_arrays,
    is_main_process,
    local_rows,
    num_shards,
)
from t5jax.recipes.finetune_config import FinetuneConfig
from t5jax.text2text import Text2Text
from t5jax.tokenizers import Tokenizer, encode_with_eos
from t5jax.training import LossEvaluator

PREDICTIONS = "predictions"


class EvalSplit(NamedTuple):
    """Held-out split of a task.

    Attributes:
      task: task with the metrics and `postprocess`.
      split: name of the split.
      examples: text of the inputs and references.
      inputs: ids of each input, EOS included.
    """

    task: Task
    split: Split
    examples: Sequence[Example]
    inputs: Sequence[list[int]]

    def spread(self, count: int | None) -> "EvalSplit":
        """Return a split of at most `count` evenly spaced examples; None keeps all."""
        total = len(self.examples)
        if count is None or count >= total:
            return self
        places = [place * total // count for place in range(count)]
        return self._replace(
            examples=[self.examples[place] for place in places],
            inputs=[self.inputs[place] for place in places],
        )

    def predictions(self, t5: Text2Text, options: GenerationConfig) -> list[str]:
        """Generate an output for each input, and apply the task's `postprocess`.

        Args:
          t5: model with a tokenizer.
          options: generation options.
        Returns:
          One text per input.
        """
        assert t5.tokenizer is not None
        sequences = t5.engine.generate(self.inputs, options)
        return [self._processed(t5.tokenizer.decode(one.ids)) for (one,) in sequences]

    def references(self) -> list[list[str]]:
        """Return the references of each input, with the task's `postprocess` applied."""
        return [[self._processed(text) for text in one.references] for one in self.examples]

    def scores(self, predictions: Sequence[str]) -> dict[str, float]:
        """Compute the task's metrics.

        Args:
          predictions: one text per input.
        Returns:
          Metric -> score, in percent; NaN if undefined, e.g. the correlation of non-numbers.
        """
        scores, references = {}, self.references()
        for name in self.task.metrics:
            try:
                scores[name] = self._measure(name, predictions, references)
            except ValueError:
                scores[name] = math.nan
        return scores

    def check(self) -> None:
        """Score the references against themselves, to detect errors before training.

        Raises:
          ValueError: a metric does not accept the references, or its library is not installed.
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
        """Write predictions, inputs and references in the format of `t5jax evaluate`.

        Args:
          path: .jsonl file to write.
          predictions: one text per input.
        """
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


class TaskEvaluator:
    """Evaluator of the loss and the task metrics on validation splits."""

    def __init__(
        self,
        config: FinetuneConfig,
        model: T5Config,
        tokenizer: Tokenizer,
        splits: Sequence[EvalSplit],
        *,
        generation: GenerationConfig,
        policy: ComputePolicy,
        mesh: Mesh,
    ):
        """Select the validation examples and batch them.

        Args:
          config: options of the run.
          model: architecture.
          tokenizer: tokenizer of the run.
          splits: held-out splits; only `config.eval_examples` examples of each validation split
            are used.
          generation: default generation options of the checkpoint.
          policy: compute policy of the model.
          mesh: device mesh of the parameters.
        """
        self._generation = config.writing(config.num_beams, generation)
        self._config, self._model, self._tokenizer = config, model, tokenizer
        self._policy = policy
        self._splits = [
            split.spread(config.eval_examples) for split in splits if split.split == "validation"
        ]
        batches = [
            batch
            for split in self._splits
            for batch in _loss_batches(config, model, tokenizer, split, mesh=mesh)
        ]
        self._loss = LossEvaluator(model, batches, policy=self._policy, mesh=mesh)

    def evaluate(self, params: Params, step: int) -> dict[str, float]:
        """Evaluate the model, and write its predictions to the run directory.

        Args:
          params: parameters of the model.
          step: number of the step, which names the files of predictions.
        Returns:
          "loss" in nats per target token, "accuracy", "score" (mean over tasks, in percent) and
          every metric as "task/metric".
        """
        gathered = gather_arrays(params)
        t5 = Text2Text(self._model, gathered, self._tokenizer, policy=self._policy)
        folder = self._config.folder
        results = score_splits(t5, self._splits, self._generation, folder, label=f"{step}")
        return {
            **self._loss.evaluate(params, step),
            "score": mean_score(results),
            **{
                f"{task}/{name}": value
                for task, scores in results.items()
                for name, value in scores.items()
            },
        }

    def ranking_key(self, evaluation: Mapping[str, float]) -> float:
        """Return the loss or the negative score, according to `best_by`; lower is better.

        Among equal scores, the lower loss is better.
        """
        if self._config.best_by == "loss":
            return evaluation["loss"]
        # Far below the difference of two scores, in percent.
        return -evaluation["score"] + 1e-7 * min(evaluation["loss"], 100.0)


def score_splits(
    t5: Text2Text,
    splits: Sequence[EvalSplit],
    generation: GenerationConfig,
    folder: Path,
    *,
    label: str,
) -> dict[str, dict[str, float]]:
    """Generate outputs for all examples, write them to the run directory, and score them.

    Args:
      t5: model, used by process 0 only.
      splits: at most one split per task.
      generation: generation options.
      folder: run directory.
      label: suffix of the file names, such as the step.
    Returns:
      task -> metric -> percent, the same in all processes.
    """
    results = {}
    for split in splits:
        if is_main_process():
            predictions = split.predictions(t5, generation)
            split.write(folder / PREDICTIONS / f"{split.task.name}-{label}.jsonl", predictions)
            scores = split.scores(predictions)
        else:
            scores = dict.fromkeys(split.task.metrics, 0.0)
        values = broadcast_from_main(list(scores.values()))
        results[split.task.name] = dict(zip(scores, values, strict=True))
    return results


def _loss_batches(
    config: FinetuneConfig,
    model: T5Config,
    tokenizer: Tokenizer,
    split: EvalSplit,
    *,
    mesh: Mesh,
) -> Iterator[Batch]:
    """Yield batches of a split with the first reference of each example, truncated, as target."""
    targets = [
        truncate_ids(encode_with_eos(tokenizer, example.references[0]), config.target_length)
        for example in split.examples
    ]
    pairs = Pairs([Pair(*both) for both in zip(split.inputs, targets, strict=True)])
    shards = num_shards(mesh)
    size = -(-config.eval_batch_size // shards) * shards
    return heldout_batches(
        pairs,
        batch_size=size,
        lengths=config.lengths,
        pad_id=model.pad_id,
        decoder_start_id=model.decoder_start_id,
        rows=local_rows(size, mesh=mesh),
    )


def results_table(results: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yield one line per task from its scores in percent, then the mean score over tasks."""
    for task, scores in results.items():
        yield f"{task}: " + ", ".join(f"{name} {value:.2f}" for name, value in scores.items())
    if len(results) > 1:
        yield f"score over tasks: {mean_score(results):.2f}"
