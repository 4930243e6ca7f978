"""One short binary a question."""

import os
import sys

from experiments.common import interrupts, json_logging

if sys.argv[0] == "-m":  # python -m is about to import one of them, which takes seconds
    interrupts.end_on_signals()
    if json_logging.asked(sys.argv):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # or XLA writes lines of its own
