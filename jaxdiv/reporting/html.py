"""report.html: one file that opens from disk, fetches nothing, runs no script and says what a run
found."""

import math
import os
import pathlib
from collections.abc import Mapping
from html import escape

import pandas as pd

from jaxdiv import files
from jaxdiv.reporting import captions, decoded, finding, page, results, results_table, style, words

# The table's columns in an order that shows what counts on a narrow screen.
_ORDER = (
    "loss", "acceptance", "difference", "verdict", "by_seed", "greedy_draft", "greedy_match", "accuracy", "tau",
    "tau_greedy",
)  # fmt: skip


def write_report(
    path: str | os.PathLike,
    *,
    frame: pd.DataFrame,
    curves: pd.DataFrame,
    images: Mapping[str, style.Images],
    config_text: str,
    facts: Mapping[str, object],
    about: str = "",
) -> None:
    """Writes the report of a run so that it is never half written.

    Args:
      path: where to; the page is called by the name of its folder.
      frame: results.
      curves: columns step, loss, seed, metric, value; may be empty.
      images: what `pictures.render_all` drew of them.
      config_text: the config as its user would read it.
      facts: what else a reader must know, in order: fingerprints, versions, seeds, what the
        intervals cover.
      about: what the run was, in a line.

    Raises:
      ValueError: the results have other columns, or no acceptance among them.
    """
    results.check(frame)
    if not results.contexts(frame):
        raise ValueError(
            "a report needs at least one row of `acceptance` with seed `all`; the results have none"
        )
    text = page.document(
        title=f"{pathlib.Path(path).parent.resolve().name} – jaxdiv report",
        front=list(_front(frame, curves, about)),
        sections=_sections(frame, _figures(frame, curves, images), facts, config_text),
    )
    files.write_text(path, text)


def _sections(frame, figures, facts, config_text):
    """The page's sections, without those that have nothing to show."""
    shown = [figure for name, figure in figures.items() if name != "training_curves"]
    details = [
        *_other_contexts(frame),
        page.details(
            "Training", figures.get("training_curves", "<p>No training curves were kept.</p>")
        ),
        *_all_numbers(frame),
        page.details("What decides these numbers", _facts(facts)),
        page.details("The config", f"<pre>{escape(config_text)}</pre>"),
        *_meanings(),
    ]
    sections = {
        "table": ("All losses", list(_tables(frame))),
        "pictures": ("Pictures", shown),
        "details": ("Details", details),
    }
    return {name: section for name, section in sections.items() if section[1]}


def _figures(frame, curves, images):
    return {
        name: page.figure(
            pictures,
            alt=captions.alternative(name, frame, curves),
            caption=escape(captions.caption(name, frame)),
        )
        for name, pictures in images.items()
    }


def _front(frame, curves, about):
    found = finding.of(frame)
    yield page.headline(found.headline, *found.sentences)
    yield page.tiles(_tiles(frame, found))
    yield page.points(found.others)
    if lost := list(_lost(frame, curves)):
        yield f'<p class="note" role="note"><b>Left out</b>, without a finite result: {words.names(lost)}.</p>'
    yield f"<p>{words.acceptance(results.contexts(frame)[0])}</p>"
    yield f'<p class="muted">{escape(about)}</p>' if about else ""


def _tiles(frame, found):
    """Acceptance of the loss that the headline speaks of, of the reference and of the floor, and
    the difference."""
    ranked, reference = (
        results_table.summary(frame, context=results.contexts(frame)[0]),
        results.reference(frame),
    )
    own = None if found.loss is None else found.loss["loss"]
    for row in ranked.itertuples():
        if row.loss == own or row.verdict in ("reference", "floor"):
            word = {"reference": ", the reference", "floor": ", the floor"}.get(row.verdict, "")
            number, _, half = results_table.percent(
                row.acceptance, row.acceptance_low, row.acceptance_high
            ).partition(" ")
            yield f"{words.short(row.loss)} accepted{word}", f"{number}%", half
        if (
            row.loss == own
            and row.verdict not in ("reference", "")
            and not math.isnan(row.difference)
        ):
            ends = words.interval(row.difference_low, row.difference_high)
            of = f"{words.short(own)} against {words.short(reference)}, points"
            yield (
                of,
                results_table.points(row.difference),
                f"{ends}, {row.verdict}" if ends else row.verdict,
            )


def _lost(frame, curves):
    """Names of the students that were trained and have no result."""
    measured = results.select(frame, seed=None, measure="acceptance")
    seeds = {loss: set(rows["seed"]) for loss, rows in measured.groupby("loss")}
    for loss, rows in curves.groupby("loss", sort=False):
        if loss not in results.losses(frame):
            yield loss
        else:
            missing = sorted(set(rows["seed"].astype(str)) - seeds.get(loss, set()))
            yield from (f"{loss}, seed {seed}" for seed in missing)


