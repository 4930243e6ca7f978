"""SIGINT and SIGTERM outside the training loop, which has its own way to stop."""

import os
import signal

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The error that a signal becomes; `signum` is the signal's number."""

    def __init__(self, signum: int):
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


class Raising:
    """Turns the first signal of a block into Interrupted, so that files and bars are closed.

    A second signal ends the process at once. `signum` is the first signal, or None before it.
    """

    def __enter__(self):
        self.signum: int | None = None
        self._before = {signum: signal.signal(signum, self._handle) for signum in SIGNALS}
        return self

    def __exit__(self, *_):
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum, _frame):
        if self.signum is not None:
            os._exit(128 + signum)
        self.signum = signum
        raise Interrupted(signum)
