"""The first call of every program, before its slow imports. This module imports nothing slow."""

import os
import signal
import sys

from experiments.common import interrupts, json_logging


def begin(name: str) -> None:
    """Prepares a program for its imports, which take seconds.

    From here on SIGINT or SIGTERM ends the process with one line, since nothing has started that
    could be lost. `cli.run` replaces these handlers.

    Args:
      name: the caller's `__name__`. Nothing happens unless it is "__main__", so that a program can
        be imported as a module.
    """
    if name != "__main__":
        return
    for signum in interrupts.SIGNALS:
        signal.signal(signum, _end)
    if json_logging.is_requested(sys.argv):
        # XLA reads this while it is loaded; its own lines would stand between the events.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _end(signum, _frame):
    text, code = "interrupted", 128 + signum
    if json_logging.is_requested(sys.argv):
        line = json_logging.line("error", text=text, code=code)
    else:
        line = f"error: {text}\n"
    os.write(2, line.encode())
    os._exit(code)
