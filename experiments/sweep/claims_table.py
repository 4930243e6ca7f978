"""What others report beside what a study of losses shows: the columns of claims.csv, and its
table."""

from collections.abc import Iterator

import pandas as pd

from jaxdiv.reporting import formats

COLUMNS = (
    "source", "reported", "loss", "than", "trained_on", "measure", "temperature", "gamma", "cells", "change",
    "change_low", "change_high", "p_value", "verdict",
)  # fmt: skip
HEADING = ["claim", "source", "reported", "measured by", "cells", "here, %", "verdict"]
NOTE = (
    "here: how much more is accepted, or how many more tokens a call, of means over the cells, with 95% intervals, "
    "corrected by Holm over these rows. holds: the interval lies above 0 and all seeds agree; the opposite: below."
)


def rows(frame: pd.DataFrame) -> Iterator[list[str]]:
    """Of a frame of `COLUMNS`, a row a claim under `HEADING`."""
    for row in frame.itertuples():
        yield [
            _claim(row),
            row.source,
            row.reported,
            f"τ γ={row.gamma:g} T={row.temperature:g}"
            if row.measure == "tau"
            else f"accepted T={row.temperature:g}",
            f"{row.cells:g}",
            f"{formats.points(row.change)} [{formats.points(row.change_low)}, {formats.points(row.change_high)}]",
            row.verdict,
        ]


def _claim(row):
    if row.trained_on:
        return f"{row.loss} on the {row.trained_on}'s text over {row.than} on the corpus"
    return f"{row.loss} over {row.than}"
