"""One short binary a question."""

import os
import sys

from experiments import interrupts, lines

if sys.argv[0] == "-m":  # python -m is about to import one of them, which takes seconds
    interrupts.end_on_signals()
    if lines.asked(sys.argv):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # or XLA writes lines of its own
