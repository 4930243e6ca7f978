"""The page report.html: one file that opens from disk, fetches nothing, runs no script.

Its text stands in report.html.j2, which escapes all it prints, and its look in report.css.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import jinja2
import pandas as pd
from markupsafe import Markup

from jaxdiv import files, schema
from jaxdiv.reporting import finding, formats, loss_tables, measures, results, style, verdicts
from jaxdiv.reporting.pictures import Picture
from jaxdiv.reporting.summary import ContextSummary, Summary
from jaxdiv.reporting.tables import Table

# The columns of the table of losses that come first, so that a narrow screen shows them.
_FIRST = ("loss", "acceptance", "difference", "verdict", "by_seed")


def write_report(
    path: str | os.PathLike,
    summary: Summary,
    pictures: Mapping[str, Picture],
    *,
    config_text: str,
    facts: Mapping[str, object],
    about: str = "",
) -> None:
    """Writes the report of a run so that it is never half written.

    Args:
      path: the file; the page is named after its folder.
      summary: the run's results.
      pictures: `pictures.draw` of them.
      config_text: the config as its user would read it.
      facts: fingerprints, versions, seeds, and what the intervals cover.
      about: the run in a line.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxdiv.reporting", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    facts_caption = "Data, versions, and what the intervals cover"
    decoding = loss_tables.decoding(summary)
    if decoding is not None:
        caption = f"{decoding.title}. {decoding.caption}"
        decoding = dataclasses.replace(decoding, caption=caption)
    text = environment.get_template("report.html.j2").render(
        title=f"{pathlib.Path(path).parent.resolve().name} – jaxdiv report",
        themes={"light": dataclasses.asdict(style.LIGHT), "dark": dataclasses.asdict(style.DARK)},
        summary=summary,
        finding=finding.find(summary),
        tables={table.phrase: _losses(table) for table in summary.contexts.values()},
        decoding=decoding,
        pictures=pictures,
        numbers={
            measures.context_phrase(context): list(_numbers(summary, context))
            for context in summary.frame["context"].unique()
        },
        facts=Table(("fact", "value"), list(facts.items()), "facts", facts_caption, code=False),
        config_text=config_text,
        about=about,
        measures=measures.MEASURES,
        verdict_meaning=verdicts.MEANING,
        names=finding.names,
        short=finding.short,
        formats=formats,
    )
    files.write_text(path, text)


def _losses(table: ContextSummary) -> tuple[Table, Sequence[str], Sequence[str]]:
    """Returns the table of losses, and CSS classes of its columns and of its rows."""
    columns = loss_tables.columns(table)
    kinds = sorted(columns, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    heads = [Markup("<br>").join(columns[name].heading.strip().split("\n")) for name in kinds]
    rows = list(zip(*(columns[name].cells for name in kinds), strict=True))
    sides = {1: "better", -1: "worse", 0: ""}
    marks = ["floor" if r.verdict == verdicts.FLOOR else sides[r.side] for r in table.rows]
    return Table(heads, rows, table.title, table.title), kinds, marks


def _numbers(summary: Summary, context: str) -> Iterator[Table]:
    """Yields every pooled number of a context, a table a measure, and each seed's acceptance."""
    where = measures.context_phrase(context)

    def pivot(rows: pd.DataFrame, heads: Sequence[str], title: str, caption: str) -> Table:
        """Returns a table with a row a loss; `heads` has the column of each row of results."""
        form, lines = measures.entry(rows["measure"].iloc[0]).format, {}
        for row, head in zip(rows.itertuples(), heads, strict=True):
            lines.setdefault(row.loss, {})[head] = form(row.value, row.low, row.high)
        heads = list(dict.fromkeys(heads))
        cells = [[loss, *(line.get(head, "") for head in heads)] for loss, line in lines.items()]
        return Table(["loss", *heads], cells, f"{title}, {where}", caption)

    for name, rows in results.select(summary.frame, context=context).groupby("measure", sort=False):
        caption = Markup("<code>{}</code>").format(name)
        if meaning := measures.entry(name).meaning:
            caption += Markup(f": {meaning}")
        parts, across, symbol = [rows], "temperature", "T"
        if rows["gamma"].notna().any():
            parts = (part for _, part in rows.groupby("temperature", dropna=False))
            across, symbol = "gamma", "γ"
        for part in parts:
            part = part.sort_values(across, kind="stable")
            heads = ["value" if math.isnan(x) else f"{symbol} = {x:g}" for x in part[across]]
            yield pivot(part, heads, name, caption)
    if table := summary.contexts.get(context):
        at = {"context": context, "temperature": table.temperature}
        rows = results.select(summary.frame, seed=None, measure=schema.ACCEPTANCE, **at)
        caption = Markup(
            f"<code>acceptance</code> of each seed at T = {table.temperature:g}; "
            "results.csv has all measures of each"
        )
        yield pivot(
            rows, [f"seed {seed}" for seed in rows["seed"]], "acceptance of each seed", caption
        )
