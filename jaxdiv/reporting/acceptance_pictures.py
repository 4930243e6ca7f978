"""Pictures that compare losses: differences, acceptance over temperature and by position."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from jaxdiv import schema
from jaxdiv.reporting import formats, results, style, verdicts
from jaxdiv.reporting.style import LIGHT, Drawing
from jaxdiv.reporting.summary import ContextSummary, LossRow, Summary

PANELS_A_ROW = 5
_FAR = 5  # a size so many times the middle one would leave no room for the rest
_TITLES = {
    schema.GENERATED: "Own text at temperature 1",
    schema.GENERATED_GREEDY: "Own text, greedy",
}


def differences(summary: Summary) -> Drawing | None:
    """Draws a row a loss: a dot with its interval, and the numbers beside it."""
    table, reference = summary.headline, summary.headline.reference
    compared = [row for row in table.rows if not math.isnan(row.difference.value)]
    if not compared or reference is None:
        return None
    title = f"Which loss gets more drafts accepted than {style.cut(reference)}?"
    subtitle = f"{table.title}. Bars: 95% intervals (Holm); small dots: seeds."
    height = 1.7 + 0.36 * len(table.rows)
    figure = style.figure(height, title=title, subtitle=subtitle, theme=LIGHT)
    axes, margin = figure.subplots(1, 2, sharey=True, width_ratios=[1.55, 1])
    reach = _reach(np.abs(row.difference).max() for row in table.trained)
    for place, row in enumerate(table.rows):
        _draw_difference(axes, place, row, reach)
    _write_numbers(margin, table.rows)
    axes.axvline(0, color=LIGHT.ink, linewidth=1, zorder=0.9)
    axes.set_xlabel(f"percentage points more than {style.short(reference)}")
    names = [style.short(row.loss) for row in table.rows]
    axes.set_yticks(range(len(names)), names, fontsize=10.5, color=LIGHT.ink)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    numbers = (f"{row.loss} {formats.points(*row.difference)} ({row.verdict})" for row in compared)
    return Drawing(
        figure,
        title,
        subtitle,
        f"How far each loss lies above or below {reference}. A bar that crosses the line at 0 does "
        "not show a difference; a filled dot is a real one.",
        f"Dots with intervals, percentage points of acceptance against {reference}: "
        f"{', '.join(numbers)}.",
    )


def _reach(sizes: Iterable[float]) -> float:
    """Returns the largest of the sizes that is not far beyond the rest."""
    ranked = sorted(size for size in sizes if 10 * verdicts.ROUNDING < size < math.inf)
    near = (size for size in ranked if size <= _FAR * ranked[(len(ranked) - 1) // 2])
    return max(near, default=math.inf)


def _draw_difference(axes: Axes, place: int, row: LossRow, reach: float) -> None:
    if row.verdict == verdicts.REFERENCE:
        axes.plot(0, place, "D", color=LIGHT.ink, markersize=7)
        return
    color = {1: LIGHT.better, -1: LIGHT.worse, 0: LIGHT.muted}[row.side]
    if np.abs(row.difference).max() > reach:
        left = row.difference.value < 0
        words, align = ("◀ off the scale", "left") if left else ("off the scale ▶", "right")
        at = {"transform": axes.get_yaxis_transform(), "va": "center", "ha": align, "color": color}
        text = axes.text(0.01 if left else 0.99, place, words, **at)
        text.set_bbox({"facecolor": LIGHT.paper, "edgecolor": "none", "pad": 1})
        return
    value, low, high = (100 * number for number in row.difference)
    seeds = 100 * np.array(row.by_seed)
    axes.plot([low, high], [place, place], color=color, linewidth=3, solid_capstyle="round")
    axes.plot(seeds, np.full(len(seeds), place + 0.3), ".", color=color, markersize=4.5)
    fill = color if row.verdict == verdicts.REAL else LIGHT.paper
    axes.plot(value, place, "o", color=color, markersize=9, markerfacecolor=fill, markeredgewidth=2)


def _write_numbers(margin: Axes, rows: Sequence[LossRow]) -> None:
    """Writes the table's numbers beside the dots."""
    at = {"transform": margin.get_yaxis_transform(), "va": "center", "fontsize": 9.5}
    margin.set_axis_off()
    heads = ((0.17, "accepted", "right"), (0.62, "difference", "right"), (0.68, "verdict", "left"))
    for x, head, align in heads:
        margin.text(x, -0.85, head, **at, ha=align, color=LIGHT.muted)
    for place, row in enumerate(rows):
        accepted = formats.percent(row.numbers["acceptance"].value)
        margin.text(0.17, place, f"{accepted}%", **at, ha="right")
        if not row.special:
            weight = "bold" if row.verdict == verdicts.REAL else "normal"
            difference = formats.points(*row.difference)
            margin.text(0.62, place, difference, **at, ha="right", fontweight=weight)
        margin.text(0.68, place, row.verdict.replace(" only", "\nonly"), **at, color=LIGHT.muted)


