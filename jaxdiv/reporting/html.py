"""report.html: one file that opens from disk, fetches nothing, runs no script and says what a run found."""

import math
import os
from collections.abc import Mapping
from html import escape

import pandas as pd

from jaxdiv import files
from jaxdiv.reporting import decoded, page, pictures, results, style, table, words

_PICTURES = {
    "differences": "Each loss's difference to the reference with its interval; the table has the same numbers.",
    "acceptance_over_temperature": "Acceptance of each loss over the sampling temperature, and its difference to the "
    "reference; all numbers stand in the tables below.",
    "acceptance_by_position": "Share of rounds whose draft is accepted, falling with the position in the draft.",
    "training_curves": "Held-out acceptance, gradient norm and loss over the training steps.",
}


def write_report(
    path: str | os.PathLike,
    *,
    frame: pd.DataFrame,
    curves: pd.DataFrame,
    config_text: str,
    facts: Mapping[str, object],
) -> None:
    """Writes the report of a run so that it is never half written.

    Args:
      path: where to.
      frame: results.
      curves: columns step, loss, seed, metric, value; may be empty.
      config_text: the config as its user would read it.
      facts: what else a reader must know, in order: fingerprints, versions, seeds, what the intervals cover.

    Raises:
      ValueError: the results have other columns, or no acceptance among them.
    """
    results.check(frame)
    if not results.contexts(frame):
        raise ValueError("a report needs at least one row of `acceptance` with seed `all`; the results have none")
    shown = _pictures(frame, curves)
    sections = {
        "table": ("The table", *_main_table(frame, curves), shown.get("differences", "")),
        "pictures": ("Pictures", *(shown[name] for name in shown if name not in ("differences", "training_curves"))),
        "training": ("Training", shown.get("training_curves", "<p>No training curves were kept.</p>")),
        "numbers": ("All numbers", *_all_numbers(frame)),
        "run": ("The run", _facts(facts), page.details("The config", f"<pre>{escape(config_text)}</pre>")),
        "meaning": ("What each column means", *_meanings()),
    }
    links = " ".join(f'<a href="#{name}">{heading}</a>' for name, (heading, *_) in sections.items())
    body = [_front(frame), f'<nav aria-label="Contents">{links}</nav>', "<main>"]
    body += [page.section(name, *parts) for name, parts in sections.items()]
    files.write_text(path, page.document(title="jaxdiv report", body="\n".join([*body, "</main>"])))


def _pictures(frame, curves):
    themes = (style.LIGHT, style.DARK)
    light, dark = (pictures.render(frame=frame, curves=curves, theme=theme) for theme in themes)
    phones = [pictures.render_for_phones(frame=frame, theme=theme) for theme in themes]
    return {
        name: page.picture(
            light=light[name],
            dark=dark[name],
            alt=_PICTURES[name],
            narrow=tuple(phone[name] for phone in phones) if name in phones[0] else None,
        )
        for name in light
    }


def _front(frame):
    first, others = words.finding(frame)
    tiles = "".join(f"<div><dt>{head}</dt><dd>{value}</dd></div>" for head, value in _tiles(frame))
    note = f"{table.title(frame)}. ± is a 95% interval; those of differences are corrected for their number (Holm)."
    return (
        f'<header>\n<p class="kicker">jaxdiv report</p>\n<h1>{first}</h1>\n<p>{others}</p>\n'
        f'<p class="muted">{escape(note)}</p>\n<dl class="tiles">{tiles}</dl>\n</header>'
    )


def _tiles(frame):
    """The few numbers that a reader takes home."""
    ranked = table.summary(frame, context=results.contexts(frame)[0])
    trained = ranked[ranked["verdict"].ne("floor")]
    if trained.empty:
        return
    best = trained.iloc[0]
    yield "highest acceptance", words.name(best["loss"])
    yield "accepted", _small(table.percent(best["acceptance"], best["acceptance_low"], best["acceptance_high"]), "%")
    if best["verdict"] != "reference" and not math.isnan(best["difference"]):
        gain = table.points(best["difference"], best["difference_low"], best["difference_high"])
        yield f"points above {words.name(results.reference(frame))}", _small(gain)
    if not math.isnan(best["tau"]):
        yield f"tokens a target call, γ = {best['gamma']:g}", table.tokens(best["tau"])
    for floor in ranked[ranked["verdict"].eq("floor")].itertuples():
        yield "untrained", _small(table.percent(floor.acceptance, floor.acceptance_low, floor.acceptance_high), "%")


