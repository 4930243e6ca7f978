"""What every binary shares: flags that fail in one line, quiet logs, exit codes."""

import contextlib
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
from ml_collections import ConfigDict, config_flags
from rich.console import Console

from experiments.common import interrupts, json_logging
from jaxdiv.runs import processes, progress
from jaxdiv.runs.progress import say

TRACEBACK = flags.DEFINE_bool("traceback", False, "Show the whole traceback of an error.")
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "host:port of the first of several processes; `auto` where JAX finds them, as under Slurm and Open MPI. Hosts of a "
    "TPU slice find each other without it.",
)
PROCESSES = flags.DEFINE_integer(
    "processes", 1, "How many processes there are, with --coordinator.", lower_bound=1
)
PROCESS = flags.DEFINE_integer("process", 0, "Which of them this is, from 0.", lower_bound=0)
BAD_INPUT = 2
_LONGEST = 4000  # characters of an error: what it names may be a megabyte
UNEXPECTED = 1  # as Python ends then
CLOSED_PIPE = 1  # as rich's console ends then


def define_config() -> flags.FlagHolder:
    """Declares --config=FILE.py, whose keys can be overridden by --config.KEY=VALUE."""
    return config_flags.DEFINE_config_file(
        "config", None, "An ml_collections config, such as configs/quickstart.py."
    )


def define_log_format() -> None:
    """Declares --log_format=text or json, which `run` reads from the command line itself: that may
    be a wrong one."""
    flags.DEFINE_enum(
        json_logging.FLAG,
        "text",
        json_logging.FORMATS,
        "What standard error shows: lines and bars, or JSON, an object a line.",
    )


def run(main: Callable[[Sequence[str]], int | None], resumes: bool = False) -> None:
    """Runs an absl main; bad input becomes one line on standard error and exit code 2, a reader
    that left nothing.

    Args:
      resumes: whether the same command goes on where it was interrupted.
    """
    with _as_json() if json_logging.is_requested(sys.argv) else contextlib.nullcontext():
        app.run(lambda argv: _guarded(main, argv, resumes), flags_parser=_parse)


@contextlib.contextmanager
def _as_json():
    """Within the block all that Python says on standard error is events."""
    with progress.told_to(json_logging.emit), warnings.catch_warnings():
        warnings.showwarning = lambda message, kind, *_: progress.event(
            "warning", text=f"{kind.__name__}: {message}"
        )
        before, threading.excepthook = threading.excepthook, _of_thread
        try:
            yield
        finally:
            threading.excepthook = before


def _of_thread(told):
    progress.event("warning", text=f"in a thread: {told.exc_type.__name__}: {told.exc_value}")


def _guarded(main, argv, resumes):
    # Of an error that is told, Orbax and its threads tell once more, each by itself.
    logging.set_verbosity(logging.ERROR if _aloud() else logging.FATAL)
    if len(argv) > 1:
        _fail(f"unexpected argument {argv[1]!r}; flags are written --name=value")
    keep_compilations()
    sys.unraisablehook = _unraisable
    interrupt = interrupts.Raising()
    try:
        with interrupt:
            _join(resumes)
            code = main(argv)
            sys.stdout.flush()  # while a reader that has gone can still be caught
            progress.event("end", code=code or 0)
    except BrokenPipeError:
        # As `| head` does. Python would flush once more at its end, and tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        progress.event("end", code=CLOSED_PIPE)
        sys.exit(CLOSED_PIPE)
    except (KeyboardInterrupt, Exception) as error:
        # Where a callback met the signal, its caller's error comes in its place.
        if interrupt.signum is not None or isinstance(error, KeyboardInterrupt):
            mend = "; the same command goes on from what was saved" if resumes else ""
            _fail("interrupted" + mend, code=128 + (interrupt.signum or signal.SIGINT))
        processes.heed()
        if not TRACEBACK.value and isinstance(error, ValueError | OSError):
            _fail(error)
        told = f"{type(error).__name__}: {error}"
        if not progress.event(
            "error", text=told, code=UNEXPECTED, traceback=traceback.format_exc()
        ):
            traceback.print_exc()
        processes.fail(told, UNEXPECTED)
        sys.exit(UNEXPECTED)
    sys.exit(code)


