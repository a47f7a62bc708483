"""Command-line parsing into dataclasses, and one-line errors."""

import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import logging
import operator
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

from t5jax.cli.config_file import UNPREFIXED, expand_config
from t5jax.cli.streams import safe_streams
from t5jax.fileio import is_full
from t5jax.interruption import handle_signals
from t5jax.parallel import RunAborted

_PACKAGE = Path(__file__).parents[1]
# Seconds of an interrupted process to exit.
_EXIT_SECONDS = 2.0
# Held by the thread that terminates the process.
_ending = threading.Lock()


def run_command(
    config_class: Any,
    function: Callable[[Any], object],
    *,
    arguments: Sequence[str] | None = None,
    reads_config: bool = True,
    description: str | None = None,
    name: str | None = None,
) -> None:
    """Parse the command line into a config and call a function with it.

    The exit status is 0 on success, 2 after a user error, and 1 if any process of a multi-process
    run fails.  Ctrl-C and SIGTERM end the process within seconds with status 130 and 143, except in
    training, which saves its state and exits with 0; a second signal ends it at once.  A ValueError
    raised by t5jax, or any OSError, is printed as one line; other errors keep their traceback.
    T5JAX_TRACEBACK=1 prints all tracebacks.

    Args:
      config_class: dataclass whose fields become options and whose docstring becomes the help, or a
        union of dataclasses, one per subcommand.
      function: function to call with the config.
      arguments: command-line arguments; default to `sys.argv[1:]`.
      reads_config: whether to accept `--config FILE`, a YAML or JSON file of options.
      description: first paragraph of the help.
      name: name of the command in the help; defaults to that of the program.
    Raises:
      SystemExit: the command line is invalid, or the function failed or was interrupted.
    """
    with safe_streams(lenient=False), _exit_status():
        import tyro

        arguments = sys.argv[1:] if arguments is None else arguments
        if reads_config and isinstance(config_class, type):
            arguments = expand_config(arguments, config_class)
        form = _command_line(config_class)
        config = tyro.cli(form, args=arguments, description=description, prog=name)
        with _console_log():
            function(config)


@contextlib.contextmanager
def _exit_status() -> Iterator[None]:
    """Exit with a status and one line after signals and expected errors."""
    previous_hook, threading.excepthook = threading.excepthook, _end_if_aborted
    with handle_signals() as request:
        try:
            yield
            if request.number is not None:
                _exit_soon(0)
        except RunAborted as error:
            _end(error)
        except (KeyboardInterrupt, Exception) as error:
            # Libraries may turn an interruption into an error of their own.
            if request.number is not None or isinstance(error, KeyboardInterrupt):
                print("interrupted", file=sys.stderr)
                status = 128 + (request.number or signal.SIGINT)
                if request.number is not None:
                    _exit_soon(status)
                sys.exit(status)
            if not (isinstance(error, ValueError | OSError) and _is_expected(error)):
                raise
            print(_sentence(error), file=sys.stderr)
            sys.exit(2)
        finally:
            threading.excepthook = previous_hook


def _exit_soon(status: int) -> None:
    """End an interrupted process, even if a library waits for its threads at the exit of Python."""
    if "jax" in sys.modules:
        from t5jax.parallel import process_count

        if process_count() > 1:
            return  # the other processes would take this one for dead
    timer = threading.Timer(_EXIT_SECONDS, os._exit, (status,))
    timer.daemon = True
    timer.start()


