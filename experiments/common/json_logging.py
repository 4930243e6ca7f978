"""--log_format=json: what a binary says on standard error as JSON, an object a line. It imports
nothing slow."""

import datetime
import itertools
import json
import sys
from collections.abc import Sequence
from typing import Any

FLAG, FORMATS = "log_format", ("text", "json")


def asked(argv: Sequence[str]) -> bool:
    """Whether this command line, which may be a wrong one, asks for JSON."""
    given = [a.lstrip("-") for a in argv]
    return f"{FLAG}=json" in given or (FLAG, "json") in itertools.pairwise(given)


def line(event: str, **fields: Any) -> str:
    """One event, at the time of the call."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now.replace("+00:00", "Z"), "event": event, **fields}) + "\n"


def emit(event: str, **fields: Any) -> None:
    """Writes the line at once, by one call: threads write, too."""
    sys.stderr.write(line(event, **fields))
    sys.stderr.flush()
