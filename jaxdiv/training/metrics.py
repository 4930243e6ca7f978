"""Training curves: JSON lines for machines, TensorBoard scalars for eyes."""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from jaxdiv import files

CURVE_COLUMNS = ["step", "loss", "seed", "metric", "value"]


class Curves:
    """Writes `{"step": n, metric: {loss: [one number a seed]}}`, one line a step; what isn't finite is null."""

    def __init__(self, folder: pathlib.Path, name: str, losses: Sequence[str], seeds: Sequence[int], *, step: int):
        """Goes on after `step`: lines of later steps, which a killed run may have left, are dropped.

        Raises OSError, here and in `write`, if the folder can't be written to.
        """
        self._folder, self._losses, self._seeds = folder, losses, seeds
        path = folder / f"{name}.jsonl"
        kept = [line for line, record in _records(path) if record["step"] <= step]
        files.write_text(path, "".join(kept))
        with self._writing():
            self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
            self._board = _Board(folder / "tensorboard" / name, step=step)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with self._writing(), contextlib.closing(self._file), contextlib.closing(self._board):
            pass

    def write(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
        """`metrics`: name to values [losses, S]."""
        record, scalars = {"step": step}, {}
        for metric, values in metrics.items():
            record[metric] = {}
            for loss, row in zip(self._losses, np.asarray(values).tolist(), strict=True):
                record[metric][loss] = [value if math.isfinite(value) else None for value in row]
                scalars |= {f"{metric}/{loss}/{seed}": value for seed, value in zip(self._seeds, row, strict=True)}
        with self._writing():
            self._file.write(json.dumps(record) + "\n")
            self._board.write(step, scalars)

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except OSError as error:
            raise OSError(f"the curves in {self._folder} can't be written: {error.strerror or error}") from error


class _Board:
    """An event file of TensorBoard. tensorboardX's own SummaryWriter waits for ever once its thread met a full disk."""

    def __init__(self, folder, *, step):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        # TensorBoard then hides what a killed run wrote of later steps.
        self._file.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step, scalars):
        for tag, value in scalars.items():
            self._file.write_event(Event(wall_time=time.time(), step=step, summary=scalar(tag, value)))
        self._file.flush()

    def close(self):
        self._file.close()


def read_curves(folder: pathlib.Path, name: str, seeds: Sequence[int]) -> pd.DataFrame:
    """Columns step, loss, seed, metric, value; empty if nothing was written."""
    rows = []
    for _, record in _records(folder / f"{name}.jsonl"):
        step = record.pop("step")
        for metric, losses in record.items():
            for loss, values in losses.items():
                rows += [(step, loss, s, metric, v) for s, v in zip(seeds, values, strict=True) if v is not None]
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
                raise ValueError(f"{path}: line {number} is not what was written; delete it") from None
