"""The table of losses as text: best first, the untrained floor last, each difference with its verdict."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from jaxdiv.reporting import formats, measures, verdicts
from jaxdiv.reporting.summary import ContextSummary, LossRow

_CAPTION = "±: 95% interval, for differences corrected by Holm."
_TAU_CAPTION = " τ: tokens a target call, on its own text."
_STYLES = {verdicts.REFERENCE: "bold cyan", verdicts.FLOOR: "dim"}
# Only names of losses and lists of seeds may wrap.
_LAYOUT: Mapping[str, Mapping[str, object]] = {
    "loss": {"overflow": "fold", "min_width": 9},
    "by_seed": {"min_width": 5, "justify": "right"},
    "verdict": {"no_wrap": True},
}
_NUMBER_LAYOUT: Mapping[str, object] = {"justify": "right", "no_wrap": True}


class TextColumn(NamedTuple):
    """A column's heading of two lines, and a cell for each loss."""

    heading: str
    cells: Sequence[str]


def columns(table: ContextSummary) -> dict[str, TextColumn]:
    """Returns the table's columns by name, in order, without those of which nothing was measured."""
    measured = {
        name: TextColumn(
            column.heading.format(temperature=table.temperature, gamma=table.gamma),
            [_cell(entry, column, row.numbers[name]) for row in table.rows],
        )
        for entry in measures.MEASURES.values()
        for name, column in entry.columns.items()
    }
    reference = table.reference if len(table.reference or "") in range(1, 13) else "reference"
    shown = {
        "loss": TextColumn("\nloss", [row.loss for row in table.rows]),
        **measured,
        "difference": TextColumn(
            f"against {reference}\npoints", [_difference(row) for row in table.rows]
        ),
        "by_seed": TextColumn("\nby seed", [_by_seed(row) for row in table.rows]),
        "verdict": TextColumn("\nverdict", [row.verdict for row in table.rows]),
    }
    return {
        name: column for name, column in shown.items() if set(column.cells) - {"", formats.DASH}
    }


def _cell(entry, column, number):
    return entry.format(*number) if column.interval else entry.format(number.value)


def _difference(row: LossRow) -> str:
    return formats.points(*row.difference) if row.compared else formats.DASH


def _by_seed(row: LossRow) -> str:
    return " ".join(map(formats.points, row.by_seed)) if row.compared else ""


def rich_table(table: ContextSummary) -> Table:
    """Returns the table for a terminal of 100 columns; in percent, differences in points."""
    shown = columns(table)
    caption = _CAPTION + (_TAU_CAPTION if {"tau", "tau_greedy"} & set(shown) else "")
    layout = {"box": box.SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True}
    rich = Table(title=table.title, caption=caption, **layout)
    rich.caption_justify = rich.title_justify = "left"
    for name, column in shown.items():
        rich.add_column(Text(column.heading), **_LAYOUT.get(name, _NUMBER_LAYOUT))
    for row, *cells in zip(table.rows, *(column.cells for column in shown.values()), strict=True):
        style = _style(row)
        styles = [style if name in ("loss", "verdict") else "" for name in shown]
        texts = (Text(cell, style=s) for cell, s in zip(cells, styles, strict=True))
        rich.add_row(*texts, style="dim" if row.verdict == verdicts.FLOOR else "")
    return rich


def _style(row: LossRow) -> str:
    if row.verdict == verdicts.REAL:
        return "bold green" if row.difference.value > 0 else "bold magenta"
    return _STYLES.get(row.verdict, "")


def markdown(table: ContextSummary) -> str:
    """Returns the table in Markdown, for a README."""
    shown = columns(table)
    heads = [" ".join(column.heading.split()) for column in shown.values()]
    layouts = [_LAYOUT.get(name, _NUMBER_LAYOUT) for name in shown]
    right = [i for i, layout in enumerate(layouts) if layout.get("justify") == "right"]
    losses, *others = (column.cells for column in shown.values())
    return formats.in_markdown(heads, zip(map(formats.code, losses), *others, strict=True), right)
