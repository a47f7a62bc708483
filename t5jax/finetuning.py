"""Training on pairs of texts, of one task or several, judged by what the model writes."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import optax
import tyro
from jax.sharding import Mesh

from t5jax import (
    averaging,
    fit as fitting,
    flops,
    ingredients,
    mixture,
    optimizer,
    placement,
    pretrained,
    processes,
    runfolder,
    runlog,
    schedule,
    sharding,
    tasks as tasking,
    train,
    trial,
)
from t5jax.averaging import Choice
from t5jax.batches import Batch
from t5jax.checkpoint import Checkpoints
from t5jax.config import Remat, T5Config
from t5jax.fit import FitConfig
from t5jax.loading import resolve_dtype
from t5jax.mixture import Counts, Empty, PairLimits, Pairs, TooLong
from t5jax.model import Params, stacked
from t5jax.optimizer import OptimizerConfig
from t5jax.options import Options
from t5jax.pretrained.folder import CHECKPOINTS
from t5jax.processes import HostsConfig
from t5jax.profiling import Profiler
from t5jax.schedule import ScheduleConfig
from t5jax.sharding import MeshConfig
from t5jax.tasks import Example, Split, Task
from t5jax.text2text import Text2Text
from t5jax.tokenizer import Tokenizer
from t5jax.train import StepConfig
from t5jax.trial import Trial

MODEL = "model"
PREDICTIONS = "predictions"

# Options that may differ when a run is continued, as in `pretrain`.
_FREE = (
    "output",
    "mesh",
    "hosts",
    "remat",
    "eval_examples",
    "eval_batch_size",
    "num_beams",
    "final_num_beams",
    "length_penalty",
    "best_by",
    "use",
    "average",
    "step.accumulate",
    "step.vocab_chunks",
    *(f"fit.{field.name}" for field in dataclasses.fields(FitConfig) if field.name != "steps"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How to train on tasks: from which model, for how long, and how to judge it.

    Stopped by Ctrl-C, SIGTERM or a crash, the same command continues where it was.
    """

    output: str = "runs/finetune"
    """Folder of the run, made if absent; if it holds this same run, the run continues.  The model
    that comes out lies in `model/`, what it wrote in `predictions/`."""
    checkpoint: str | None = None
    """Where to start: a folder, file or hub id of any format that t5jax loads.  Without it, from
    random parameters."""
    model: str = "tiny"
    """Architecture without a checkpoint: 'tiny', a published size such as 't5-v1_1-base', or a JSON
    file with the fields of T5Config."""
    tokenizer: str | None = None
    """Folder of a tokenizer, or 'bytes'.  Without it, the checkpoint's; without a checkpoint, one
    is trained on the tasks."""
    vocab_size: int | None = None
    """Pieces of the tokenizer that is trained, 4000 unless given; 100 sentinels are added."""
    input_length: int = 128
    """Most tokens of an input, EOS included; length of a row of the encoder."""
    target_length: int = 128
    """Most tokens of a target, EOS included; length of a row of the decoder."""
    batch_size: int = 32
    """Rows a step, over all devices; T5 fine-tuned with 128 rows of 512."""
    pack: bool = True
    """Put as many examples in a row as fit, none of which sees another."""
    too_long: TooLong = "error"
    """What becomes of training examples that are longer: an error, dropped, or truncated.  Inputs
    to evaluate on are truncated then, and references always stay whole."""
    empty_targets: Empty = "error"
    """What becomes of training examples without a target."""
    size_limit: int = 2**19
    """Tasks without weights are mixed in proportion to their examples, of which no more than this
    count; T5 tried 2**16 to 2**21."""
    num_beams: int = 1
    """Of generation while training."""
    final_num_beams: int = 4
    """Of generation at the end."""
    length_penalty: float = 0.6
    """Of beam searches; T5 used 0.6."""
    eval_examples: int | None = None
    """Validation examples of each task to look at while training, spread evenly; all, unless given.
    At the end it is always all."""
    eval_batch_size: int = 64
    """Examples evaluated at once."""
    best_by: Literal["score", "loss"] = "score"
    """What is better: a higher mean of all tasks' metrics (in which an error rate of x counts as
    100 - x), or a lower loss."""
    use: Choice = "best"
    """Which checkpoint is the result: the best by validation, or the last."""
    average: int = 1
    """Take the mean of so many of the best or last checkpoints instead."""
    fit: Annotated[FitConfig, tyro.conf.arg(name="")] = FitConfig(steps=1000)
    optimizer: OptimizerConfig = OptimizerConfig(
        name="adafactor",
        schedule=ScheduleConfig(name="constant", learning_rate=1e-3, warmup_steps=0),
    )
    """How parameters are updated; as T5 was fine-tuned, unless given."""
    step: Annotated[StepConfig, tyro.conf.arg(name="")] = StepConfig()
    dropout_rate: float | None = None
    """Instead of the model's."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type to compute in; auto is bfloat16 on TPU and GPU and float32 on a CPU."""
    remat: Remat | None = None
    """What the backward pass recomputes to save memory, as in scripts/pretrain.py."""
    mesh: MeshConfig = MeshConfig()
    """How devices share the work."""
    hosts: HostsConfig = HostsConfig()
    """The processes that train together."""
    seed: int = 0
    """Of initial parameters, data order and dropout."""

    def __post_init__(self):
        for name in (
            *("batch_size", "input_length", "target_length", "size_limit", "eval_examples"),
            *("eval_batch_size", "num_beams", "final_num_beams", "average"),
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be in [0, 2**31), got {self.seed}.")
        if "://" in self.output:
            raise ValueError(
                f"output must be a folder of this machine, got {self.output}; mount the bucket."
            )
        if self.checkpoint is not None and self.model != "tiny":
            raise ValueError(
                f"model must be left out with a checkpoint, got {self.model}; a checkpoint has an "
                "architecture."
            )
        if self.vocab_size is not None and (self.tokenizer or self.checkpoint):
            raise ValueError(
                f"vocab_size must be left out with a tokenizer or a checkpoint, got "
                f"{self.vocab_size}; it is the size of one that is trained."
            )
        if self.checkpoint is None and self.model != "tiny" and not self.model.endswith(".json"):
            T5Config.preset(self.model)
        if self.use == "best":
            dataclasses.replace(self.fit, keep_best=self.keep_best)

    @property
    def keep_best(self) -> int:
        """Best checkpoints to keep: those asked for, and those that the result is made of."""
        return max(self.fit.keep_best, self.average if self.use == "best" else 0)

    @property
    def limits(self) -> PairLimits:
        """What examples may be."""
        return PairLimits(
            input_length=self.input_length,
            target_length=self.target_length,
            too_long=self.too_long,
            empty_targets=self.empty_targets,
        )


class Finetuned(NamedTuple):
    """What came out of `finetune`."""

    t5: Text2Text
    """Also saved in the run's folder, as `model`."""
    validation: dict[str, dict[str, float]] | None
    """Task -> metric -> percent; None if the run was interrupted."""
    test: dict[str, dict[str, float]] | None
    """As `validation`, of the tasks that have a test split."""


def finetune(
    tasks: Sequence[Task],
    config: FinetuneConfig,
    *,
    architecture: Mapping[str, Any] | None = None,
) -> Finetuned:
    """Trains on tasks, or goes on training, until the run is complete or interrupted.

    With several processes all must call it, with the same arguments but for `hosts.index`.

    Args:
      tasks: what to learn; texts of all are mixed.
      config: how.
      architecture: fields of T5Config instead of those of 'tiny', for `config.model` left out.
    Raises:
      ValueError, OSError: bad options, tasks or files, noticed before training starts.
    """
    tasking.check_names(tasks)
    if architecture is not None and (config.checkpoint or config.model != "tiny"):
        raise ValueError(
            "architecture must be left out with a checkpoint or a model, got both; use one."
        )
    processes.start(config.hosts)
    with processes.together():
        return _run(list(tasks), config, architecture)


class _Data(NamedTuple):
    """The tasks' texts, read and counted."""

    train: dict[str, list[Example]]
    heldout: dict[tuple[str, Split], list[Example]]


class _Prepared(NamedTuple):
    """What a run needs beside its state."""

    mesh: Mesh
    tokenizer: Tokenizer
    model: T5Config
    params: Params | None
    tx: optax.GradientTransformation
    abstract: train.TrainState
    pairs: dict[str, Pairs]
    shares: dict[str, float]
    trials: list[Trial]


def _run(
    tasks: list[Task], config: FinetuneConfig, architecture: Mapping[str, Any] | None
) -> Finetuned:
    folder = Path(config.output).expanduser()
    jax.devices()  # all processes at once, before process 0 reads the data
    with processes.first_then_others("the preparation of the run"):
        made = _prepare(tasks, config, architecture, folder)
    data = mixture.Batches(
        mixture.stream(list(made.pairs.values()), list(made.shares.values()), seed=config.seed),
        batch_size=config.batch_size,
        limits=config.limits,
        pack=config.pack,
        pad_id=made.model.pad_id,
        decoder_start_id=made.model.decoder_start_id,
        rows=placement.rows(config.batch_size, mesh=made.mesh),
    )
    keep_last = config.average if config.use == "last" else 0
    checkpoints = Checkpoints(
        folder / CHECKPOINTS,
        keep=max(config.fit.keep_checkpoints, keep_last),
        keep_every=config.fit.keep_every,
        keep_best=config.keep_best,
    )
    state = fitting.restore(checkpoints, made.abstract, data, warn=_say)
    if state is None:
        state = train.init_state(
            made.model,
            made.tx,
            mesh=made.mesh,
            seed=config.seed,
            options=config.step,
            params=made.params,
        )
    else:
        _say(f"continuing at step {int(state.step)} of {config.fit.steps} from {folder}")
    _describe(config, made, state)
    fitted = _fit(config, made, folder, state, data, checkpoints)
    checkpoints.close()
    if fitted.interrupted:
        _say(f"saved step {int(fitted.state.step)} in {folder}; the same command continues it")
        params = processes.gathered(fitting.judged(fitted.state))
        return Finetuned(Text2Text(made.model, params, made.tokenizer), None, None)
    return _finish(config, made, folder)


def _fit(
    config: FinetuneConfig,
    made: _Prepared,
    folder: Path,
    state: train.TrainState,
    data: mixture.Batches,
    checkpoints: Checkpoints,
) -> fitting.Fitted:
    train_step = train.make_train_step(
        made.model,
        made.tx,
        schedule=schedule.learning_rate(
            config.optimizer.schedule, total_steps=config.fit.steps
        ),
        mesh=made.mesh,
        options=config.step,
        seed=config.seed,
    )
    eval_step = train.make_eval_step(made.model, mesh=made.mesh)
    watched = [_spread(one, config.eval_examples) for one in made.trials if one.split != "test"]
    measured = [batch for one in watched for batch in _batches(config, made, one)]

    def evaluate(params: Params, step: int) -> dict[str, float]:
        t5 = Text2Text(made.model, processes.gathered(params), made.tokenizer)
        results = _examine(t5, watched, _options(config, config.num_beams), folder, f"{step}")
        return {
            **train.evaluate(eval_step, params, measured, mesh=made.mesh),
            "score": trial.score(results),
            **{f"{task}/{name}": x for task, found in results.items() for name, x in found.items()},
        }

    def judge(evaluation: Mapping[str, float]) -> float:
        return evaluation["loss"] if config.best_by == "loss" else -evaluation["score"]

    start = int(state.step)
    past = [judge(found) for found in runlog.evaluations(folder, until=start)]
    with runlog.open_log(
        folder, total_steps=config.fit.steps, start_step=start, process=processes.index()
    ) as log:
        return fitting.fit(
            config.fit,
            state,
            data,
            train_step=train_step,
            evaluate=evaluate,
            checkpoints=checkpoints,
            log=log,
            mesh=made.mesh,
            pad_id=made.model.pad_id,
            step_flops=flops.train_step(
                made.model,
                batch_size=config.batch_size,
                input_length=config.input_length,
                target_length=config.target_length,
            ),
            profiler=Profiler(folder / "profile", steps=config.fit.profile_steps),
            judge=judge,
            past=past,
        )


def _finish(config: FinetuneConfig, made: _Prepared, folder: Path) -> Finetuned:
    """Chooses the result, saves and measures it."""
    found = averaging.choose(folder / CHECKPOINTS, choice=config.use, count=config.average)
    name = "params" if made.abstract.average is None else "average"
    params = averaging.mean(folder / CHECKPOINTS, found, name, made.abstract.params)
    t5 = Text2Text(made.model, processes.gathered(params), made.tokenizer)
    if processes.is_first():
        t5.save(folder / MODEL, overwrite=True)
    which = f"the {config.use} checkpoint" if len(found) == 1 else f"the mean of {len(found)}"
    _say(f"\nthe result is {which} (step {', '.join(map(str, found))}): {folder / MODEL}")
    options = _options(config, config.final_num_beams)
    results: dict[Split, dict[str, dict[str, float]]] = {}
    for split in ("validation", "test"):
        trials = [one for one in made.trials if one.split == split]
        if trials:
            results[split] = _examine(t5, trials, options, folder, split)
            _say(f"{split}:")
            for line in _table(results[split]):
                _say(f"  {line}")
    _say(f"\nuse it:  import t5jax; t5 = t5jax.load({str(folder / MODEL)!r})")
    processes.barrier("the end of the run")
    return Finetuned(t5, results["validation"], results.get("test", {}))


def _prepare(
    tasks: list[Task],
    config: FinetuneConfig,
    architecture: Mapping[str, Any] | None,
    folder: Path,
) -> _Prepared:
    """Reads the tasks, and makes the folder the run's."""
    options = _recorded(tasks, config)
    runfolder.check(folder, options)
    if config.checkpoint is None:
        ingredients.check_files(config.model, config.tokenizer)
    mesh = sharding.make_mesh(config.mesh)
    train.check_batch_size(config.batch_size, mesh=mesh, accumulate=config.step.accumulate)
    texts = _read(tasks)
    loaded = None
    if config.checkpoint is not None:
        loaded = pretrained.load(config.checkpoint, mesh=mesh)
    tokenizer = _tokenizer(config, folder, texts, loaded[2] if loaded else None)
    model = _model(config, tokenizer, loaded[0] if loaded else None, architecture)
    pairs = {task.name: _pairs(config, tokenizer, task.name, texts.train) for task in tasks}
    shares = mixture.rates(
        {name: len(found) for name, found in pairs.items()},
        {task.name: task.weight for task in tasks},
        size_limit=config.size_limit,
    )
    trials = [
        _trial(config, tokenizer, task, split, texts.heldout[task.name, split])
        for task in tasks
        for split in ("validation", "test")
        if (task.name, split) in texts.heldout
    ]
    tx = optimizer.make(config.optimizer, total_steps=config.fit.steps, stacked=stacked)
    abstract = train.abstract_state(model, tx, mesh=mesh, options=config.step)
    runfolder.claim(
        folder,
        options,
        _digest(pairs),
        model=model,
        tokenizer=tokenizer,
        write=processes.is_first(),
    )
    params = loaded[1] if loaded else None
    return _Prepared(mesh, tokenizer, model, params, tx, abstract, pairs, shares, trials)


def _read(tasks: Sequence[Task]) -> _Data:
    found = _Data({}, {})
    for task in tasks:
        found.train[task.name] = tasking.read(task, "train")
        for split in ("validation", "test"):
            examples = tasking.read(task, split)
            if not examples:
                continue
            found.heldout[task.name, split] = examples
            shared = tasking.overlap(found.train[task.name], examples)
            if shared.inputs:
                _say(
                    f"warning: {shared.inputs} of {len(examples)} inputs in {split} of task "
                    f"{task.name!r} are in its training data too, {shared.pairs} of them with the "
                    "same target; scores may flatter."
                )
    return found


def _tokenizer(
    config: FinetuneConfig, folder: Path, texts: _Data, loaded: Tokenizer | None
) -> Tokenizer:
    if config.checkpoint is not None and config.tokenizer is None:
        if loaded is None:
            raise ValueError(
                f"tokenizer must be given for {config.checkpoint}, which comes without one."
            )
        return loaded

    def documents() -> Iterator[str]:
        for examples in texts.train.values():
            for one in examples:
                yield one.input
                yield from one.references

    return ingredients.tokenizer(
        folder,
        documents,
        source=config.tokenizer,
        vocab_size=config.vocab_size or 4000,
        say=_say,
    )


def _model(
    config: FinetuneConfig,
    tokenizer: Tokenizer,
    loaded: T5Config | None,
    architecture: Mapping[str, Any] | None,
) -> T5Config:
    given = {"dropout_rate": config.dropout_rate, "remat": config.remat}
    changes = {name: value for name, value in given.items() if value is not None}
    if loaded is None:
        changes = {**(architecture or {}), **changes}
        return ingredients.model(config.model, tokenizer, dtype=config.dtype, changes=changes)
    assert config.checkpoint is not None
    ingredients.check_vocabulary(loaded, config.checkpoint, tokenizer)
    return loaded.replace(**changes, dtype=resolve_dtype(config.dtype))


def _pairs(
    config: FinetuneConfig, tokenizer: Tokenizer, name: str, texts: Mapping[str, Sequence[Example]]
) -> Pairs:
    examples = texts[name]
    pairs, counts = mixture.limit(
        [_encode(tokenizer, one.input) for one in examples],
        [_encode(tokenizer, one.references[0]) for one in examples],
        limits=config.limits,
        name=name,
    )
    for line in _account(counts, config):
        _say(f"task {name!r}: {line}")
    return pairs


def _account(counts: Counts, config: FinetuneConfig) -> Iterator[str]:
    """What was not as it should be, and what became of it."""
    done = {"drop": "dropped", "truncate": "truncated", "keep": "kept", "error": "refused"}
    for count, what, policy in (
        (counts.long_inputs, "inputs are too long", config.too_long),
        (counts.long_targets, "targets are too long", config.too_long),
        (counts.empty_targets, "targets are empty", config.empty_targets),
    ):
        if count:
            yield f"{count} {what}, and {done[policy]}"


def _trial(
    config: FinetuneConfig, tokenizer: Tokenizer, task: Task, split: Split, examples: list[Example]
) -> Trial:
    inputs = [_encode(tokenizer, one.input) for one in examples]
    long = [len(ids) for ids in inputs if len(ids) > config.input_length]
    if long and config.too_long == "error":
        raise ValueError(
            f"inputs in {split} of task {task.name!r} must have at most {config.input_length} "
            f"tokens, got {len(long)} of {len(inputs)} with more, the longest {max(long)}; raise "
            "input_length, or set too_long to drop or truncate."
        )
    if long:
        _say(f"task {task.name!r}: {len(long)} inputs in {split} are too long, and truncated")
    return Trial(task, split, examples, [mixture.cut(x, config.input_length) for x in inputs])


def _spread(one: Trial, count: int | None) -> Trial:
    """At most `count` examples, evenly spaced."""
    step = 1 if count is None else -(-len(one.examples) // count)
    return one._replace(examples=one.examples[::step], inputs=one.inputs[::step])


def _batches(config: FinetuneConfig, made: _Prepared, one: Trial) -> Iterator[Batch]:
    """Validation examples to compute a loss on; long references are cut for it."""
    lengths = (config.input_length, config.target_length)
    targets = [
        mixture.cut(_encode(made.tokenizer, example.references[0]), config.target_length)
        for example in one.examples
    ]
    pairs = Pairs([mixture.Pair(*both) for both in zip(one.inputs, targets, strict=True)])
    ways = placement.ways(made.mesh)
    size = -(-config.eval_batch_size // ways) * ways
    return mixture.heldout(
        pairs,
        batch_size=size,
        lengths=lengths,
        pad_id=made.model.pad_id,
        decoder_start_id=made.model.decoder_start_id,
        rows=placement.rows(size, mesh=made.mesh),
    )


def _examine(
    t5: Text2Text, trials: Sequence[Trial], options: Options, folder: Path, name: str
) -> dict[str, dict[str, float]]:
    """Metrics of each trial, the same in all processes; predictions are written."""
    results = {}
    for one in trials:
        if processes.is_first():
            predictions = one.predictions(t5, options)
            one.write(folder / PREDICTIONS / f"{one.task.name}-{name}.jsonl", predictions)
            scores = one.scores(predictions)
        else:
            scores = dict.fromkeys(one.task.metrics, 0.0)
        values = processes.from_first(list(scores.values()))
        results[one.task.name] = dict(zip(scores, values, strict=True))
    return results


def _options(config: FinetuneConfig, num_beams: int) -> Options:
    beams: dict[str, Any] = {} if num_beams == 1 else {"length_penalty": config.length_penalty}
    return Options(
        num_beams=num_beams,
        max_new_tokens=config.target_length,
        max_input_tokens=config.input_length,
        batch_size=config.eval_batch_size,
        **beams,
    )


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return [*tokenizer.encode(text), tokenizer.eos_id]


def _digest(pairs: Mapping[str, Pairs]) -> str:
    found = hashlib.sha256()
    for name, one in pairs.items():
        found.update(f"{name} {len(one)}\n".encode())
        one.update(found)
    return found.hexdigest()


def _recorded(tasks: Sequence[Task], config: FinetuneConfig) -> dict[str, Any]:
    """All options on which the numbers of a run depend, by dotted name."""
    free = set(_FREE)
    if not config.optimizer.schedule.spans_run:
        free.add("fit.steps")  # such a run can be made longer
    named = {f"tasks.{task.name}.weight": task.weight for task in tasks}
    dtype = config.dtype if config.model.endswith(".json") else resolve_dtype(config.dtype)
    return {**runfolder.recorded(config, free=free), "dtype": dtype, **named}


def _describe(config: FinetuneConfig, made: _Prepared, state: train.TrainState) -> None:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    devices = " x ".join(f"{axis}={size}" for axis, size in made.mesh.shape.items())
    start = config.checkpoint or f"model {config.model}"
    _say(
        f"{start}: {parameters / 1e6:.1f} M parameters, vocabulary {made.model.vocab_size}, "
        f"{made.model.dtype}, on {jax.default_backend()} ({devices})"
    )
    for name, found in made.pairs.items():
        inputs, targets = found.tokens
        _say(
            f"task {name!r}: {len(found)} examples, {inputs / len(found):.1f} tokens an input, "
            f"{targets / len(found):.1f} a target, share {made.shares[name]:.1%}"
        )


def _table(results: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    for task, found in results.items():
        yield f"{task}: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items())
    if len(results) > 1:
        yield f"score over tasks: {trial.score(results):.2f}"


def _say(message: str) -> None:
    if processes.is_first():
        print(message, flush=True)
