"""Training curves: JSON lines for machines, TensorBoard scalars for eyes."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from tensorboardX import SummaryWriter

from jaxdiv import files

CURVE_COLUMNS = ["step", "loss", "seed", "metric", "value"]


class Curves:
    """Writes `{"step": n, metric: {loss: [one number a seed]}}`, one line a step; what isn't finite is null."""

    def __init__(self, folder: pathlib.Path, name: str, losses: Sequence[str], seeds: Sequence[int], *, step: int):
        """Goes on after `step`: lines of later steps, which a killed run may have left, are dropped."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.jsonl"
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= step]
        files.write_text(path, "".join(kept))
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._board = SummaryWriter(str(folder / "tensorboard" / name), purge_step=step + 1)
        self._losses, self._seeds = losses, seeds

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
        self._board.close()

    def write(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
        """`metrics`: name to values [losses, S]."""
        record = {"step": step}
        for metric, values in metrics.items():
            record[metric] = {}
            for loss, row in zip(self._losses, np.asarray(values).tolist(), strict=True):
                record[metric][loss] = [value if math.isfinite(value) else None for value in row]
                for seed, value in zip(self._seeds, row, strict=True):
                    self._board.add_scalar(f"{metric}/{loss}/{seed}", value, step)
        self._file.write(json.dumps(record) + "\n")


def read_curves(folder: pathlib.Path, name: str, seeds: Sequence[int]) -> pd.DataFrame:
    """Columns step, loss, seed, metric, value; empty if nothing was written."""
    rows = []
    for line in _lines(folder / f"{name}.jsonl"):
        record = json.loads(line)
        step = record.pop("step")
        for metric, losses in record.items():
            for loss, values in losses.items():
                rows += [(step, loss, s, metric, v) for s, v in zip(seeds, values, strict=True) if v is not None]
    return pd.DataFrame(rows, columns=CURVE_COLUMNS)


def _lines(path):
    """Whole lines: a killed run may have cut the last one short."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("}\n")]
