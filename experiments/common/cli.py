"""The frame of every program: flags that fail in one line, quiet logs and exit codes."""

import contextlib
import itertools
import os
import pathlib
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

from experiments.common import startup
from jaxdiv import files
from jaxdiv.runs import processes, progress
from jaxdiv.runs.progress import log

TRACEBACK = flags.DEFINE_bool("traceback", False, "Show the whole traceback of an error.")
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "host:port of the first of several processes; `auto` where JAX finds them, as under Slurm and "
    "Open MPI. Hosts of a TPU slice find each other without it.",
)
PROCESSES = flags.DEFINE_integer(
    "processes", 1, "The number of processes, with --coordinator.", lower_bound=1
)
PROCESS = flags.DEFINE_integer("process", 0, "The number of this process, from 0.", lower_bound=0)
BAD_INPUT = 2
UNEXPECTED = 1  # Python's own exit code after an error
CLOSED_PIPE = 1  # as rich's console has it
_MAX_ERROR = 4000  # characters; a name in an error may be a megabyte long


def define_config() -> flags.FlagHolder:
    """Declares --config=FILE.py, whose keys --config.KEY=VALUE overrides."""
    return config_flags.DEFINE_config_file(
        "config", None, "An ml_collections config, such as configs/quickstart.py."
    )


def load_config(config: flags.FlagHolder) -> dict[str, Any]:
    """Returns the config as plain values. Raises ValueError if there is none."""
    if config.value is None:
        raise ValueError("give a config, such as --config=configs/quickstart.py")
    return config.value.to_dict()


def overrides(config: flags.FlagHolder) -> dict[str, Any]:
    """Returns the values that the command line sets in the config, by dotted key."""
    return config_flags.get_override_values(flags.FLAGS[config.name])


def define_log_format() -> None:
    """Declares --log_format=text or json; `run` itself reads it, even from a wrong command line."""
    flags.DEFINE_enum(
        startup.LOG_FORMAT,
        "text",
        startup.LOG_FORMATS,
        "The form of standard error: lines and bars, or JSON, an object a line.",
    )


