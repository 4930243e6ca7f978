"""Signals and JSON lines, which a program needs before its slow imports. Imports nothing slow."""

import datetime
import itertools
import json
import os
import signal
import sys
from typing import Any

LOG_FORMAT, LOG_FORMATS = "log_format", ("text", "json")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
    as_json = is_json_requested()

    def end(signum, _frame):
        code = 128 + signum
        line = json_line("error", text="interrupted", code=code)
        os.write(2, (line if as_json else "error: interrupted\n").encode())
        os._exit(code)

    for signum in _SIGNALS:
        signal.signal(signum, end)
    if as_json:
        # XLA reads this while it is loaded; its own lines would stand between the events.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def is_json_requested() -> bool:
    """Returns whether the command line asks for --log_format=json, even if the rest is wrong."""
    arguments = [argument.lstrip("-") for argument in sys.argv]
    pairs = itertools.pairwise(arguments)
    return f"{LOG_FORMAT}=json" in arguments or (LOG_FORMAT, "json") in pairs


def json_line(event: str, **fields: Any) -> str:
    """Returns one event with the current time, as a line of JSON."""
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": time.replace("+00:00", "Z"), "event": event, **fields}) + "\n"


class Interrupted(KeyboardInterrupt):
    """The error that a signal becomes; `signum` is the signal's number."""

    def __init__(self, signum: int):
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


class Interrupts:
    """Turns the first signal of a block into Interrupted, so that files and bars are closed.

    A second signal ends the process at once. `signum` is the first signal, or None before it. The
    training loop has its own way to stop.
    """

    def __enter__(self):
        self.signum: int | None = None
        self._before = {signum: signal.signal(signum, self._handle) for signum in _SIGNALS}
        return self

    def __exit__(self, *_):
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum, _frame):
        if self.signum is not None:
            os._exit(128 + signum)
        self.signum = signum
        raise Interrupted(signum)
