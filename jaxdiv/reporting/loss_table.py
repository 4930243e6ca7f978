"""The table of losses as text: best first, the untrained floor last, differences with verdicts."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from jaxdiv.reporting import formats, measures, verdicts
from jaxdiv.reporting.summary import ContextSummary

_STYLES = {verdicts.REFERENCE: "bold cyan", verdicts.FLOOR: "dim"}
_NUMBER = {"justify": "right", "no_wrap": True}
# Only names of losses and lists of seeds may wrap.
_LAYOUT: Mapping[str, Mapping[str, object]] = {
    "loss": {"overflow": "fold", "min_width": 9},
    "by_seed": {"min_width": 5, "justify": "right"},
    "verdict": {"no_wrap": True},
}


class TextColumn(NamedTuple):
    """A column's heading of two lines, and a cell for each loss."""

    heading: str
    cells: Sequence[str]


def columns(table: ContextSummary) -> dict[str, TextColumn]:
    """Returns the table's columns by name, in order, without those that have no number."""
    texts = {"loss": TextColumn("\nloss", [row.loss for row in table.rows])}
    for name, column in measures.COLUMNS.items():
        form, size = measures.entry(column.measure).format, 3 if column.interval else 1
        heading = column.heading.format(temperature=table.temperature, gamma=table.gamma)
        cells = [form(*row.numbers[name][:size]) for row in table.rows]
        texts[name] = TextColumn(heading, cells)
    reference = table.reference if len(table.reference or "") in range(1, 13) else "reference"
    differences = [
        formats.points(*row.difference) if row.compared else formats.DASH for row in table.rows
    ]
    by_seed = [
        " ".join(map(formats.points, row.by_seed)) if row.compared else "" for row in table.rows
    ]
    texts["difference"] = TextColumn(f"against {reference}\npoints", differences)
    texts["by_seed"] = TextColumn("\nby seed", by_seed)
    texts["verdict"] = TextColumn("\nverdict", [row.verdict for row in table.rows])
    return {name: text for name, text in texts.items() if set(text.cells) - {"", formats.DASH}}


def rich_table(table: ContextSummary) -> Table:
    """Returns the table for a terminal of 100 columns; in percent, differences in points."""
    texts = columns(table)
    caption = "±: 95% interval, for differences corrected by Holm."
    if {"tau", "tau_greedy"} & set(texts):
        caption += " τ: tokens a target call, on its own text."
    rich = formats.terminal_table(table.title, caption)
    for name, column in texts.items():
        rich.add_column(Text(column.heading), **_LAYOUT.get(name, _NUMBER))
    for i, row in enumerate(table.rows):
        style = _STYLES.get(row.verdict, "")
        if row.verdict == verdicts.REAL:
            style = "bold green" if row.difference.value > 0 else "bold magenta"
        rich.add_row(
            *(
                Text(column.cells[i], style=style if name in ("loss", "verdict") else "")
                for name, column in texts.items()
            ),
            style="dim" if row.verdict == verdicts.FLOOR else "",
        )
    return rich


def markdown(table: ContextSummary) -> str:
    """Returns the table in Markdown, for a README."""
    texts = columns(table)
    heads = [" ".join(column.heading.split()) for column in texts.values()]
    layouts = [_LAYOUT.get(name, _NUMBER) for name in texts]
    right = [i for i, layout in enumerate(layouts) if layout.get("justify") == "right"]
    losses, *others = (column.cells for column in texts.values())
    return formats.in_markdown(heads, zip(map(formats.code, losses), *others, strict=True), right)
