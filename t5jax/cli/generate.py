"""`t5jax generate`: generate an output for every row of a file."""

import dataclasses
from typing import Annotated, Any, Literal, get_type_hints

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from t5jax.generation import GenerationConfig
from t5jax.recipes import generate_file
from t5jax.runtime import enable_compilation_cache

# Types that differ from those of GenerationConfig.
_TYPES: dict[str, Any] = {"decoder_prefix": str, "truncate": FlagCreatePairsOff[bool]}
_NOT_ON_COMMAND_LINE = ("bad_words_ids", "automaton")


def _options() -> type:
    """Make a dataclass of the options of GenerationConfig, with None for the model's."""
    types = get_type_hints(GenerationConfig)
    fields = []
    for field in dataclasses.fields(GenerationConfig):
        if field.name in _NOT_ON_COMMAND_LINE:
            continue
        kind = _TYPES.get(field.name, types[field.name])
        # An empty list and an unset flag stand for the model's too.
        unset = field.default if field.default == () or field.name == "truncate" else None
        default = "none" if field.default in (None, ()) else field.default
        if unset is None:
            kind = kind | None
        hint = f"(default: the model's, or {default})"
        kind = Annotated[kind, arg(help_behavior_hint=hint)]
        fields.append((field.name, kind, dataclasses.field(default=unset)))
    return dataclasses.make_dataclass(
        "Options", fields, namespace={"__doc__": GenerationConfig.__doc__}, frozen=True
    )


_Options = _options()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate:
    """Generate an output for every line or row of a file.

    Inputs are batched by length; outputs keep the input order.  Finished outputs are saved in
    OUTPUT.partial: after a crash or Ctrl-C, the same command resumes from there.

    Attributes:
      model: file, folder or Hugging Face Hub id, in any format that t5jax loads.
      input: .txt, .jsonl, .json, .csv, .tsv or .parquet file, optionally compressed.
      output: .txt with one output per line, or .jsonl with the keys input, output and
        finish_reason.
      column: input column or key that contains the text.
      dtype: dtype of the weights and the computation.
      weights: int8 quantizes the weights, fastest on CPU, and reports the error of the logits.
      revision: branch, tag or commit on the Hub.
      subfolder: subfolder of the model in a folder or repository.
      overwrite: replace an existing output, and the partial output of another command.
      generation: generation options.
    """

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    input: Annotated[str, arg(metavar="FILE")]
    output: Annotated[str, arg(metavar="FILE")]
    column: str = "text"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    weights: Literal["float", "int8"] = "float"
    revision: Annotated[str | None, arg(metavar="NAME")] = None
    subfolder: Annotated[str | None, arg(metavar="FOLDER")] = None
    overwrite: FlagCreatePairsOff[bool] = False
    generation: OmitArgPrefixes[_Options] = _Options()  # pyright: ignore[reportInvalidTypeForm]


def generate(options: Generate) -> None:
    """Generate an output for every row of a file and print a summary.

    Args:
      options: options of the command.
    Raises:
      ValueError: an input is too long, a file format is unsupported, or the partial output is from
        another command.
      FileExistsError: the output exists, or another process is writing it.
    """
    from tqdm import tqdm

    enable_compilation_cache()
    overrides: Any = {
        name: value
        for name, value in vars(options.generation).items()
        if value not in (None, ()) and not (name == "truncate" and not value)
    }
    bar: tqdm | None = None
    finished = 0

    def progress(done: int, total: int) -> None:
        nonlocal bar, finished
        finished = done
        if bar is None:
            bar = tqdm(
                total=total,
                initial=done,
                unit="text",
                desc="generating",
                dynamic_ncols=True,
                disable=None,
            )
        bar.update(done - bar.n)

    try:
        report = generate_file(
            options.model,
            options.input,
            options.output,
            column=options.column,
            overrides=overrides,
            dtype=options.dtype,
            weights=options.weights,
            revision=options.revision,
            subfolder=options.subfolder,
            overwrite=options.overwrite,
            progress=progress,
        )
    except KeyboardInterrupt:
        if bar is not None:
            print(f"\nkept {finished} of {bar.total} outputs; rerun the same command to resume.")
        raise
    finally:
        if bar is not None:
            bar.close()
    if report.logit_error:
        print(f"int8 weights: {report.logit_error}")
    before = f", {report.resumed} of them from an earlier run" if report.resumed else ""
    print(f"wrote {report.inputs} outputs to {options.output}{before}")
    if report.dead_ends:
        print(f"note: {report.dead_ends} outputs are empty: the constraints allowed no token")
