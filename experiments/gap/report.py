"""The report of the study of gaps: gap.csv, acceptance.csv, a table of causes and two pictures."""

import functools
import math
import os
from collections.abc import Iterable, Mapping

import pandas as pd
from rich.table import Table

from experiments.common import study_report
from experiments.gap import pictures
from jaxdiv import files
from jaxdiv.reporting import formats, style

COLUMNS = (
    "cause", "applied_to", "measure", "temperature", "ce", "kl", "ratio", "low", "high", "trained",
)  # fmt: skip
FILE, ACCEPTANCE = "gap.csv", "acceptance.csv"
SIZES = (100, 10, 2)  # gaps that the table tells apart
_HEADS = (
    "cause", "ce, %", "kl, %", "both", "ce alone", "kl alone", "largest", "where", "can make",
)  # fmt: skip
_NUMBERS = range(1, len(_HEADS) - 2)
_CAPTION = (
    "ce, kl: accepted at temperature 1 under the cause, of 100 sampled drafts on held-out "
    "documents, or as the cause measures and counts. both, ce alone, kl alone: KL's acceptance "
    "over CE's where the cause is in both trainings or in one. largest: the ratio whose 95% "
    "interval has the highest lower end, over all rules, temperatures and counts. can make: by "
    "that lower end; no gap of 2 × where all intervals end below 2."
)


def table(rows: Iterable[Mapping]) -> pd.DataFrame:
    """Returns the frame of rows, with the columns `COLUMNS`."""
    return pd.DataFrame(list(rows), columns=list(COLUMNS))


def write(folder: str | os.PathLike, frame: pd.DataFrame, acceptance: Iterable[Mapping]) -> None:
    """Writes gap.csv, acceptance.csv, gap_ratios.png and gap_over_temperature.png to `folder`."""
    folder = files.path_of(folder)
    study_report.write_tables(folder, {FILE: frame, ACCEPTANCE: pd.DataFrame(list(acceptance))})
    figures = {
        "gap_ratios": functools.partial(pictures.ratios, frame),
        "gap_over_temperature": functools.partial(pictures.over_temperature, frame),
    }
    study_report.write_pictures(folder, figures, {"": style.LIGHT})


def summary(frame: pd.DataFrame) -> list[dict]:
    """Summarizes each cause in a row: acceptance of both losses, their ratios by where the cause is
    applied, and the largest of all ratios.

    `can_make` is the largest of `SIZES` that the interval of a ratio lies above, 0 if none;
    `excluded` is whether every ratio's interval ends below the least of them.
    """
    table = []
    for cause, rows in frame.groupby("cause", sort=False):
        at_1 = rows["measure"].eq("acceptance") & rows["temperature"].eq(1)
        headline = rows[at_1].set_index("applied_to")
        largest = rows.loc[rows["low"].idxmax()] if rows["low"].notna().any() else None
        bound = -math.inf if largest is None else largest["low"]
        # The baseline is applied to both losses alone, a cause in measuring to one loss alone.
        accepted = {
            loss: headline[loss].get(loss, headline[loss].get("both", math.nan))
            for loss in ("ce", "kl")
        }
        ratios = {side: headline["ratio"].get(side, math.nan) for side in ("both", "ce", "kl")}
        table.append(
            {
                "cause": cause,
                **accepted,
                "ratios": ratios,
                "largest": largest,
                "can_make": next((size for size in SIZES if bound >= size), 0),
                "excluded": bool(rows["high"].lt(SIZES[-1]).all()),
            }
        )
    return table


def rich_table(frame: pd.DataFrame) -> Table:
    """Returns the summary for a terminal."""
    rows = summary(frame)
    return study_report.rich_table(
        _HEADS,
        map(_cells, rows),
        title="KL : CE",
        caption=_CAPTION,
        right=_NUMBERS,
        bold=lambda i: rows[i]["can_make"] >= SIZES[1],
    )


def markdown(frame: pd.DataFrame) -> str:
    """Returns the summary as a Markdown table."""
    rows = map(_cells, summary(frame))
    return formats.in_markdown(
        _HEADS, ([formats.code(cause), *others] for cause, *others in rows), _NUMBERS
    )


def _cells(row: Mapping) -> list[str]:
    largest, ratio, where = row["largest"], formats.DASH, ""
    if largest is None:
        verdict = formats.DASH
    else:
        ratio = f"{largest['ratio']:.3g} [{largest['low']:.3g}, {largest['high']:.3g}]"
        applied = {"both": "in both", "ce": "in CE", "kl": "in KL"}[largest["applied_to"]]
        where = f"{applied}, {largest['measure']}, T={largest['temperature']:g}"
        if row["can_make"]:
            verdict = f"≥ {row['can_make']} ×"
        else:
            verdict = f"no gap of {SIZES[-1]} ×" if row["excluded"] else f"{SIZES[-1]} × not shown"
    accepted = [formats.number(100 * row[loss], ".1f") for loss in ("ce", "kl")]
    ratios = [formats.number(value, ".2f") for value in row["ratios"].values()]
    return [row["cause"], *accepted, *ratios, ratio, where, verdict]