def console(width: int) -> Console:
    """Returns a console for tables on standard output, with room for their columns in a pipe."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=width)


def enable_compilation_cache() -> None:
    """Turns JAX's persistent compilation cache on, in the user's folder or a default one."""
    if not jax.config.jax_compilation_cache_dir and (folder := files.user_cache()):
        jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    # A small run consists of small compilations.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # JAX's writes are not atomic: a half-written entry of another process is compiled anew.
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")


def run(main: Callable[[Sequence[str]], int | None], resumes: bool = False) -> None:
    """Runs an absl main.

    Bad input becomes one line on standard error and exit code 2. A closed pipe ends quietly.

    Args:
      main: the program; its result is the exit code.
      resumes: whether the same command continues an interrupted run.
    """
    with _as_json() if startup.is_json_requested() else contextlib.nullcontext():
        app.run(lambda argv: _guarded(main, argv, resumes), flags_parser=_parse)


@contextlib.contextmanager
def _as_json():
    """Turns all that Python writes on standard error within the block into events."""

    def emit(event, **fields):
        sys.stderr.write(startup.json_line(event, **fields))  # one call, since threads write, too
        sys.stderr.flush()

    def warn(message, kind, *_):
        progress.emit_event("warning", text=f"{kind.__name__}: {message}")

    def fail(error):
        text = f"in a thread: {error.exc_type.__name__}: {error.exc_value}"
        progress.emit_event("warning", text=text)

    with progress.redirect_events(emit), warnings.catch_warnings():
        warnings.showwarning = warn
        before, threading.excepthook = threading.excepthook, fail
        try:
            yield
        finally:
            threading.excepthook = before


def _guarded(main: Callable, argv: Sequence[str], resumes: bool) -> None:
    """Runs the program and turns every way in which it ends into an exit code."""
    # Orbax and its threads would log an error once more, each by itself.
    logging.set_verbosity(logging.ERROR if _libraries_log() else logging.FATAL)
    if len(argv) > 1:
        _fail(f"unexpected argument {argv[1]!r}; flags are written --name=value")
    enable_compilation_cache()
    sys.unraisablehook = _unraisable
    interrupt = startup.Interrupts()
    try:
        with interrupt:
            _join_processes(resumes)
            code = _run_until_stopped(main, argv) if resumes else main(argv)
            sys.stdout.flush()  # here a closed pipe can still be caught
            progress.emit_event("end", code=code or 0)
    except BrokenPipeError:
        # `| head` closes the pipe. Python would flush again at its end, and fail with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        progress.emit_event("end", code=CLOSED_PIPE)
        sys.exit(CLOSED_PIPE)
    except (KeyboardInterrupt, Exception) as error:
        # A signal inside a callback arrives as the error of the callback's caller.
        if interrupt.signum is not None or isinstance(error, KeyboardInterrupt):
            remedy = "; the same command goes on from what was saved" if resumes else ""
            _fail("interrupted" + remedy, code=128 + (interrupt.signum or signal.SIGINT))
        processes.check_for_failure()
        if not TRACEBACK.value and isinstance(error, ValueError | OSError):
            _fail(error)
        text, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
        if not progress.emit_event("error", text=text, code=UNEXPECTED, traceback=trace):
            traceback.print_exc()
        processes.fail(text, UNEXPECTED)
        sys.exit(UNEXPECTED)
    sys.exit(code)


def _run_until_stopped(main: Callable, argv: Sequence[str]) -> int | None:
    """Runs a program that trains; a training loop that a signal stopped is an exit code as well."""
    from jaxdiv.training import loop  # takes a second, which programs that don't train can save

    try:
        return main(argv)
    except loop.Stopped as stopped:
        log(f"{stopped}; the same command goes on from there")
        return 128 + stopped.signum


def _join_processes(resumes: bool) -> None:
    if COORDINATOR.value in ("", processes.AUTO) and (PROCESSES.value, PROCESS.value) != (1, 0):
        raise ValueError(
            "--processes and --process need --coordinator=HOST:PORT, the first of them"
        )
    if PROCESS.value >= PROCESSES.value:
        raise ValueError(f"--process={PROCESS.value} must be below --processes={PROCESSES.value}")
    if COORDINATOR.value and not resumes:
        raise ValueError("--coordinator is for what trains; this runs in one process")
    if resumes:
        processes.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value, _print_error)


def _libraries_log():
    """Returns whether libraries may log errors in their own words."""
    return TRACEBACK.value and not startup.is_json_requested()


def _unraisable(error):
    # A signal may arrive in a callback from which no error comes back.
    if isinstance(error.exc_value, startup.Interrupted):
        code = 128 + error.exc_value.signum
        _print_error("interrupted", code)
        os._exit(code)
    if _libraries_log():
        sys.__unraisablehook__(error)


def _parse(argv: Sequence[str]) -> Sequence[str]:
    """Parses the command line; what is wrong with it, or with the config file, ends the program."""
    files = [x.removeprefix("--config=") for x in argv if x.startswith("--config=")]
    files += [value for flag, value in itertools.pairwise(argv) if flag == "--config"]
    try:
        for file in files:
            if not pathlib.Path(file.split(":")[0]).is_file():
                configs = (
                    ", ".join(sorted(map(str, pathlib.Path("configs").glob("*.py")))) or "none"
                )
                raise flags.Error(f"--config={file}: there is no such file; known: {configs}")
        return flags.FLAGS(argv)
    except flags.Error as error:
        whole_number = "invalid literal for int() with base 10:"
        _fail(str(error).replace(whole_number, "must be a whole number, got"))
    except (AttributeError, KeyError) as error:
        _fail(_unknown_key(argv, error))
    except Exception as error:  # a config file is a program and may raise anything
        if "--traceback" in argv:
            raise
        _fail(f"the config can't be read: {type(error).__name__}: {error}")


def _unknown_key(argv: Sequence[str], error: Exception) -> str:
    """Returns the message for a key that the config lacks, which only the error's text names."""
    key = re.search(r"'([^']+)'", str(error).replace("\\", ""))
    name = key[1] if key else str(error)
    arguments = [x for x in argv if x.startswith("--config.") and name in re.split(r"[.=]", x)]
    argument = arguments[0] if arguments else f"--config.{name}"
    similar = re.search(r'Did you mean "([^"]+)"', str(error))
    remedy = f"did you mean `{similar[1]}`?" if similar else "docs/config.md lists the keys"
    return f"{argument}: there is no config key `{name}`; {remedy}"


def _fail(message, code=BAD_INPUT):
    text = " ".join(str(message).split())
    text = text if len(text) <= _MAX_ERROR else text[:_MAX_ERROR] + "..."
    _print_error(text, code)
    processes.fail(text, code)
    sys.exit(code)


def _print_error(text: str, code: int) -> None:
    """Prints the error that ends the process with `code`."""
    if not progress.emit_event("error", text=text, code=code):
        log("error: " + text, anyone=True)
