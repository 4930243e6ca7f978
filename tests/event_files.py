"""TensorBoard's event files, read record by record."""

import pathlib
import struct
from collections.abc import Iterator

from tensorboardX.proto.event_pb2 import Event


def records(folder: pathlib.Path) -> Iterator[Event]:
    """The events of all files below `folder`: each is its length, a checksum of it, the message, a
    checksum of that."""
    for path in sorted(folder.rglob("events*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def scalars(folder: pathlib.Path) -> dict[str, dict[int, float]]:
    """Returns the scalars of a folder: tag to step to value."""
    values = {}
    for event in records(folder):
        for value in event.summary.value:
            by_step = values.setdefault(value.tag, {})
            assert event.step not in by_step, f"{value.tag} twice at step {event.step}"
            by_step[event.step] = value.simple_value
    return values
