"""The report of the study of gaps: gap.csv, acceptance.csv, a table of causes and two pictures."""

import functools
import math
import os

import pandas as pd

from experiments.common import study_report
from experiments.gap import pictures
from experiments.gap.formulas import CE, KL, LOSSES
from experiments.gap.ratios import BOTH
from jaxdiv import files, schema
from jaxdiv.reporting import formats, style
from jaxdiv.reporting.tables import Table

FILE, ACCEPTANCE = "gap.csv", "acceptance.csv"
SIZES = (100, 10, 2)  # gaps that the table tells apart
_HEADS = (
    "cause", "ce, %", "kl, %", "both", "ce alone", "kl alone", "largest", "where", "can make",
)  # fmt: skip
_APPLIED = {BOTH: "in both", CE: "in CE", KL: "in KL"}
_CAPTION = (
    "ce, kl: accepted at temperature 1 under the cause, of 100 sampled drafts on held-out "
    "documents, or as the cause measures and counts. both, ce alone, kl alone: KL's acceptance "
    "over CE's where the cause is in both trainings or in one. largest: the ratio whose 95% "
    "interval has the highest lower end, over all rules, temperatures and counts. can make: by "
    "that lower end; no gap of 2 × where all intervals end below 2."
)


def write(folder: str | os.PathLike, frame: pd.DataFrame, acceptance: pd.DataFrame) -> None:
    """Writes gap.csv, acceptance.csv, gap_ratios.png and gap_over_temperature.png to `folder`."""
    figures = {
        "gap_ratios": functools.partial(pictures.ratios, frame),
        "gap_over_temperature": functools.partial(pictures.over_temperature, frame),
    }
    frames = {FILE: frame, ACCEPTANCE: acceptance}
    study_report.write(files.path_of(folder), frames, figures, {"": style.LIGHT})


def table(frame: pd.DataFrame) -> Table:
    """Summarizes each cause in a row: acceptance of both losses, their ratios by where the cause is
    applied, the largest of all ratios, and the gap that this one shows."""
    rows, bold = [], []
    for cause, part in frame.groupby("cause", sort=False):
        at_1 = part["measure"].eq(schema.ACCEPTANCE) & part["temperature"].eq(1)
        headline = part[at_1].set_index("applied_to")
        # The baseline is applied to both losses alone, a cause in measuring to one loss alone.
        accepted = (headline[loss].get(loss, headline[loss].get(BOTH, math.nan)) for loss in LOSSES)
        ratios = (headline["ratio"].get(side, math.nan) for side in _APPLIED)
        cells = [formats.number(100 * value, ".1f") for value in accepted]
        cells += [formats.number(value, ".2f") for value in ratios]
        largest, where, verdict = formats.DASH, "", formats.DASH
        if part["low"].notna().any():
            best = part.loc[part["low"].idxmax()]
            largest = f"{best['ratio']:.3g} [{best['low']:.3g}, {best['high']:.3g}]"
            applied = _APPLIED[best["applied_to"]]
            where = f"{applied}, {best['measure']}, T={best['temperature']:g}"
            size = next((size for size in SIZES if best["low"] >= size), 0)
            verdict = f"≥ {size} ×" if size else f"{SIZES[-1]} × not shown"
            if part["high"].lt(SIZES[-1]).all():
                verdict = f"no gap of {SIZES[-1]} ×"
            if size >= SIZES[1]:
                bold.append(len(rows))
        rows.append([cause, *cells, largest, where, verdict])
    left = (0, len(_HEADS) - 2, len(_HEADS) - 1)
    return Table(_HEADS, rows, "KL : CE", _CAPTION, left, styles=dict.fromkeys(bold, "bold"))
