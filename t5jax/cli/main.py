"""Command lines from dataclasses, and errors that read as one sentence."""

import errno
import functools
import operator
import os
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Config = TypeVar("Config")


_PACKAGE = Path(__file__).parents[1]


def run_command(
    config_class: type[Config] | types.UnionType,
    function: Callable[[Config], object],
    *,
    description: str | None = None,
    name: str | None = None,
) -> None:
    """Parse the command line into a config, call a function with it, and exit.

    The exit status is 0, 2 after an error that the user can correct, or 130 after a Ctrl-C that the
    function did not handle (a training run saves, and ends with 0).  A ValueError raised by t5jax
    itself, or any OSError, prints as one sentence; any other error keeps its traceback, and
    T5JAX_TRACEBACK=1 keeps all tracebacks.

    Args:
      config_class: a dataclass, whose fields become options and their docstrings the help; or a
        union of several, each a subcommand.
      function: the command.
      description: first paragraph of the help.
      name: name of the command in its help, by default that of the program.
    """
    import tyro

    # The types of tyro's arguments know no unions before Python 3.14.
    form: Any = config_class
    try:
        config = tyro.cli(form, description=description, prog=name)
        function(config)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        expected = isinstance(error, OSError) or _raised_here(error)
        if os.environ.get("T5JAX_TRACEBACK") or not expected:
            raise
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        remedy = "; make room and run the same command again" if full else ""
        print(f"error: {error}{remedy}", file=sys.stderr)
        sys.exit(2)


def entry() -> None:
    """Run the command `t5jax`."""
    from t5jax.cli import convert, evaluate, inspect, plan
    from t5jax.recipes import Generate, generate_file

    commands: dict[type, Callable[[Any], object]] = {
        Generate: generate_file,
        evaluate.Evaluate: evaluate.evaluate,
        convert.Convert: convert.convert,
        inspect.Inspect: inspect.inspect,
        plan.Plan: plan.plan,
    }
    run_command(
        functools.reduce(operator.or_, commands),
        lambda options: commands[type(options)](options),
        description="Use, convert and inspect T5 checkpoints.",
        name="t5jax",
    )


def _raised_here(error: BaseException) -> bool:
    """Return True if the package raised an error, or a file in the folder of the program."""
    program = getattr(sys.modules["__main__"], "__file__", None)
    ours = {_PACKAGE} if program is None else {_PACKAGE, Path(program).resolve().parent}
    frames = traceback.extract_tb(error.__traceback__)
    return any(ours & {*Path(frame.filename).resolve().parents} for frame in frames[-1:])
