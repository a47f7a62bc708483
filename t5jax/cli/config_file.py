"""`--config FILE`: read options from a YAML or JSON file."""

import dataclasses
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

from t5jax.errors import suggest
from t5jax.fileio import read_text

# Groups of the most common options, unprefixed on the command line: `--steps`, not `--fit.steps`.
UNPREFIXED = ("fit", "step")


def expand_config(arguments: Sequence[str], config_class: type) -> list[str]:
    """Replace `--config FILE` with the options in the file.

    The file maps names to values, nested like the config: `data: {path: text.txt}` is `--data.path
    text.txt`.  File options come first, so those on the command line override them.

    Args:
      arguments: command-line arguments, without the name of the command.
      config_class: dataclass that the arguments are parsed into.
    Returns:
      The arguments without `--config`.
    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: `--config` has no value, or the file is invalid or has unknown options.
    """
    rest, from_file = list(arguments), []
    for place, argument in enumerate(rest):
        if argument == "--config":
            if place + 1 == len(rest):
                raise ValueError("--config must be followed by a file, got none.")
            from_file, rest[place : place + 2] = read_arguments(rest[place + 1], config_class), []
            break
        if argument.startswith("--config="):
            from_file = read_arguments(argument.removeprefix("--config="), config_class)
            del rest[place]
            break
    return from_file + rest


def read_arguments(path: str, config_class: type) -> list[str]:
    """Convert the options in a YAML or JSON file to command-line arguments.

    Args:
      path: YAML or JSON file.
      config_class: dataclass with the options as fields.
    Returns:
      Option names, each followed by its values.
    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file is invalid or has unknown options.
    """
    import yaml

    if not Path(path).is_file():
        raise FileNotFoundError(f"config must be an existing YAML or JSON file, got {path}.")
    try:
        values = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"config must be a YAML or JSON file, got {path}: {reason}.") from error
    return list(_arguments(path, {} if values is None else values, config_class, ""))


def _arguments(source: str, values: object, config_class: type, prefix: str) -> Iterator[str]:
    if not isinstance(values, dict):
        what = prefix.rstrip(".") or "the file"
        raise ValueError(f"{source}: {what} must map option names to values, got {values!r:.80}.")
    types = typing.get_type_hints(config_class)
    names = [field.name for field in dataclasses.fields(config_class)]
    for name, value in values.items():
        if name not in names:
            hint = suggest(str(name), names, f"choose one of {', '.join(names)}.")
            raise ValueError(f"{source}: unknown option {prefix}{name}; {hint}")
        if dataclasses.is_dataclass(types[name]):
            yield from _arguments(source, value, types[name], f"{prefix}{name}.")
        else:
            group, _, rest = f"{prefix}{name}".partition(".")
            yield from _option(rest if group in UNPREFIXED else f"{prefix}{name}", value)


def _option(name: str, value: object) -> Iterator[str]:
    """Yield an option and its values; True becomes `--option`, False `--no-option`."""
    path, _, last = name.replace("_", "-").rpartition(".")
    dotted = f"{path}." if path else ""
    if value is False:
        yield f"--{dotted}no-{last}"
        return
    yield f"--{dotted}{last}"
    if isinstance(value, list):
        yield from map(str, value)
    elif value is not True:
        yield str(value)
