"""The trackers of every run: curves as JSON lines, TensorBoard scalars, and events."""

import contextlib
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from jaxdiv import files
from jaxdiv.runs import progress
from jaxdiv.runs.trackers import Clock, Students, TrackedStage

CURVE_COLUMNS = ["step", "loss", "seed", "metric", "value"]


class Curves:
    """Writes `{"step": n, metric: {loss: [one number a seed]}}`, one line a step, without times.

    Lines of steps after the stage's start, which a killed run may have left, are dropped.

    Raises:
      OSError: here and in `write`, if the folder can't be written to.
    """

    def __init__(self, stage: TrackedStage):
        self._stage = stage
        path = stage.folder / f"{stage.name}.jsonl"
        lines = [line for line, record in _records(path) if record["step"] <= stage.done]
        files.write_text(path, "".join(lines))
        with _naming_folder(stage.folder):
            self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def write(self, step: int, students: Students, clock: Clock) -> None:
        with _naming_folder(self._stage.folder):
            self._file.write(json.dumps({"step": step, **self._stage.by_loss(students)}) + "\n")

    def close(self) -> None:
        with _naming_folder(self._stage.folder):
            self._file.close()


class TensorBoard:
    """Writes an event file of TensorBoard.

    tensorboardX's own SummaryWriter is not used: once its thread met a full disk, it waits forever.
    """

    def __init__(self, stage: TrackedStage):
        self._stage = stage
        folder = stage.folder / "tensorboard" / stage.name
        with _naming_folder(stage.folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = EventsWriter(str(folder / "events"))
            # TensorBoard then hides what a killed run wrote of later steps.
            start = SessionLog(status=SessionLog.START)
            self._file.write_event(Event(step=stage.done + 1, session_log=start))

    def write(self, step: int, students: Students, clock: Clock) -> None:
        scalars = self._stage.flat(students)
        scalars |= {f"clock/{name}": value for name, value in clock.items()}
        with _naming_folder(self._stage.folder):
            for tag, value in scalars.items():
                summary = scalar(tag, value)
                self._file.write_event(Event(wall_time=time.time(), step=step, summary=summary))
            self._file.flush()

    def close(self) -> None:
        with _naming_folder(self._stage.folder):
            self._file.close()


class Events:
    """Emits an event `metrics` at each measurement, for `--log_format=json`."""

    def __init__(self, stage: TrackedStage):
        self._stage = stage

    def write(self, step: int, students: Students, clock: Clock) -> None:
        if self._stage.measures(step):
            progress.emit_event(
                "metrics",
                step=step,
                seeds=list(self._stage.seeds),
                students=self._stage.by_loss(students),
                clock=dict(clock),
            )

    def close(self) -> None:
        pass


BUILT_IN = (Curves, TensorBoard, Events)


@contextlib.contextmanager
def _naming_folder(folder):
    try:
        yield
    except OSError as error:
        raise OSError(
            f"the curves in {folder} can't be written: {error.strerror or error}"
        ) from error


def read_curves(folder: pathlib.PurePath, name: str, seeds: Sequence[int]) -> pd.DataFrame:
    """Returns the curves of a stage with `CURVE_COLUMNS`; empty if nothing was written."""
    rows = [
        (record["step"], loss, seed, metric, value)
        for _, record in _records(folder / f"{name}.jsonl")
        for metric, losses in record.items()
        if metric != "step"
        for loss, values in losses.items()
        for seed, value in zip(seeds, values, strict=True)
        if value is not None
    ]
    return pd.DataFrame(rows, columns=CURVE_COLUMNS)


def _records(path: pathlib.PurePath) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each whole line with its record; a killed run may have cut the last line short."""
    if not path.exists():
        return
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if line.endswith(b"}\n"):
            try:
                text = line.decode()
                record = json.loads(text)
                yield text, {**record, "step": int(record["step"])}
            except (ValueError, KeyError, TypeError, RecursionError):
                raise ValueError(
                    f"{path}: line {number} is not what was written; delete it"
                ) from None
