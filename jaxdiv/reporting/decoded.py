"""Tokens a target call by decoding, beside what is computed without: one table of all losses."""

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from jaxdiv.reporting import results, results_table

NOTE = (
    "Accepted: in closed form on the teacher's own text. τ: by the recursion on that text; decoded: by decoding after "
    "the same prompts, at T > 0 another sample of text. Speed-up: tokens a second against plain decoding of the same "
    "prompts as one batch, on the machine that measured it; large batches leave it little to gain."
)
HEADERS = ("loss", "T", "accepted, %", "τ", "decoded", "decoded by seed", "speed-up")


def rows(frame: pd.DataFrame) -> list[list[str]]:
    """A row of cells, as `HEADERS`, for each loss and temperature that was decoded; none where
    nothing was."""
    made = []
    for row in results.select(frame, measure="decoded_tau").itertuples():
        at = {"loss": row.loss, "context": row.context, "temperature": row.temperature}
        with_gamma = {**at, "gamma": row.gamma}
        by_seed = results.select(frame, seed=None, measure="decoded_tau", **with_gamma)["value"]
        made.append(
            [
                row.loss,
                f"{row.temperature:g}",
                _shown(
                    results.select(
                        frame, measure="acceptance" if row.temperature else "greedy_match", **at
                    )
                ),
                _shown(results.select(frame, measure="tau", **with_gamma)),
                results_table.form("decoded_tau")(row.value, row.low, row.high),
                " ".join(results_table.tokens(value) for value in by_seed),
                _shown(results.select(frame, measure="speed_up", **with_gamma)),
            ]
        )
    return made


def title(frame: pd.DataFrame) -> str:
    """What the table shows; '' where nothing was decoded."""
    gammas = results.select(frame, measure="decoded_tau")["gamma"].unique()
    return (
        f"Tokens a target call by decoding, γ = {', '.join(f'{g:g}' for g in gammas)}"
        if len(gammas)
        else ""
    )


def rich_table(frame: pd.DataFrame) -> Table | None:
    """The rows for a terminal; None where nothing was decoded."""
    cells = rows(frame)
    if not cells:
        return None
    made = Table(
        title=title(frame), caption=NOTE, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    made.caption_justify = made.title_justify = "left"
    for name in HEADERS:
        made.add_column(name, justify="left" if name == "loss" else "right")
    for row in cells:
        made.add_row(*map(Text, row), style="dim" if row[0] == results.UNTRAINED else "")
    return made


def _shown(found):
    """The number with its interval, a dash if it was not measured."""
    if found.empty:
        return "–"
    row = found.iloc[0]
    return results_table.form(row["measure"])(row["value"], row["low"], row["high"])
