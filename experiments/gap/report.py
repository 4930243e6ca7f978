"""The study of what can make a gap between cross-entropy and KL: gap.csv, its table and its
pictures."""

import math
import os
from collections.abc import Iterable, Mapping

import matplotlib
import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from experiments.gap import pictures
from jaxdiv import files
from jaxdiv.reporting import style
from jaxdiv.reporting.formats import code, in_markdown

COLUMNS = (
    "cause",
    "applied_to",
    "measure",
    "temperature",
    "ce",
    "kl",
    "ratio",
    "low",
    "high",
    "trained",
)
FILE, ACCEPTANCE = "gap.csv", "acceptance.csv"
SIZES = (100, 10, 2)  # of gaps that are told apart
_HEADERS = (
    "cause",
    "ce, %",
    "kl, %",
    "both",
    "ce alone",
    "kl alone",
    "largest",
    "where",
    "can make",
)
_CAPTION = (
    "ce, kl: accepted at temperature 1 under the cause, of 100 sampled drafts on held-out documents, or as the cause "
    "measures and counts. both, ce alone, kl alone: KL's acceptance over CE's where the cause is in both trainings or "
    "in one. largest: the ratio whose 95% interval has the highest lower end, over all rules, temperatures and counts. "
    "can make: by that lower end; no gap of 2 × where all intervals end below 2."
)


def table(rows: Iterable[Mapping]) -> pd.DataFrame:
    """The frame of rows of `COLUMNS`."""
    return pd.DataFrame(list(rows), columns=list(COLUMNS))


def write(folder: str | os.PathLike, frame: pd.DataFrame, acceptance: Iterable[Mapping]) -> None:
    """Writes gap.csv, acceptance.csv of rows by student, gap_ratios.png and
    gap_over_temperature.png into `folder`."""
    folder = files.path_of(folder)
    for name, made in ((FILE, frame), (ACCEPTANCE, pd.DataFrame(list(acceptance)))):
        files.write_text(folder / name, made.to_csv(index=False, lineterminator="\n"))
    with matplotlib.rc_context(style.rc(style.LIGHT)):
        for name, draw in {
            "ratios": pictures.ratios,
            "over_temperature": pictures.over_temperature,
        }.items():
            with files.replacing(folder / f"gap_{name}.png") as temporary:
                temporary.write_bytes(style.png(draw(frame, style.LIGHT)))


def summary(frame: pd.DataFrame) -> list[dict]:
    """A row a cause: acceptance of both losses, their ratios by where the cause is applied, and the
    largest of all.

    `can_make` is the largest of `SIZES` that the interval of a ratio lies above, 0 if none;
    `excluded` is whether every ratio's interval ends below the least of them.
    """
    return [_of_cause(cause, rows) for cause, rows in frame.groupby("cause", sort=False)]


def rich_table(frame: pd.DataFrame) -> Table:
    """The summary for a terminal."""
    made = Table(
        title="KL : CE",
        caption=_CAPTION,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    made.caption_justify = made.title_justify = "left"
    for i, name in enumerate(_HEADERS):
        made.add_column(
            name, justify="right" if 0 < i < len(_HEADERS) - 2 else "left", overflow="fold"
        )
    for row in summary(frame):
        made.add_row(*map(Text, _cells(row)), style="bold" if row["can_make"] >= SIZES[1] else "")
    return made


def markdown(frame: pd.DataFrame) -> str:
    """The summary as a Markdown table."""
    rows = ([code(cause), *others] for cause, *others in map(_cells, summary(frame)))
    return in_markdown(_HEADERS, rows, range(1, len(_HEADERS) - 2))


def _of_cause(cause, rows):
    at = rows[rows["measure"].eq("acceptance") & rows["temperature"].eq(1)].set_index("applied_to")
    largest = rows.loc[rows["low"].idxmax()] if rows["low"].notna().any() else None
    least = -math.inf if largest is None else largest["low"]
    return {
        "cause": cause,
        "ce": _at(at, "ce", "ce"),
        "kl": _at(at, "kl", "kl"),
        "ratios": {applied_to: _at(at, "ratio", applied_to) for applied_to in ("both", "ce", "kl")},
        "largest": largest,
        "can_make": next((size for size in SIZES if least >= size), 0),
        "excluded": bool(rows["high"].lt(SIZES[-1]).all()),
    }


def _at(rows, column, applied_to):
    """A number where the cause is applied to one loss, or, as the baseline is, to both."""
    found = rows[column].get(applied_to)
    if found is None and column != "ratio":
        found = rows[column].get("both")
    return math.nan if found is None else found


def _cells(row):
    largest = row["largest"]
    where = "" if largest is None else _where(largest)
    return [
        row["cause"],
        *(_number(100 * row[loss], ".1f") for loss in ("ce", "kl")),
        *(_number(ratio, ".2f") for ratio in row["ratios"].values()),
        "–"
        if largest is None
        else f"{_times(largest['ratio'])} [{_times(largest['low'])}, {_times(largest['high'])}]",
        where,
        _verdict(row),
    ]


def _verdict(row):
    if row["largest"] is None:
        return "–"
    if row["can_make"]:
        return f"≥ {row['can_make']} ×"
    return f"no gap of {SIZES[-1]} ×" if row["excluded"] else f"{SIZES[-1]} × not shown"


def _where(row):
    applied = {"both": "in both", "ce": "in CE", "kl": "in KL"}[row["applied_to"]]
    return f"{applied}, {row['measure']}, T={row['temperature']:g}"


def _number(value, form):
    return "–" if math.isnan(value) else format(value, form)


def _times(value):
    return f"{value:.3g}"
