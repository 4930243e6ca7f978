"""The tables of losses: acceptance with verdicts, best first, and tokens a call by decoding."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.text import Text

from jaxdiv import schema
from jaxdiv.reporting import formats, measures, results, verdicts
from jaxdiv.reporting.summary import ContextSummary, Summary, number
from jaxdiv.reporting.tables import Table

DECODING_NOTE = (
    "Accepted: in closed form on the teacher's own text. τ: by the recursion on that text; "
    "decoded: by decoding after the same prompts, at T > 0 another sample of text. Speed-up: "
    "tokens a second against plain decoding of the same prompts as one batch, on the machine that "
    "measured it; large batches leave it little to gain."
)
_STYLES = {verdicts.REFERENCE: "bold cyan", verdicts.FLOOR: "dim"}
_WORDS = ("loss", "verdict")  # columns that a style shows in
_MIN_WIDTHS = {"loss": 9, "by_seed": 5}  # of the columns that may fold


class TextColumn(NamedTuple):
    """A column's heading of two lines, and a cell for each loss."""

    heading: str
    cells: Sequence[str]


def columns(table: ContextSummary) -> dict[str, TextColumn]:
    """Returns the columns by name, in order, without those that have no number.

    Fractions are in percent, differences in points.
    """
    texts = {"loss": TextColumn("\nloss", [row.loss for row in table.rows])}
    for name, column in measures.COLUMNS.items():
        form, size = measures.entry(column.measure).format, 3 if column.interval else 1
        heading = column.heading.format(temperature=table.temperature, gamma=table.gamma)
        cells = [form(*row.numbers[name][:size]) for row in table.rows]
        texts[name] = TextColumn(heading, cells)
    reference = table.reference if len(table.reference or "") in range(1, 13) else "reference"
    differences, by_seed = [], []
    for row in table.rows:
        differences.append(formats.points(*row.difference) if row.compared else formats.DASH)
        by_seed.append(" ".join(map(formats.points, row.by_seed)) if row.compared else "")
    texts["difference"] = TextColumn(f"against {reference}\npoints", differences)
    texts["by_seed"] = TextColumn("\nby seed", by_seed)
    texts["verdict"] = TextColumn("\nverdict", [row.verdict for row in table.rows])
    return {name: text for name, text in texts.items() if set(text.cells) - {"", formats.DASH}}


def acceptance(table: ContextSummary) -> Table:
    """Returns the table of `columns`, which fits a terminal of 100 columns."""
    texts = columns(table)
    caption = "±: 95% interval, for differences corrected by Holm."
    if {"tau", "tau_greedy"} & set(texts):
        caption += " τ: tokens per target call, on its own text."
    rows, styles = [], {}
    for i, row in enumerate(table.rows):
        style = _STYLES.get(row.verdict, "")
        if row.verdict == verdicts.REAL:
            style = "bold green" if row.difference.value > 0 else "bold magenta"
        cells = {name: column.cells[i] for name, column in texts.items()}
        cells |= {name: Text(cells[name], style) for name in _WORDS if name in cells}
        rows.append(list(cells.values()))
        styles[i] = style if row.verdict == verdicts.FLOOR else ""
    return Table(
        [column.heading for column in texts.values()],
        rows,
        table.title,
        caption,
        left=[i for i, name in enumerate(texts) if name in _WORDS],
        fold={i: _MIN_WIDTHS[name] for i, name in enumerate(texts) if name in _MIN_WIDTHS},
        styles=styles,
    )


def decoding(summary: Summary) -> Table | None:
    """Returns tokens per target call by decoding, beside those computed without it.

    It has a row for each loss and temperature that was decoded, and is None if there is none.
    """
    decoded, rows = results.select(summary.frame, measure=schema.DECODED_TAU), []
    if decoded.empty:
        return None
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
    gammas = ", ".join(f"{gamma:g}" for gamma in decoded["gamma"].unique())
    return Table(
        ("loss", "T", "accepted, %", "τ", "decoded", "decoded by seed", "speed-up"),
        rows,
        f"Tokens per target call by decoding, γ = {gammas}",
        DECODING_NOTE,
        styles={i: "dim" for i, row in enumerate(rows) if row[0] == schema.UNTRAINED},
    )
