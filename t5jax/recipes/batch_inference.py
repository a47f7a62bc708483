"""Resumable generation for a file: one output per input, in the order of the file."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from t5jax.data import KNOWN_ENDINGS, file_ending, read_rows
from t5jax.fileio import JsonObject, exclusive, write_atomically
from t5jax.generation import (
    GenerationConfig,
    GenerationOverrides,
    detokenize,
    from_generation_file,
    merge_config,
)
from t5jax.interruption import stop_request
from t5jax.loading import load
from t5jax.models import LogitError, resolve_dtype
from t5jax.pretrained import find_generation_settings, locate_checkpoint
from t5jax.text2text import Text2Text

_FORMATS = (".txt", ".jsonl")


class FileReport(NamedTuple):
    """Summary of `generate_file`.

    Attributes:
      inputs: number of inputs.
      resumed: number of outputs reused from an interrupted call.
      dead_ends: number of outputs that are empty because the constraints allowed no token.
      logit_error: error of the logits after int8 quantization; None for float weights.

    Examples:
      >>> report = t5jax.recipes.FileReport(inputs=1000, resumed=400, dead_ends=0, logit_error=None)
      >>> report.inputs - report.resumed
      600
    """

    inputs: int
    resumed: int
    dead_ends: int
    logit_error: LogitError | None


def generate_file(
    model: str,
    input: str,
    output: str,
    *,
    column: str = "text",
    config: GenerationConfig | None = None,
    overrides: GenerationOverrides | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    weights: Literal["float", "int8"] = "float",
    revision: str | None = None,
    subfolder: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> FileReport:
    """Generate an output for every row of a file.

    Finished outputs are saved in `<output>.partial`; after a crash, the same call resumes from it.

    Args:
      model: folder, file or hub id of a model in any format that `load` reads.
      input: .txt, .jsonl, .json, .csv, .tsv or .parquet file, optionally compressed.
      output: .txt file with one output per line, or .jsonl file with the keys input, output and
        finish_reason.
      column: column or JSON key of the text in `input`.
      config: generation options; default to those of the model's generation_config.json.
      overrides: options to replace.
      dtype: dtype of weights and computation.
      weights: "int8" quantizes the weights.
      revision: branch, tag or commit on the hub.
      subfolder: subfolder of the model in its folder or repository.
      overwrite: whether to replace an existing output, or a partial output of another call.
      progress: called with the number of finished outputs and the total, before the first batch
        and after every batch.
    Returns:
      The numbers of inputs, resumed outputs and dead ends.
    Raises:
      ValueError: an input is too long, a file has an unsupported format, or the partial output
        belongs to another call.
      FileExistsError: the output exists, or another process is writing it.

    Examples:
      >>> import pathlib
      >>> t5.save("model")
      >>> _ = pathlib.Path("in.txt").write_text("a\\nb\\n")
      >>> greedy = t5jax.GenerationConfig(max_new_tokens=2)
      >>> t5jax.recipes.generate_file("model", "in.txt", "out.jsonl", config=greedy).inputs
      2
    """
    if Path(output).suffix not in _FORMATS:
        raise ValueError(f"output must end in .txt or .jsonl, got {output!r}.")
    if not file_ending(input):
        raise ValueError(f"input must end in {KNOWN_ENDINGS}, got {input!r}.")
    located = locate_checkpoint(model, revision=revision, subfolder=subfolder)
    if config is None:
        config = from_generation_file(find_generation_settings(located), source=model)
    config = merge_config(config, overrides or {})
    path = Path(output).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        if path.exists() and not overwrite:
            raise FileExistsError(
                f"output must be a new file, got {path}, which exists; pass --overwrite."
            )
        texts = list(read_rows(input, column))
        source = {
            "model": model,
            "dtype": dtype,
            "weights": weights,
            "revision": revision,
            "subfolder": subfolder,
        }
        header = {"command": _fingerprint(source, config, texts), "inputs": len(texts)}
        partial = path.with_name(path.name + ".partial")
        done = _read_partial(partial, header, overwrite=overwrite)
        resumed = len(done)
        t5 = load(model, dtype=dtype, weights=weights, revision=revision, subfolder=subfolder)
        inputs = t5.tokenize(
            texts, max_tokens=config.max_input_tokens, truncate=config.truncate, name="inputs"
        )
        with _journal(partial, header, done) as write, stop_request().cleaned():
            if progress is not None:
                progress(len(done), len(texts))
            for batch in _generate(t5, config, inputs, done):
                write(batch)
                done |= batch
                if progress is not None:
                    progress(len(done), len(texts))
        write_atomically(path, "".join(_lines(path.suffix, texts, done)))
        partial.unlink()
    dead_ends = sum(reason == "dead_end" for _, reason in done.values())
    return FileReport(len(texts), resumed, dead_ends, t5.logit_error)


@contextlib.contextmanager
def _lock(output: Path) -> Iterator[None]:
    """Lock an output, so that only one process writes it."""
    lock = output.with_name(output.name + ".lock")
    message = (
        f"output must not be in use, got {output}, which another process is writing; wait for it "
        "to finish."
    )
    with exclusive(lock, message):
        yield
        lock.unlink(missing_ok=True)


# Position of an input -> its output and finish reason.
Done = dict[int, tuple[str, str]]


def _generate(
    t5: Text2Text, config: GenerationConfig, inputs: list[list[int]], done: Done
) -> Iterator[Done]:
    """Yield the outputs of inputs that are not done, batch by batch, shortest inputs first."""
    tokenizer = t5.tokenizer
    assert tokenizer is not None  # `tokenize` raises without one
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
            # One line per output, so line breaks become spaces.
            yield " ".join(answer.splitlines()) + "\n"


def _fingerprint(source: JsonObject, config: GenerationConfig, texts: list[str]) -> str:
    """Return a hash of everything that determines the outputs: model, options and inputs."""
    fields = {**source, **vars(config), "dtype": resolve_dtype(source["dtype"])}
    del fields["batch_size"]
    model = Path(source["model"]).expanduser()
    if model.exists():
        files = sorted(model.rglob("*")) if model.is_dir() else [model]
        stats = [(str(file), file.stat()) for file in files if file.is_file()]
        fields["model"] = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


def _read_partial(partial: Path, header: JsonObject, *, overwrite: bool) -> Done:
    """Read the outputs of an interrupted call, without an incomplete last line.

    Args:
      partial: partial output, if it exists.
      header: header of this call.
      overwrite: whether to ignore a damaged file or outputs of another call instead of raising.
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
                raise ValueError(f"invalid line {line!r:.60}")
            done[place] = (answer, reason)
    except (ValueError, TypeError) as error:
        if overwrite:
            return {}
        raise ValueError(
            f"{partial} is damaged: {error}; pass --overwrite to start over."
        ) from error
    if same:
        return done
    if overwrite:
        return {}
    raise ValueError(
        f"{partial} must be from the same command, got another model, input or options; repeat "
        "that command, or pass --overwrite to start over."
    )


@contextlib.contextmanager
def _journal(partial: Path, header: JsonObject, done: Done):
    """Open the partial output for appending; each batch is flushed to disk before the next."""
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
