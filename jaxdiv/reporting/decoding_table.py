"""The table of tokens a target call by decoding, beside those computed without it."""

from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from jaxdiv import schema
from jaxdiv.reporting import formats, measures, results
from jaxdiv.reporting.summary import Summary, number

NOTE = (
    "Accepted: in closed form on the teacher's own text. τ: by the recursion on that text; decoded: by decoding after "
    "the same prompts, at T > 0 another sample of text. Speed-up: tokens a second against plain decoding of the same "
    "prompts as one batch, on the machine that measured it; large batches leave it little to gain."
)
HEADERS = ("loss", "T", "accepted, %", "τ", "decoded", "decoded by seed", "speed-up")


class DecodingTable(NamedTuple):
    """A title, and a row of cells, as `HEADERS`, for each loss and temperature that was decoded."""

    title: str
    rows: Sequence[Sequence[str]]


def tabulate(summary: Summary) -> DecodingTable | None:
    """Returns the table, or None if nothing was decoded."""
    decoded = results.select(summary.frame, measure=schema.DECODED_TAU)
    if decoded.empty:
        return None
    gammas = ", ".join(f"{gamma:g}" for gamma in decoded["gamma"].unique())
    rows = [_row(summary.frame, row) for row in decoded.itertuples()]
    return DecodingTable(f"Tokens a target call by decoding, γ = {gammas}", rows)


def _row(frame, row):
    at = {"loss": row.loss, "context": row.context, "temperature": row.temperature}
    at_gamma = {**at, "gamma": row.gamma}
    by_seed = results.select(frame, seed=None, measure=schema.DECODED_TAU, **at_gamma)["value"]

    def cell(measure, place):
        return measures.of(measure).format(*number(frame, measure=measure, **place))

    return [
        row.loss,
        f"{row.temperature:g}",
        cell(schema.ACCEPTANCE if row.temperature else schema.GREEDY_MATCH, at),
        cell(schema.TAU, at_gamma),
        formats.tokens(row.value, row.low, row.high),
        " ".join(formats.tokens(value) for value in by_seed),
        cell(schema.SPEED_UP, at_gamma),
    ]


def rich_table(table: DecodingTable) -> Table:
    """Returns the table for a terminal."""
    layout = {"box": box.SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True}
    rich = Table(title=table.title, caption=NOTE, **layout)
    rich.caption_justify = rich.title_justify = "left"
    for name in HEADERS:
        rich.add_column(name, justify="left" if name == "loss" else "right")
    for row in table.rows:
        rich.add_row(*map(Text, row), style="dim" if row[0] == schema.UNTRAINED else "")
    return rich