class _Console(logging.Handler):
    """Log handler that prints above progress bars: warnings to stderr, the rest to stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        tqdm.write(self.format(record), file=stream)
        stream.flush()


@contextlib.contextmanager
def _console_log() -> Iterator[None]:
    """Print what the library logs from level INFO on; other loggers are left as they are."""
    logger, handler = logging.getLogger("t5jax"), _Console()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.propagate = False  # another library may have given the root logger a handler
    logger.setLevel(level or logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _Command(NamedTuple):
    module: str
    options: str
    function: str
    reads_config: bool = False
    # Whether the result is files, not what is printed.
    writes: bool = True

    def load(self) -> tuple[type, Callable[[Any], object]]:
        """Import the options dataclass and the function that takes one."""
        module = importlib.import_module(f"t5jax.cli.{self.module}")
        return getattr(module, self.options), getattr(module, self.function)


_COMMANDS = {
    "pretrain": _Command("pretrain", "Pretrain", "pretrain_and_show", reads_config=True),
    "finetune": _Command("finetune", "Finetune", "finetune_tasks", reads_config=True),
    "train-tokenizer": _Command(
        "train_tokenizer", "TrainTokenizer", "train_and_save", reads_config=True
    ),
    "generate": _Command("generate", "Generate", "generate"),
    "evaluate": _Command("evaluate", "Evaluate", "evaluate", writes=False),
    "convert": _Command("convert", "Convert", "convert"),
    "inspect": _Command("inspect", "Inspect", "inspect", writes=False),
    "plan": _Command("plan", "Plan", "plan", writes=False),
}


def entry(*arguments: str) -> None:
    """Run the `t5jax` command.

    Args:
      *arguments: a subcommand and its options; default to `sys.argv[1:]`.
    """
    arguments = arguments or tuple(sys.argv[1:])
    command = _COMMANDS.get(arguments[0]) if arguments else None
    lenient = command is not None and command.writes
    with safe_streams(lenient=lenient), _exit_status():
        _run(arguments)


def _run(arguments: tuple[str, ...]) -> None:
    from tyro.conf import subcommand

    if arguments == ("--version",):
        print(f"t5jax {importlib.metadata.version('t5jax')}")
        return
    if arguments and arguments[0] in _COMMANDS:
        name, *rest = arguments
        command = _COMMANDS[name]
        options, function = command.load()
        run_command(
            options,
            function,
            arguments=rest,
            reads_config=command.reads_config,
            name=f"t5jax {name}",
        )
        return
    # Print the help of all subcommands, or an error that suggests one.
    forms = [
        Annotated[_command_line(command.load()[0]), subcommand(name)]
        for name, command in _COMMANDS.items()
    ]
    run_command(
        functools.reduce(operator.or_, forms),
        lambda _: None,
        arguments=arguments,
        description="Train, use, evaluate, convert and inspect T5 models.",
        name="t5jax",
    )


def _command_line(config_class: Any) -> Any:
    """Return a subclass with the options of `UNPREFIXED` groups unprefixed."""
    from tyro.conf import arg

    from t5jax.training import RunConfig

    if not (isinstance(config_class, type) and issubclass(config_class, RunConfig)):
        return config_class

    fields = {field.name: field for field in dataclasses.fields(config_class)}
    unprefixed = [
        (
            name,
            Annotated[fields[name].type, arg(name="")],
            dataclasses.field(default=fields[name].default),
        )
        for name in UNPREFIXED
    ]
    return dataclasses.make_dataclass(
        config_class.__name__,
        unprefixed,
        bases=(config_class,),
        namespace={"__doc__": config_class.__doc__},
        frozen=True,
        kw_only=True,
    )


def _end(aborted: RunAborted) -> NoReturn:
    """Print the reason and exit immediately with status 1.

    `sys.exit` would run JAX's exit handlers, which wait for dead processes and then abort.
    """
    _ending.acquire()  # never released: main and watcher threads may both get here
    error = aborted.__cause__ or aborted
    with contextlib.suppress(OSError, ValueError):  # the pipe may be closed
        if error is aborted or _is_expected(error):
            print(f"\n{_sentence(error)}", file=sys.stderr)
        else:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(1)


def _end_if_aborted(failure: threading.ExceptHookArgs) -> None:
    """End the process on an aborted run: the main thread may be waiting for a dead process."""
    if isinstance(failure.exc_value, RunAborted):
        _end(failure.exc_value)
    threading.__excepthook__(failure)


def _sentence(error: BaseException) -> str:
    return f"error: {error}" + (
        "; free disk space and run the same command again" if is_full(error) else ""
    )


def _is_expected(error: BaseException) -> bool:
    """Return True if an error is printed as one line, without a traceback."""
    if os.environ.get("T5JAX_TRACEBACK"):
        return False
    return isinstance(error, OSError) or (isinstance(error, ValueError) and _raised_here(error))


def _raised_here(error: BaseException) -> bool:
    """Return True if t5jax or a file in the folder of the program raised an error."""
    program = getattr(sys.modules["__main__"], "__file__", None)
    ours = {_PACKAGE} if program is None else {_PACKAGE, Path(program).resolve().parent}
    frames = traceback.extract_tb(error.__traceback__)
    return any(ours & {*Path(frame.filename).resolve().parents} for frame in frames[-1:])
