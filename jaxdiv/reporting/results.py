"""results.csv: one number a row, in ten columns that never change."""

import math
import os
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from jaxdiv import files

COLUMNS = (
    "loss",
    "seed",
    "context",
    "measure",
    "temperature",
    "gamma",
    "value",
    "low",
    "high",
    "n",
)
CONTEXTS = ("corpus", "generated", "generated_greedy", "images")
POOLED = "all"
UNTRAINED = "untrained"
ENOUGH_SEEDS = 3
FEW_SEEDS = "these students only"  # the verdict where there are fewer

# Two float32 trainings of one loss, written in two ways, part by this much in acceptance: no
# difference in losses.
ROUNDING = 1e-6

_TEXT = ("loss", "seed", "context", "measure")
_REAL = ("temperature", "gamma", "value", "low", "high", "n")
_COUNTS = ("gamma", "n")


def table(rows: Iterable[Mapping]) -> pd.DataFrame:
    """The frame of rows that are mappings; what a row leaves out is blank."""
    return _typed(pd.DataFrame(list(rows)).reindex(columns=list(COLUMNS)))


def check(frame: pd.DataFrame) -> None:
    """Raises ValueError unless the columns are exactly `COLUMNS`, in order."""
    found = tuple(frame.columns)
    if found == COLUMNS:
        return
    missing = [name for name in COLUMNS if name not in found]
    other = [str(name) for name in found if name not in COLUMNS]
    wrong = [f"missing: {', '.join(missing)}"] if missing else []
    wrong += [f"unknown: {', '.join(other)}"] if other else []
    raise ValueError(
        f"results need the columns {','.join(COLUMNS)} ({'; '.join(wrong) or 'in this order'})"
    )


def write_csv(frame: pd.DataFrame, path: str | os.PathLike) -> None:
    """Writes results so that `path` is never half written; blank where there is no number."""
    check(frame)
    plain = _typed(frame)
    for name in _COUNTS:
        plain[name] = plain[name].round().astype("Int64")
    plain["temperature"] = [_shortest(value) for value in plain["temperature"]]
    files.write_text(path, plain.to_csv(index=False, lineterminator="\n"))


def read_csv(path: str | os.PathLike) -> pd.DataFrame:
    """Reads results; seeds stay text, blank numbers are NaN.

    Raises:
      ValueError: a column is missing or unknown, or a number is none; the message names the file.
    """
    try:
        with files.path_of(path).open("rb") as file:
            frame = pd.read_csv(file, dtype=str, keep_default_na=False)
        check(frame)
        return _typed(frame)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None


def select(frame: pd.DataFrame, *, seed: str | None = POOLED, **wanted) -> pd.DataFrame:
    """Rows whose columns equal `wanted`; pooled ones unless `seed` names one or is None for all
    single seeds."""
    keep = frame["seed"].ne(POOLED) if seed is None else frame["seed"].eq(seed)
    for name, value in wanted.items():
        keep &= frame[name].eq(value)
    return frame[keep & np.isfinite(frame["value"])]


def losses(frame: pd.DataFrame) -> tuple[str, ...]:
    """Trained losses with a result, in the order of the frame."""
    return tuple(name for name in select(frame)["loss"].unique() if name != UNTRAINED)


def contexts(frame: pd.DataFrame) -> tuple[str, ...]:
    """Contexts on which acceptance was measured: known ones first, in their own order."""
    found = list(select(frame, measure="acceptance")["context"].unique())
    return tuple(
        sorted(
            found,
            key=lambda name: (CONTEXTS.index(name) if name in CONTEXTS else len(CONTEXTS), name),
        )
    )


def nearest(values: Iterable[float], wanted: float) -> float:
    """The one of `values` that is nearest to `wanted`; NaN if there is none."""
    return min(
        (v for v in values if math.isfinite(v)),
        key=lambda v: (abs(v - wanted), v),
        default=math.nan,
    )


def reference(frame: pd.DataFrame) -> str | None:
    """The loss that differences are to: the one that has none of its own, `ce` where several have
    none."""
    trained = losses(frame)
    compared = set(select(frame, measure="difference")["loss"])
    left = [name for name in trained if name not in compared] or list(trained)
    if not compared and len(trained) > 1:
        return None
    return "ce" if "ce" in left else next(iter(left), None)


def verdict(value: float, low: float, high: float, by_seed: Iterable[float]) -> str:
    """What a difference is worth.

    Args:
      value: the pooled difference.
      low, high: its interval, corrected over the losses it was compared with.
      by_seed: the difference of each seed.

    Returns:
      `real` if the interval excludes 0 and all seeds, three or more, have one sign; `these students
      only` with fewer seeds; else `not shown`.
    """
    signs = [math.copysign(1, d) if d else 0.0 for d in by_seed if math.isfinite(d)]
    if len(signs) < ENOUGH_SEEDS:
        return FEW_SEEDS
    excluded = low > 0 or high < 0
    one_sign = len(set(signs)) == 1 and signs[0] != 0
    return "real" if excluded and one_sign and abs(value) > ROUNDING else "not shown"


def _typed(frame):
    frame = frame.copy()
    for name in _TEXT:
        frame[name] = frame[name].astype(str)
    for name in _REAL:
        frame[name] = frame[name].replace("", np.nan).astype(np.float64)
    return frame


def _shortest(value):
    return "" if math.isnan(value) else np.format_float_positional(value, trim="-")