def _join(resumes):
    if COORDINATOR.value in ("", processes.AUTO) and (PROCESSES.value, PROCESS.value) != (1, 0):
        raise ValueError(
            "--processes and --process need --coordinator=HOST:PORT, the first of them"
        )
    if PROCESS.value >= PROCESSES.value:
        raise ValueError(f"--process={PROCESS.value} must be below --processes={PROCESSES.value}")
    if COORDINATOR.value and not resumes:
        raise ValueError("--coordinator is for what trains; this runs in one process")
    if resumes:
        processes.begin(COORDINATOR.value, PROCESSES.value, PROCESS.value, _tell_error)


def _aloud():
    """Whether libraries may tell of errors, in words of their own."""
    return TRACEBACK.value and not json_logging.is_requested(sys.argv)


def _unraisable(told):
    if isinstance(
        told.exc_value, interrupts.Interrupted
    ):  # it met a callback from which no error comes back
        code = 128 + told.exc_value.signum
        _tell_error("interrupted", code)
        os._exit(code)
    if _aloud():
        sys.__unraisablehook__(told)


def keep_compilations() -> None:
    """Turns JAX's persistent compilation cache on, unless the user already chose a folder."""
    if not jax.config.jax_compilation_cache_dir:
        base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(base) / "jaxdiv" / "xla"))
    jax.config.update(
        "jax_persistent_cache_min_compile_time_secs", 0
    )  # a small run is all small compilations


def console(width: int) -> Console:
    """That of standard output for tables, which need their columns even where it is piped to a
    narrower default."""
    made = Console()
    return made if made.is_terminal else Console(width=width)


def loaded(config: flags.FlagHolder) -> ConfigDict:
    """The config of a binary that can't do without one."""
    if config.value is None:
        raise ValueError("give a config, such as --config=configs/quickstart.py")
    return config.value


def typed(config: flags.FlagHolder) -> dict[str, Any]:
    """Dotted key to value of what the command line overrides in the config's file."""
    return config_flags.get_override_values(flags.FLAGS[config.name])


def _parse(argv):
    try:
        _check_config_file(argv)
        return flags.FLAGS(argv)
    except flags.Error as error:
        _fail(
            str(error).replace(
                "invalid literal for int() with base 10:", "must be a whole number, got"
            )
        )
    except (AttributeError, KeyError) as error:
        _fail(_unknown_key(argv, error))
    except Exception as error:  # a config file is a program: whatever it raises is about that file
        if "--traceback" in argv:
            raise
        _fail(f"the config can't be read: {type(error).__name__}: {error}")


def _check_config_file(argv):
    for given in _values(argv, "--config"):
        path = pathlib.Path(given.split(":")[0])
        if not path.is_file():
            near = sorted(str(found) for found in pathlib.Path("configs").glob("*.py"))
            raise flags.Error(
                f"--config={given}: there is no such file; known: {', '.join(near) or 'none'}"
            )


def _values(argv, name):
    for i, argument in enumerate(argv):
        if argument.startswith(name + "="):
            yield argument.removeprefix(name + "=")
        elif argument == name and i + 1 < len(argv):
            yield argv[i + 1]


def _unknown_key(argv, error):
    key = re.search(r"'([^']+)'", str(error).replace("\\", ""))
    name = key.group(1) if key else str(error)
    written = next(
        (a for a in argv if a.startswith("--config.") and name in re.split(r"[.=]", a)),
        f"--config.{name}",
    )
    near = re.search(r'Did you mean "([^"]+)"', str(error))
    mend = f"did you mean `{near.group(1)}`?" if near else "the config file lists the keys"
    return f"{written}: there is no config key `{name}`; {mend}"


def _fail(message, code=BAD_INPUT):
    text = " ".join(str(message).split())
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
    _tell_error(text, code)
    processes.fail(text, code)
    sys.exit(code)


def _tell_error(text: str, code: int) -> None:
    """Says what ends the process with `code`."""
    if not progress.event("error", text=text, code=code):
        say("error: " + text, anyone=True)