def over_temperature(summary: Summary) -> Drawing | None:
    """Draws all losses above, and below a panel a loss with its difference to the reference."""
    table = summary.headline
    accepted = results.select(summary.frame, measure=schema.ACCEPTANCE, context=table.context)
    temperatures = sorted(accepted["temperature"].unique())
    if len(temperatures) < 2:
        return None
    compared = [row.loss for row in table.rows if row.compared]
    columns = min(PANELS_A_ROW, len(compared)) or 1
    rows = math.ceil(len(compared) / columns)
    title = "Acceptance over the sampling temperature"
    subtitle = f"Sampled drafts, {table.phrase}. Bands and bars: 95% intervals."
    figure = style.figure(4.2 + 1.9 * rows, title=title, subtitle=subtitle, theme=LIGHT)
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=[3.2, *[1.9] * rows])
    overview = figure.add_subplot(grid[0, :])
    # Equal steps, as the temperatures were chosen; a logarithm has no place for 0.
    place = np.vectorize({t: i for i, t in enumerate(temperatures)}.get, otypes=[float])
    words = _draw_lines(overview, accepted, "temperature", table, at="T=", place=place)
    overview.set(ylabel="accepted, %", xlabel="temperature of teacher and student")
    overview.set_xticks(range(len(temperatures)), [f"{t:g}" for t in temperatures])
    differences = results.select(summary.frame, measure=schema.DIFFERENCE, context=table.context)
    by_loss = dict(list(differences.sort_values("temperature").groupby("loss")))
    lines = {loss: by_loss[loss] for loss in compared}
    panels = [figure.add_subplot(grid[1 + i // columns, i % columns]) for i in range(len(lines))]
    _draw_panels(panels, lines, place, columns)
    every = 2 if columns > 3 else 1  # labels that a panel has room for
    for axes in panels:
        ticks = [f"{t:g}" if i % every == 0 else "" for i, t in enumerate(temperatures)]
        axes.set_xticks(range(len(temperatures)), [*ticks[:-1], f"{temperatures[-1]:g}"])
    for axes in panels[::columns]:
        axes.set_ylabel(f"points above {style.short(table.reference)}", fontsize=8.5)
    return Drawing(
        figure,
        title,
        subtitle,
        "At a high temperature both distributions are flat and any student agrees with its "
        "teacher; compare losses at the temperature that texts are sampled at.",
        f"Lines of acceptance over the temperature, {table.phrase}. {words}",
    )


def _draw_panels(panels: Sequence[Axes], lines: dict, place: Callable, columns: int) -> None:
    """Draws each loss's differences.

    Panels of like size share a scale; one far beyond the rest has its own, with colored numbers.
    """
    sizes = {loss: line[["low", "high"]].abs().to_numpy().max() for loss, line in lines.items()}
    reach, shared, labelled = _reach(sizes.values()), None, set()
    for i, (axes, (loss, line)) in enumerate(zip(panels, lines.items(), strict=True)):
        if sizes[loss] > reach:
            axes.tick_params(axis="y", labelsize=8, labelcolor=LIGHT.worse)
        else:
            if shared is not None:
                axes.sharey(shared)
            shared = axes
            axes.tick_params(labelleft=i // columns not in labelled)
            labelled.add(i // columns)
        x, y = place(line["temperature"].to_numpy()), 100 * line["value"].to_numpy()
        axes.axhline(0, color=LIGHT.ink, linewidth=0.8)
        for above, color in ((True, LIGHT.better), (False, LIGHT.worse)):
            area = {"where": (y > 0) == above, "interpolate": True, "alpha": 0.22, "linewidth": 0}
            axes.fill_between(x, 0, y, color=color, **area)
        halves = 100 * np.array([line["value"] - line["low"], line["high"] - line["value"]])
        axes.errorbar(x, y, halves, color=LIGHT.ink)
        axes.set_title(style.short(loss, longest=style.PANEL_TITLE), fontsize=9.5)


def by_position(summary: Summary) -> Drawing | None:
    """Draws a panel for each of the teacher's own texts: how far drafts get."""
    counted = results.select(summary.frame, measure=schema.ACCEPTANCE_AT)
    tables = [t for t in summary.contexts.values() if t.context in set(counted["context"])]
    if not tables:
        return None
    title, deepest = "How far drafts get", counted["gamma"].max()
    subtitle = f"Rounds of {deepest:g} drafts whose draft at this position is accepted."
    figure = style.figure(4.6, title=title, subtitle=subtitle, theme=LIGHT)
    panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    words = []
    for axes, table in zip(panels, tables, strict=True):
        rows = counted[counted["context"].eq(table.context)]
        words.append(_draw_lines(axes, rows, "gamma", table, at="position "))
        axes.set_title(_TITLES.get(table.context, table.context))
        axes.set_xlabel("position in the draft")
        axes.set_xticks(sorted(counted["gamma"].unique()))
    panels[0].set(ylabel="accepted, % of rounds", ylim=(0, None))
    return Drawing(
        figure,
        title,
        subtitle,
        "The share of rounds that get this far falls with each further draft; where it is low, "
        "drafting longer is work lost.",
        f"Lines of accepted drafts over their position, {tables[0].phrase}. {words[0]}",
    )


def _draw_lines(
    axes: Axes,
    rows: pd.DataFrame,
    across: str,
    table: ContextSummary,
    *,
    at: str,
    place: Callable = np.array,
) -> str:
    """Draws a line a loss: best, reference, last and floor by name, the others gray.

    Returns the ends of the named lines in words, such as `kl from 70.0% at T=0 to 90.0% at T=2.`
    """
    ends, phrases, colors = [], [], highlights(table)
    for row in table.rows:
        line = rows[rows["loss"].eq(row.loss)].sort_values(across)
        if line.empty:
            continue
        x, color = place(line[across].to_numpy()), colors.get(row.loss)
        y, low, high = 100 * line[["value", "low", "high"]].to_numpy().T
        if color is None:
            axes.plot(x, y, color=LIGHT.quiet, linewidth=1.2, zorder=1.5)
            continue
        dashes = "--" if row.verdict == verdicts.FLOOR else "-"
        axes.plot(x, y, dashes, color=color, linewidth=2, marker="o", markersize=4)
        axes.fill_between(x, low, high, color=color, alpha=0.14, linewidth=0)
        ends.append((x[-1], y[-1], row.loss, color))
        points = [
            f"{formats.percent(end.value)}% at {at}{getattr(end, across):g}"
            for end in line.iloc[[0, -1]].itertuples()
        ]
        phrases.append(f"{row.loss} from {' to '.join(points)}")
    style.label_ends(axes, ends)
    return f"{'; '.join(phrases)}."


def highlights(table: ContextSummary) -> dict[str, str]:
    """Returns colors of the losses that a picture of many lines names; the others stay gray."""
    colors = {}
    if table.trained:
        colors = {table.trained[-1].loss: LIGHT.worse, table.trained[0].loss: LIGHT.better}
    special = {verdicts.REFERENCE: LIGHT.ink, verdicts.FLOOR: LIGHT.muted}
    return colors | {r.loss: special[r.verdict] for r in table.rows if r.verdict in special}
