"""One short binary a question."""

import sys

from experiments import interrupts

if sys.argv[0] == "-m":  # python -m is about to import one of them, which takes seconds
    interrupts.end_on_signals()
