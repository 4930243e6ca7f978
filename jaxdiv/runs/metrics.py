"""Every run's trackers: curves as JSON lines for machines, TensorBoard scalars for eyes, events for
who reads along."""

import contextlib
import json
import pathlib
import time
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from jaxdiv import files
from jaxdiv.runs import progress
from jaxdiv.runs.trackers import TrackedStage

CURVE_COLUMNS = ["step", "loss", "seed", "metric", "value"]


class Curves:
    """Writes `{"step": n, metric: {loss: [one number a seed]}}`, one line a step, without times.

    Lines of steps after the stage's `done`, which a killed run may have left, are dropped.

    Raises OSError, here and in `write`, if the folder can't be written to.
    """

    def __init__(self, stage: TrackedStage):
        self._stage = stage
        path = stage.folder / f"{stage.name}.jsonl"
        kept = [line for line, record in _records(path) if record["step"] <= stage.done]
        files.write_text(path, "".join(kept))
        with _writing(stage.folder):
            self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def write(
        self, step: int, students: Mapping[str, np.ndarray], clock: Mapping[str, float]
    ) -> None:
        with _writing(self._stage.folder):
            self._file.write(json.dumps({"step": step, **self._stage.by_loss(students)}) + "\n")

    def close(self) -> None:
        with _writing(self._stage.folder):
            self._file.close()


class Board:
    """An event file of TensorBoard. tensorboardX's own SummaryWriter waits for ever once its thread
    met a full disk."""

    def __init__(self, stage: TrackedStage):
        self._stage = stage
        folder = stage.folder / "tensorboard" / stage.name
        with _writing(stage.folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = EventsWriter(str(folder / "events"))
            # TensorBoard then hides what a killed run wrote of later steps.
            start = SessionLog(status=SessionLog.START)
            self._file.write_event(Event(step=stage.done + 1, session_log=start))

    def write(
        self, step: int, students: Mapping[str, np.ndarray], clock: Mapping[str, float]
    ) -> None:
        scalars = self._stage.flat(students) | {
            f"clock/{name}": value for name, value in clock.items()
        }
        with _writing(self._stage.folder):
            for tag, value in scalars.items():
                self._file.write_event(
                    Event(wall_time=time.time(), step=step, summary=scalar(tag, value))
                )
            self._file.flush()

    def close(self) -> None:
        with _writing(self._stage.folder):
            self._file.close()


class Events:
    """An event `metrics` at each measurement, where a machine reads along."""

    def __init__(self, stage: TrackedStage):
        self._stage = stage

    def write(
        self, step: int, students: Mapping[str, np.ndarray], clock: Mapping[str, float]
    ) -> None:
        if self._stage.measures(step):
            told = {
                "seeds": list(self._stage.seeds),
                "students": self._stage.by_loss(students),
                "clock": dict(clock),
            }
            progress.emit_event("metrics", step=step, **told)

    def close(self) -> None:
        pass


BUILT_IN = (Curves, Board, Events)


@contextlib.contextmanager
def _writing(folder):
    try:
        yield
    except OSError as error:
        raise OSError(
            f"the curves in {folder} can't be written: {error.strerror or error}"
        ) from error


def read_curves(folder: pathlib.PurePath, name: str, seeds: Sequence[int]) -> pd.DataFrame:
    """Columns step, loss, seed, metric, value; empty if nothing was written."""
    rows = []
    for _, record in _records(folder / f"{name}.jsonl"):
        step = record.pop("step")
        for metric, losses in record.items():
            for loss, values in losses.items():
                rows += [
                    (step, loss, s, metric, v)
                    for s, v in zip(seeds, values, strict=True)
                    if v is not None
                ]
    return pd.DataFrame(rows, columns=CURVE_COLUMNS)


def _records(path):
    """(line, what it says) of whole lines: a killed run may have cut the last one short."""
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
