"""Generation for a whole file: outputs in its order, each exactly once, also after a crash."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import filelock
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, Suppress, arg

from t5jax.data import KNOWN_ENDINGS, file_ending, read_rows
from t5jax.decoding import Automaton
from t5jax.fileio import write_atomically
from t5jax.generation import GenerationConfig, Ids, detokenize
from t5jax.loading import load
from t5jax.models import resolve_dtype
from t5jax.runtime import enable_compilation_cache
from t5jax.text2text import Text2Text

_FORMATS = (".txt", ".jsonl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Options(GenerationConfig):
    """A GenerationConfig with the types that a command line can express."""

    decoder_prefix: str | None = None
    bad_words_ids: Suppress[Sequence[Ids]] = ()
    automaton: Suppress[Automaton | None] = None
    truncate: FlagCreatePairsOff[bool] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate:
    """Generate an output for every line or row of a file.

    Inputs are computed by length, outputs come in their order.  Finished outputs are kept in
    OUTPUT.partial: after a crash or Ctrl-C, the same command continues from there.
    """

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """Folder, file or hub id of any format that t5jax loads."""
    input: Annotated[str, arg(metavar="FILE")]
    """.txt, .jsonl, .json, .csv, .tsv or .parquet, compressed or not."""
    output: Annotated[str, arg(metavar="FILE")]
    """.txt with a line for each output, or .jsonl with objects of input, output and
    finish_reason."""
    column: str = "text"
    """Column or key of the input that contains the text."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights and of the computation."""
    weights: Literal["float", "int8"] = "float"
    """int8 rounds weights, which is fastest on a CPU, and reports the change of the logits."""
    revision: Annotated[str | None, arg(metavar="NAME")] = None
    """Branch, tag or commit on the hub."""
    subfolder: Annotated[str | None, arg(metavar="FOLDER")] = None
    """Folder of the model in a folder or repository of several."""
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace the output, and the partial output of another command."""
    generation: OmitArgPrefixes[Annotated[GenerationConfig, arg(constructor=_Options)]] = _Options()
    """Options of the generation."""

    def __post_init__(self):
        if Path(self.output).suffix not in _FORMATS:
            raise ValueError(f"output must end in .txt or .jsonl, got {self.output!r}.")
        if not file_ending(self.input):
            raise ValueError(f"input must end in {KNOWN_ENDINGS}, got {self.input!r}.")


def generate_file(options: Generate) -> dict[str, int]:
    """Generate an output for every row of the input.

    Args:
      options: of the command.
    Returns:
      Counts: "inputs", "resumed" and "dead_ends".
    Raises:
      ValueError: an input that is too long, or a partial output of another command.
      FileExistsError: the output exists, or another process writes it.
    """
    enable_compilation_cache()
    output = Path(options.output).expanduser()
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(output.with_name(output.name + ".lock"))
    try:
        with lock.acquire(timeout=0):
            counts = _run(options, output)
            Path(lock.lock_file).unlink(missing_ok=True)
            return counts
    except filelock.Timeout:
        raise FileExistsError(
            f"{output} must be written by one process, and another one does; wait for it."
        ) from None


def _run(options: Generate, output: Path) -> dict[str, int]:
    partial = output.with_name(output.name + ".partial")
    if output.exists() and not options.overwrite:
        raise FileExistsError(f"{output} must not be there yet; choose another, or --overwrite it.")
    texts = list(read_rows(options.input, options.column))
    header = {"command": _fingerprint(options, texts), "inputs": len(texts)}
    done = _read_partial(partial, header, overwrite=options.overwrite)
    resumed = len(done)
    t5 = load(
        options.model,
        dtype=options.dtype,
        weights=options.weights,
        revision=options.revision,
        subfolder=options.subfolder,
    )
    if t5.logit_error:
        print(f"int8 weights: {t5.logit_error}")
    config = options.generation
    inputs = t5.tokenize(
        texts, max_tokens=config.max_input_tokens, truncate=config.truncate, name="inputs"
    )
    with _journal(partial, header, done) as write, _progress_bar(len(texts), resumed) as bar:
        try:
            for batch in _generate(t5, config, inputs, done):
                write(batch)
                done |= batch
                bar.update(len(batch))
        except KeyboardInterrupt:
            print(f"\n{len(done)} of {len(texts)} answers are kept; the same command goes on.")
            raise
    write_atomically(output, "".join(_lines(output.suffix, texts, done)))
    partial.unlink()
    dead = sum(reason == "dead_end" for _, reason in done.values())
    counts = {"inputs": len(texts), "resumed": resumed, "dead_ends": dead}
    print(f"wrote {len(texts)} answers to {output}" + f", {resumed} of them before" * bool(resumed))
    if dead:
        print(f"note: {dead} are empty, since the constraints left nothing to write")
    return counts


# Position of an input -> its output and finish reason.
Done = dict[int, tuple[str, str]]


def _generate(
    t5: Text2Text, config: GenerationConfig, inputs: list[list[int]], done: Done
) -> Iterator[Done]:
    """Yield the outputs of inputs that are not done, batch by batch, shortest inputs first."""
    tokenizer = t5.tokenizer
    assert tokenizer is not None  # or nothing could have been encoded
    todo = [i for i in range(len(inputs)) if i not in done]
    for batch in t5.engine.generate_batches([inputs[i] for i in todo], config, row_ids=todo):
        yield {
            todo[index]: (
                detokenize(
                    tokenizer, one.ids, stop_strings=config.stop_strings, prefix_len=one.prefix_len
                ),
                one.finish_reason,
            )
            for index, (one,) in batch.items()
        }


def _lines(suffix: str, texts: list[str], done: Done) -> Iterator[str]:
    for i, text in enumerate(texts):
        answer, reason = done[i]
        if suffix == ".jsonl":
            record = {"input": text, "output": answer, "finish_reason": reason}
            yield json.dumps(record, ensure_ascii=False) + "\n"
        else:
            # A line for each answer: a line break within one becomes a space.
            yield " ".join(answer.splitlines()) + "\n"


def _fingerprint(options: Generate, texts: list[str]) -> str:
    """Return a digest of everything that the outputs depend on, equal if they may be mixed."""
    fields = {**vars(options), **vars(options.generation)}
    for name in ("input", "column", "output", "overwrite", "generation", "batch_size"):
        del fields[name]
    fields["dtype"] = resolve_dtype(options.dtype)
    model = Path(options.model).expanduser()
    if model.exists():
        files = sorted(model.rglob("*")) if model.is_dir() else [model]
        stats = [(str(file), file.stat()) for file in files if file.is_file()]
        fields["model"] = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


def _read_partial(partial: Path, header: dict[str, Any], *, overwrite: bool) -> Done:
    """Read the outputs of an interrupted command, without a last line that was cut.

    Args:
      partial: partial output; may be absent.
      header: header of this command.
      overwrite: ignore the outputs of another command or a damaged file, instead of refusing them.
    """
    lines = partial.read_bytes().split(b"\n")[:-1] if partial.exists() else []
    done: Done = {}
    if len(lines) < 2:
        return done
    try:
        same = json.loads(lines[0]) == header
        for line in lines[1:]:
            place, answer, reason = json.loads(line)
            if not (place >= 0 and isinstance(answer, str) and isinstance(reason, str)):
                raise ValueError(f"a line holds {line!r:.60}")
            done[place] = (answer, reason)
    except (ValueError, TypeError) as error:
        if overwrite:
            return {}
        raise ValueError(
            f"{partial} must hold answers, and it is damaged: {error}; start over with --overwrite."
        ) from error
    if same:
        return done
    if overwrite:
        return {}
    raise ValueError(
        f"{partial} must be of the same command, and it is of one with another model, input or "
        "options; repeat that one, or start over with --overwrite."
    )


@contextlib.contextmanager
def _journal(partial: Path, header: dict[str, Any], done: Done):
    """Append outputs to the partial output, on disk before the next batch is computed."""
    lines = [json.dumps(header)]
    lines += [json.dumps([place, *answer]) for place, answer in done.items()]
    write_atomically(partial, "\n".join(lines) + "\n")
    with partial.open("a", encoding="utf-8") as file:

        def write(batch: Done) -> None:
            for place, answer in batch.items():
                file.write(json.dumps([place, *answer]) + "\n")
            file.flush()
            os.fsync(file.fileno())

        yield write


def _progress_bar(total: int, initial: int):
    from tqdm import tqdm

    return tqdm(total=total, initial=initial, unit="text", desc="generating", dynamic_ncols=True)
