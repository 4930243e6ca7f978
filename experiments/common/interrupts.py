"""What SIGINT and SIGTERM do outside of the training loop, which has its own way to end."""

import os
import signal
import sys

from experiments.common import json_logging

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """`signum` came."""

    def __init__(self, signum: int):
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


class Raising:
    """The first signal becomes Interrupted, and `signum`, so that files and bars are left in order;
    a second ends."""

    def __enter__(self):
        self.signum: int | None = None
        self._before = {signum: signal.signal(signum, self._note) for signum in SIGNALS}
        return self

    def __exit__(self, *_):
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum, _frame):
        if self.signum is not None:
            os._exit(128 + signum)
        self.signum = signum
        raise Interrupted(signum)


def end_on_signals() -> None:
    """From here on a signal ends the process with one line: for the seconds of imports, in which
    nothing is begun."""
    for signum in SIGNALS:
        signal.signal(signum, _end)


def _end(signum, _frame):
    text, code = "interrupted", 128 + signum
    told = (
        json_logging.line("error", text=text, code=code)
        if json_logging.asked(sys.argv)
        else f"error: {text}\n"
    )
    os.write(2, told.encode())
    os._exit(code)
