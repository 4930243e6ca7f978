"""report.html: one file that opens from disk, fetches nothing, runs no script and says what a run showed.

Its text stands in report.html.j2, its look in report.css; the template escapes all text.
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
from jaxdiv.reporting import (
    decoding_table,
    finding,
    formats,
    loss_table,
    measures,
    results,
    style,
    verdicts,
)  # fmt: skip
from jaxdiv.reporting.pictures import Picture
from jaxdiv.reporting.summary import ContextSummary, Summary

# The columns of the table of losses, in an order that shows on a narrow screen what counts.
_FIRST = ("loss", "acceptance", "difference", "verdict", "by_seed")


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table of the page; its texts are escaped unless they are `Markup`.

    Attributes:
      label: names the table to a screen reader; no other table has it.
      caption: text above it.
      heads, rows: cells; the first of each row names the row.
      kinds: a CSS class for each column, '' for none.
      marks: a CSS class for each row, '' for none.
    """

    label: str
    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    kinds: Sequence[str] = ()
    marks: Sequence[str] = ()


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
    finding_ = finding.find(summary)
    decoding = decoding_table.tabulate(summary)
    page = _environment().get_template("report.html.j2")
    text = page.render(
        title=f"{pathlib.Path(path).parent.resolve().name} – jaxdiv report",
        themes={"light": dataclasses.asdict(style.LIGHT), "dark": dataclasses.asdict(style.DARK)},
        finding=finding_,
        tiles=list(_tiles(summary.headline, finding_)),
        missing=finding.names(summary.missing) if summary.missing else "",
        of_images=summary.headline.context == schema.IMAGES,
        about=about,
        tables=[_losses(table) for table in summary.contexts.values()],
        phrases=[table.phrase for table in summary.contexts.values()],
        verdict_meaning=verdicts.MEANING,
        decoding=_decoding(decoding) if decoding else None,
        pictures={name: picture for name, picture in pictures.items() if name != "training_curves"},
        training=pictures.get("training_curves"),
        numbers={
            measures.context_phrase(context): list(_numbers(summary, context))
            for context in summary.frame["context"].unique()
        },
        facts=_facts(facts),
        config_text=config_text,
        measures=measures.MEASURES,
    )
    files.write_text(path, text)


def _environment():
    return jinja2.Environment(
        loader=jinja2.PackageLoader("jaxdiv.reporting", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _tiles(table: ContextSummary, finding_: finding.Finding) -> Iterator[tuple[str, str, str]]:
    """Yields term, number and note: the headline's loss, its difference, the reference, the floor."""
    for row in table.rows:
        name, named = finding.short(row.loss), row is finding_.row
        if named or row.verdict in (verdicts.REFERENCE, verdicts.FLOOR):
            special = row.verdict in (verdicts.REFERENCE, verdicts.FLOOR)
            percent, _, half = formats.percent(*row.numbers["acceptance"]).partition(" ")
            note = f", the {row.verdict}" if special else ""
            yield Markup("{} accepted{}").format(name, note), f"{percent}%", half
        if named and row.compared:
            against = Markup("{} against {}, points").format(name, finding.short(table.reference))
            ends = formats.interval(row.difference.low, row.difference.high)
            yield (
                against,
                formats.points(row.difference.value),
                ", ".join(filter(None, [ends, row.verdict])),
            )


def _losses(table: ContextSummary) -> Grid:
    columns = loss_table.columns(table)
    kinds = sorted(columns, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    heads = [Markup("<br>").join(columns[name].heading.strip().split("\n")) for name in kinds]
    losses, *others = (columns[name].cells for name in kinds)
    rows = list(zip(map(formats.html_code, losses), *others, strict=True))
    sides = {1: "better", -1: "worse", 0: ""}
    marks = ["floor" if r.verdict == verdicts.FLOOR else sides[r.side] for r in table.rows]
    return Grid(table.title, table.title, heads, rows, kinds, marks)


def _decoding(table: decoding_table.DecodingTable) -> Grid:
    rows = [[formats.html_code(loss), *cells] for loss, *cells in table.rows]
    return Grid(table.title, f"{table.title}. {decoding_table.NOTE}", decoding_table.HEADERS, rows)


def _numbers(summary: Summary, context: str) -> Iterator[Grid]:
    """Yields every pooled number of a context, a table a measure, and each seed's acceptance."""
    where = measures.context_phrase(context)
    for name, rows in results.select(summary.frame, context=context).groupby("measure", sort=False):
        caption = Markup("<code>{}</code>").format(name)
        if meaning := measures.of(name).meaning:
            caption += Markup(f": {meaning}")
        if rows["gamma"].isna().all():
            parts, across, symbol = [(None, rows)], "temperature", "T"
        else:
            parts, across, symbol = rows.groupby("temperature", dropna=False), "gamma", "γ"
        for _, part in parts:
            part = part.sort_values(across, kind="stable")
            at = ["value" if math.isnan(x) else f"{symbol} = {x:g}" for x in part[across]]
            yield _pivot(part, at, f"{name}, {where}", caption)
    if table := summary.contexts.get(context):
        at = {"context": context, "temperature": table.temperature}
        rows = results.select(summary.frame, seed=None, measure=schema.ACCEPTANCE, **at)
        caption = Markup("<code>acceptance</code> of each seed at T = {:g}; ").format(
            table.temperature
        )
        caption += "results.csv has all measures of each"
        at = [f"seed {seed}" for seed in rows["seed"]]
        yield _pivot(rows, at, f"acceptance of each seed, {where}", caption)


def _pivot(rows: pd.DataFrame, at: Sequence[str], label: str, caption: str) -> Grid:
    """Returns a row a loss, and a column for each value of `at`, which has one a row."""
    form = measures.of(rows["measure"].iloc[0]).format
    cells = {}
    for row, column in zip(rows.itertuples(), at, strict=True):
        cells.setdefault(row.loss, {})[column] = form(row.value, row.low, row.high)
    heads = list(dict.fromkeys(at))
    body = [
        [formats.html_code(loss), *(line.get(head, "") for head in heads)]
        for loss, line in cells.items()
    ]
    return Grid(label, caption, ["loss", *heads], body)


def _facts(facts: Mapping[str, object]) -> Grid:
    rows = [[name, str(value)] for name, value in facts.items()]
    caption = "Data, versions, and what the intervals cover"
    return Grid("facts", caption, ["fact", "value"], rows, kinds=["", "text"])