def _tables(frame):
    yield _summary(frame, results.contexts(frame)[0])
    yield f"<p>{words.VERDICTS}</p>"
    if by_decoding := decoded.rows(frame):
        head, title = map(escape, decoded.HEADERS), decoded.title(frame)
        cells = [[words.name(loss), *map(escape, rest)] for loss, *rest in by_decoding]
        yield page.grid(f"{escape(title)}. {escape(decoded.NOTE)}", list(head), cells, label=title)


def _other_contexts(frame):
    for context in results.contexts(frame)[1:]:
        yield page.details(
            f"The table {escape(results_table.describe(context))}", _summary(frame, context)
        )


def _summary(frame, context):
    rows = results_table.summary(frame, context=context)
    columns = results_table.columns(rows, results.reference(frame))
    kinds = [name for name in _ORDER if name in columns]
    head = [escape(columns[name].header.strip()).replace("\n", "<br>") for name in kinds]
    others = ([escape(cell.plain) for cell in columns[name].cells] for name in kinds[1:])
    cells = zip(map(words.name, rows["loss"]), *others, strict=True)
    marks, title = [_mark(row) for row in rows.itertuples()], results_table.title(frame, context)
    return page.grid(escape(title), head, cells, label=title, marks=marks, kinds=kinds)


def _mark(row):
    return (
        "floor"
        if row.verdict == "floor"
        else {1: "better", -1: "worse", 0: ""}[results_table.side(row)]
    )


def _all_numbers(frame):
    """Every pooled number, a table for each measure; measures that this page knows nothing of
    too."""
    for context in frame["context"].unique():
        where, tables = results_table.describe(context), []
        for measure, rows in results.select(frame, context=context).groupby("measure", sort=False):
            if rows["gamma"].isna().all():
                tables.append(_pivot(rows, measure, where, across="temperature"))
            else:
                parts = rows.groupby("temperature", dropna=False)
                tables += [_pivot(part, measure, where, across="gamma") for _, part in parts]
        yield page.details(f"All numbers {escape(where)}", *tables, *_by_seed(frame, context))


def _by_seed(frame, context):
    """Acceptance of each student; results.csv has the other measures of each."""
    if context not in results.contexts(frame):
        return
    temperature = results_table.headline_temperature(frame, context)
    rows = results.select(
        frame, seed=None, measure="acceptance", context=context, temperature=temperature
    )
    rows = rows.assign(at=[f"seed {seed}" for seed in rows["seed"]])
    caption = f"<code>acceptance</code> of each seed at T = {temperature:g}; results.csv has all measures of each"
    yield _grid(
        rows,
        caption,
        label=f"acceptance of each seed, {results_table.describe(context)}",
        show=results_table.form("acceptance"),
    )


def _pivot(rows, measure, where, *, across):
    show, symbol = results_table.form(measure), {"gamma": "γ", "temperature": "T"}[across]
    rows = rows.sort_values(across, kind="stable")
    rows = rows.assign(
        at=["value" if math.isnan(at) else f"{symbol} = {at:g}" for at in rows[across]]
    )
    meaning = words.MEASURES.get(measure)
    caption = f"<code>{escape(measure)}</code>{f': {meaning}' if meaning else ''}"
    return _grid(rows, caption, label=f"{measure}, {where}", show=show)


def _grid(rows, caption, *, label, show):
    """A row a loss, a column for each value of `at`."""
    cells = []
    for loss, line in rows.groupby("loss", sort=False):
        found = {
            at: show(*numbers)
            for at, *numbers in line[["at", "value", "low", "high"]].itertuples(index=False)
        }
        cells.append([words.name(loss), *(escape(found.get(at, "")) for at in rows["at"].unique())])
    return page.grid(caption, ["loss", *map(escape, rows["at"].unique())], cells, label=label)


def _facts(facts):
    rows = [[escape(str(name)), escape(str(value))] for name, value in facts.items()]
    caption = "Data, versions, and what the intervals cover"
    return page.grid(caption, ["fact", "value"], rows, label="facts", kinds=["", "text"])


def _meanings():
    yield page.details(
        "What the columns of results.csv mean",
        page.pairs((f"<code>{name}</code>", meaning) for name, meaning in words.COLUMNS.items()),
    )
    yield page.details(
        "What each measure is",
        page.pairs((f"<code>{name}</code>", meaning) for name, meaning in words.MEASURES.items()),
    )