def _small(number, unit=""):
    value, _, half = number.partition(" ")
    return f"{value}{unit} <small>{half}</small>" if half else value + unit


def _main_table(frame, curves):
    yield _summary(frame, results.contexts(frame)[0])
    yield f"<p>{words.VERDICTS}</p>"
    lost = [loss for loss in curves["loss"].unique() if loss not in results.losses(frame)]
    if lost:
        names = ", ".join(words.name(loss) for loss in lost)
        yield f'<p role="note"><b>Left out:</b> {names}, trained but without a finite result.</p>'
    for context in results.contexts(frame)[1:]:
        heading = f"The same {escape(table.describe(context))}"
        yield page.details(heading, _summary(frame, context))
    if by_decoding := decoded.rows(frame):
        head, title = map(escape, decoded.HEADERS), decoded.title(frame)
        cells = [[words.name(loss), *map(escape, rest)] for loss, *rest in by_decoding]
        yield page.grid(f"{escape(title)}. {escape(decoded.NOTE)}", list(head), cells, label=title)


def _summary(frame, context):
    rows = table.summary(frame, context=context)
    head = [escape(name.strip()).replace("\n", "<br>") for name in table.headers(rows, results.reference(frame))]
    cells = [
        [words.name(row.loss), *(escape(cell.plain) for cell in table.cells(row)[1:])] for row in rows.itertuples()
    ]
    marks, title = [_mark(row) for row in rows.itertuples()], table.title(frame, context)
    made = page.grid(escape(title), head, cells, label=title, marks=marks)
    return f'<div class="verdicts">{made}</div>'


def _mark(row):
    if row.verdict == "real":
        return "better" if row.difference > 0 else "worse"
    return "floor" if row.verdict == "floor" else ""


def _all_numbers(frame):
    """Every pooled number, a table for each measure; measures that this page knows nothing of too."""
    yield "<p>The same numbers, and those of each seed, stand in results.csv.</p>"
    for context in frame["context"].unique():
        tables = []
        for measure, rows in results.select(frame, context=context).groupby("measure", sort=False):
            if rows["gamma"].isna().all():
                tables.append(_pivot(rows, measure, across="temperature"))
            else:
                parts = rows.groupby("temperature", dropna=False)
                tables += [_pivot(part, measure, across="gamma") for _, part in parts]
        yield page.details(_capital(escape(table.describe(context))), *tables)


def _pivot(rows, measure, *, across):
    show, symbol = table.form(measure), {"gamma": "γ", "temperature": "T"}[across]
    order = rows["loss"].unique()
    rows = rows.sort_values(across, kind="stable")
    rows = rows.assign(at=["value" if math.isnan(at) else f"{symbol} = {at:g}" for at in rows[across]])
    cells = []
    for loss in order:
        line = rows[rows["loss"].eq(loss)].set_index("at")[["value", "low", "high"]]
        found = {at: show(*numbers) for at, numbers in zip(line.index, line.to_numpy().tolist(), strict=True)}
        cells.append([words.name(loss), *(escape(found.get(at, "")) for at in rows["at"].unique())])
    meaning = words.MEASURES.get(measure)
    caption = f"<code>{escape(measure)}</code>{f': {meaning}' if meaning else ''}"
    return page.grid(caption, ["loss", *rows["at"].unique()], cells, label=measure)


def _facts(facts):
    rows = [[escape(str(name)), escape(str(value))] for name, value in facts.items()]
    return f'<div class="facts">{page.grid("What decides these numbers", ["fact", "value"], rows, label="facts")}</div>'


def _meanings():
    yield page.pairs((f"<code>{name}</code>", meaning) for name, meaning in words.COLUMNS.items())
    yield "<h3>Measures</h3>"
    yield page.pairs((f"<code>{name}</code>", meaning) for name, meaning in words.MEASURES.items())


def _capital(text):
    return text[:1].upper() + text[1:]
