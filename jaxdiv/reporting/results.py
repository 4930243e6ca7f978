"""The frame of results.csv: one number a row, with its interval; `schema` names its columns."""

import math
import os
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from jaxdiv import files, schema

_TEXTS = ("loss", "seed", "context", "measure")
_COUNTS = ("gamma", "n")


def table(rows: Iterable[Mapping]) -> pd.DataFrame:
    """Returns the frame of rows that are mappings; a cell without a value is blank."""
    return _set_types(pd.DataFrame(list(rows)).reindex(columns=list(schema.COLUMNS)))


def check(frame: pd.DataFrame) -> None:
    """Raises ValueError unless the columns are exactly `schema.COLUMNS`, in order."""
    columns = tuple(frame.columns)
    if columns == schema.COLUMNS:
        return
    missing = ", ".join(name for name in schema.COLUMNS if name not in columns)
    unknown = ", ".join(str(name) for name in columns if name not in schema.COLUMNS)
    faults = [f"missing: {missing}"] * bool(missing) + [f"unknown: {unknown}"] * bool(unknown)
    fault, columns = "; ".join(faults) or "in this order", ",".join(schema.COLUMNS)
    raise ValueError(f"results need the columns {columns} ({fault})")


def write_csv(frame: pd.DataFrame, path: str | os.PathLike) -> None:
    """Writes results so that `path` is never half written; a missing number is blank."""
    check(frame)
    frame = _set_types(frame)
    for name in _COUNTS:
        frame[name] = frame[name].round().astype("Int64")
    frame["temperature"] = [
        "" if math.isnan(value) else np.format_float_positional(value, trim="-")
        for value in frame["temperature"]
    ]
    files.write_text(path, frame.to_csv(index=False, lineterminator="\n"))


def read_csv(path: str | os.PathLike) -> pd.DataFrame:
    """Reads results; seeds stay text, blank numbers are NaN.

    Raises:
      ValueError: a column is missing or unknown, or text stands where a number belongs. The
        message names the file.
    """
    try:
        with files.path_of(path).open("rb") as file:
            frame = pd.read_csv(file, dtype=str, keep_default_na=False)
        check(frame)
        return _set_types(frame)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None


def select(frame: pd.DataFrame, *, seed: str | None = schema.POOLED, **values) -> pd.DataFrame:
    """Returns the rows with a finite number whose columns equal `values`.

    Args:
      frame: results.
      seed: rows of this seed; of all seeds pooled by default, of every single seed if None.
      **values: column to the value that it must have.
    """
    rows = frame["seed"].ne(schema.POOLED) if seed is None else frame["seed"].eq(seed)
    for name, value in values.items():
        rows &= frame[name].eq(value)
    return frame[rows & np.isfinite(frame["value"])]


def losses(frame: pd.DataFrame) -> tuple[str, ...]:
    """Returns the trained losses with a result, in the order of the frame."""
    return tuple(name for name in select(frame)["loss"].unique() if name != schema.UNTRAINED)


def contexts(frame: pd.DataFrame) -> tuple[str, ...]:
    """Returns the contexts with an acceptance, those of `schema.CONTEXTS` first."""
    names = sorted(select(frame, measure=schema.ACCEPTANCE)["context"].unique())
    return tuple(
        [name for name in schema.CONTEXTS if name in names]
        + [name for name in names if name not in schema.CONTEXTS]
    )


def reference(frame: pd.DataFrame) -> str | None:
    """Returns the loss that differences are to, or None if several losses have no difference.

    It is the loss that has no difference itself; `ce` if several have none.
    """
    trained = losses(frame)
    compared = set(select(frame, measure=schema.DIFFERENCE)["loss"])
    if not compared and len(trained) > 1:
        return None
    candidates = [name for name in trained if name not in compared] or list(trained)
    return "ce" if "ce" in candidates else next(iter(candidates), None)


def nearest(values: Iterable[float], target: float) -> float:
    """Returns the finite value nearest to `target`, or NaN if there is none."""
    finite = (value for value in values if math.isfinite(value))
    return min(finite, key=lambda value: (abs(value - target), value), default=math.nan)


def _set_types(frame):
    numbers = [name for name in schema.COLUMNS if name not in _TEXTS]
    types = dict.fromkeys(_TEXTS, str) | dict.fromkeys(numbers, np.float64)
    return frame.assign(**{name: frame[name].replace("", np.nan) for name in numbers}).astype(types)
