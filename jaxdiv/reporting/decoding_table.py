"""The table of tokens a target call by decoding, beside those computed without it."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from jaxdiv import schema
from jaxdiv.reporting import formats, measures, results
from jaxdiv.reporting.summary import Summary, number

NOTE = (
    "Accepted: in closed form on the teacher's own text. τ: by the recursion on that text; "
    "decoded: by decoding after the same prompts, at T > 0 another sample of text. Speed-up: "
    "tokens a second against plain decoding of the same prompts as one batch, on the machine that "
    "measured it; large batches leave it little to gain."
)


class DecodingTable(NamedTuple):
    """A title, headings, and a row of cells for each loss and temperature that was decoded."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def tabulate(summary: Summary) -> DecodingTable | None:
    """Returns the table, or None if nothing was decoded."""
    decoded, rows = results.select(summary.frame, measure=schema.DECODED_TAU), []
    if decoded.empty:
        return None
    gammas = ", ".join(f"{gamma:g}" for gamma in decoded["gamma"].unique())
    heads = ("loss", "T", "accepted, %", "τ", "decoded", "decoded by seed", "speed-up")
    for row in decoded.itertuples():
        at = {"loss": row.loss, "context": row.context, "temperature": row.temperature}
        with_gamma = {**at, "gamma": row.gamma}
        places = {schema.ACCEPTANCE if row.temperature else schema.GREEDY_MATCH: at}
        places |= dict.fromkeys([schema.TAU, schema.DECODED_TAU, schema.SPEED_UP], with_gamma)
        *others, speed_up = (
            measures.entry(name).format(*number(summary.frame, measure=name, **place))
            for name, place in places.items()
        )
        one = results.select(summary.frame, seed=None, measure=schema.DECODED_TAU, **with_gamma)
        by_seed = " ".join(map(formats.tokens, one["value"]))
        rows.append([row.loss, f"{row.temperature:g}", *others, by_seed, speed_up])
    return DecodingTable(f"Tokens a target call by decoding, γ = {gammas}", heads, rows)


def rich_table(table: DecodingTable) -> Table:
    """Returns the table for a terminal."""
    rich = formats.terminal_table(table.title, NOTE)
    for head in table.heads:
        rich.add_column(head, justify="left" if head == "loss" else "right")
    for row in table.rows:
        rich.add_row(*map(Text, row), style="dim" if row[0] == schema.UNTRAINED else "")
    return rich
