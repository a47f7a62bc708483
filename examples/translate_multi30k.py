"""Translate English captions to German, trained from scratch on the 29,000 pairs of Multi30k.

    pip install 't5jax[eval]'
    python examples/translate_multi30k.py --data FOLDER
    python examples/translate_multi30k.py --data owner/name

FOLDER holds {train,val,test_2016_flickr}.lc.norm.tok.{en,de}: lower-cased, tokenized, a sentence a
line, as the task's data sets give them.  A data set on the hub has the columns en and de, and is
neither lower-cased nor tokenized, so that its BLEU is another number.

86 minutes of one CPU core, 2.9 M parameters: BLEU 41.32 on test_2016_flickr.  What was written,
and how, is in docs/results/multi30k.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

from t5jax.cli import run_command
from t5jax.data import Row, Task
from t5jax.evaluation.metrics import MetricOptions
from t5jax.fileio import write_atomically
from t5jax.optim import OptimizerConfig, ScheduleConfig
from t5jax.recipes import PREDICTIONS, FinetuneConfig, finetune
from t5jax.runtime import keep_memory
from t5jax.training import FitConfig, StepConfig

_SPLITS = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
_ENDING = "lc.norm.tok"

_ARCHITECTURE = {
    "d_model": 256,
    "d_ff": 512,
    "d_kv": 32,
    "num_heads": 4,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "activation": "relu",
    "gated_ff": False,
    "tie_embeddings": True,
    "scale_logits": True,
}

_RUN = FinetuneConfig(
    output="runs/translate_multi30k",
    input_length=64,
    target_length=64,
    batch_size=64,
    dropout_rate=0.2,
    dtype="bfloat16",
    fit=FitConfig(steps=10_000, eval_every=1000, checkpoint_every=250, log_every=50),
    optimizer=OptimizerConfig(
        name="adamw",
        b2=0.98,
        weight_decay=0.02,
        schedule=ScheduleConfig(name="cosine", learning_rate=0.06, warmup_steps=500),
    ),
    step=StepConfig(label_smoothing=0.1),
    use="last",
    average=3,
    final_num_beams=5,
    length_penalty=1.0,
    too_long="drop",
    eval_batch_size=128,
    seed=1,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to learn from, and how."""

    data: str
    """Folder, or data set on the hub."""
    quick: FlagCreatePairsOff[bool] = False
    """A taste, in a minute or two: few steps of a smaller model."""
    run: Annotated[FinetuneConfig, arg(name="")] = _RUN


def task(data: str) -> Task:
    """The task; its metric is BLEU, of a folder's tokens as they are."""
    folder = Path(data).expanduser()
    tokenized = folder.is_dir()
    sources = {split: _rows(folder, name) if tokenized else data for split, name in _SPLITS.items()}
    return Task(
        name="en-de",
        **sources,
        input="{en}",
        target="{de}",
        metrics=("bleu",),
        metric_options=MetricOptions(tokenize="none" if tokenized else "13a", lowercase=tokenized),
    )


def adapted(run: FinetuneConfig, *, quick: bool) -> tuple[FinetuneConfig, dict | None]:
    """The run, and its model's sizes, None if `--checkpoint` or `--model` has some.

    It learns a vocabulary of 4000 pieces if none is given.  From a checkpoint it has the vocabulary
    of that, and T5's rate for fine-tuning.
    """
    given, sizes = run, _ARCHITECTURE
    if quick:
        sizes = {**sizes, "d_model": 128, "num_decoder_layers": 1}
        schedule = ScheduleConfig(name="cosine", learning_rate=0.03, warmup_steps=50)
        run = dataclasses.replace(
            run,
            output=f"{run.output}_quick",
            batch_size=32,
            fit=dataclasses.replace(run.fit, steps=200, eval_every=100, checkpoint_every=100),
            optimizer=dataclasses.replace(run.optimizer, schedule=schedule),
            dropout_rate=0.0,
            dropout_steps=None,
            final_num_beams=1,
            average=1,
            eval_examples=100,
        )
    if run.checkpoint is None and run.tokenizer is None and run.vocab_size is None:
        run = dataclasses.replace(run, vocab_size=600 if quick else 4000)
    if run.checkpoint is not None and given.optimizer == _RUN.optimizer:
        run = dataclasses.replace(run, optimizer=FinetuneConfig().optimizer)
    from_scratch = run.checkpoint is None and run.model == _RUN.model
    return run, sizes if from_scratch else None


def main(config: Config) -> None:
    """Trains, tells BLEU, and writes the translations of the test sentences."""
    run, architecture = adapted(config.run, quick=config.quick)
    chosen = task(config.data)
    found = finetune([chosen], run, architecture=architecture)
    if found.test is None:
        return  # interrupted
    folder = run.folder
    written = folder / PREDICTIONS / f"{chosen.name}-test.jsonl"
    # Not splitlines: a text may hold other ends of lines.
    rows = map(json.loads, written.read_text(encoding="utf-8").rstrip("\n").split("\n"))
    write_atomically(folder / "predictions.txt", "".join(f"{one['prediction']}\n" for one in rows))
    print(f"translations of the test sentences: {folder / 'predictions.txt'}")


def _rows(folder: Path, name: str) -> list[Row]:
    english, german = (_lines(folder / f"{name}.{_ENDING}.{language}") for language in ("en", "de"))
    if len(english) != len(german):
        raise ValueError(
            f"{folder}: {name} must have as many lines in both languages, got {len(english)} and "
            f"{len(german)}."
        )
    return [{"en": x, "de": y} for x, y in zip(english, german, strict=True)]


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"data must be a folder with {path.name}, got {path.parent}.")
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


if __name__ == "__main__":
    keep_memory()
    run_command(Config, main, description=__doc__)
