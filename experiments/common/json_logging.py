"""--log_format=json: standard error as JSON, one object a line. Imports nothing slow."""

import datetime
import itertools
import json
import sys
from collections.abc import Sequence
from typing import Any

FLAG, FORMATS = "log_format", ("text", "json")


def is_requested(argv: Sequence[str]) -> bool:
    """Returns whether this command line asks for JSON, even if the rest of it is wrong."""
    arguments = [argument.lstrip("-") for argument in argv]
    return f"{FLAG}=json" in arguments or (FLAG, "json") in itertools.pairwise(arguments)


def line(event: str, **fields: Any) -> str:
    """Returns one event with the current time, as a line of JSON."""
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": time.replace("+00:00", "Z"), "event": event, **fields}) + "\n"


def emit(event: str, **fields: Any) -> None:
    """Writes one event to standard error by a single call, since threads write there too."""
    sys.stderr.write(line(event, **fields))
    sys.stderr.flush()
