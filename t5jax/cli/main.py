"""Command lines from dataclasses, and errors that read as one sentence."""

import contextlib
import errno
import functools
import operator
import os
import sys
import threading
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from t5jax.parallel import RunAborted

Config = TypeVar("Config")
_PACKAGE = Path(__file__).parents[1]
# Held by the thread that ends the process.
_ending = threading.Lock()


def run_command(
    config_class: type[Config] | types.UnionType,
    function: Callable[[Config], object],
    *,
    description: str | None = None,
    name: str | None = None,
) -> None:
    """Parse the command line into a config, call the function, and exit.

    The exit status is 0, 2 after an error that the user can mend, 130 after a Ctrl-C that the
    function did not handle itself (a training run saves, and ends with 0), 1 after the failure of
    any process of several that run together. A ValueError raised by t5jax itself, or any OSError,
    prints as one sentence; anything else keeps its traceback, and T5JAX_TRACEBACK=1 keeps all.

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
    previous_hook, threading.excepthook = threading.excepthook, _end_if_aborted
    try:
        config = tyro.cli(form, description=description, prog=name)
        function(config)
    except RunAborted as error:
        _end(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        if not _is_expected(error):
            raise
        print(_sentence(error), file=sys.stderr)
        sys.exit(2)
    finally:
        threading.excepthook = previous_hook


def entry() -> None:
    """Run the command `t5jax`."""
    from t5jax.cli import convert, evaluate, generate, inspect, plan

    commands: dict[type, Callable[[Any], object]] = {
        generate.Generate: generate.generate,
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


def _end(aborted: RunAborted) -> NoReturn:
    """Say why the processes of a run end, and end this one at once with exit status 1.

    Not `sys.exit`: in its exit handlers JAX waits for processes that are gone, and then aborts.
    """
    _ending.acquire()  # never released: the main thread and one that watches may both come here
    error = aborted.__cause__ or aborted
    with contextlib.suppress(OSError, ValueError):  # the reader of a pipe may be gone
        if error is aborted or _is_expected(error):
            print(f"\n{_sentence(error)}", file=sys.stderr)
        else:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(1)


def _end_if_aborted(failure: threading.ExceptHookArgs) -> None:
    """Handle the error of a thread: the main one may be waiting for a process that is gone."""
    if isinstance(failure.exc_value, RunAborted):
        _end(failure.exc_value)
    threading.__excepthook__(failure)


def _sentence(error: BaseException) -> str:
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    return f"error: {error}" + ("; make room and run the same command again" if full else "")


def _is_expected(error: BaseException) -> bool:
    """Return True for an error that its sentence explains, without a traceback."""
    if os.environ.get("T5JAX_TRACEBACK"):
        return False
    return isinstance(error, OSError) or (isinstance(error, ValueError) and _raised_here(error))


def _raised_here(error: BaseException) -> bool:
    """Return True if the package raised an error, or a file in the folder of the program."""
    program = getattr(sys.modules["__main__"], "__file__", None)
    ours = {_PACKAGE} if program is None else {_PACKAGE, Path(program).resolve().parent}
    frames = traceback.extract_tb(error.__traceback__)
    return any(ours & {*Path(frame.filename).resolve().parents} for frame in frames[-1:])
