"""Pictures that compare losses: differences to the reference, acceptance over temperature and by
position."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxdiv.reporting import results, results_table, style
from jaxdiv.reporting.style import Theme

PANELS_A_ROW = 5
_WIDE_PANEL = 2.6  # inches in which all temperatures can be written
_FAR = 5  # so many times the middle one's size, a difference would leave no room for the rest
_PANEL_TITLES = {"generated": "Own text at temperature 1", "generated_greedy": "Own text, greedy"}


def differences(frame: pd.DataFrame, theme: Theme, *, narrow: bool = False) -> Figure | None:
    """Dots with intervals, one row a loss, and their numbers where there is room; None without a
    difference to draw."""
    context = results.contexts(frame)[0]
    rows, reference = results_table.summary(frame, context=context), results.reference(frame)
    if rows["difference"].notna().sum() == 0 or reference is None:
        return None
    question, bars = (
        f"accepted than {style.short(reference)}?",
        "Bars: 95% intervals (Holm); small dots: seeds.",
    )
    made = style.figure(
        1.7 + 0.36 * len(rows),
        title=f"More {question}" if narrow else f"Which loss gets more drafts {question}",
        subtitle=bars if narrow else f"{results_table.title(frame, context)}. {bars}",
        theme=theme,
        width=style.NARROW if narrow else style.WIDTH,
    )
    if narrow:
        _dots(made.add_subplot(), rows, reference, theme, longest=style.PANEL_NAME)
        return made
    axes, margin = made.subplots(1, 2, sharey=True, width_ratios=[1.55, 1])
    _dots(axes, rows, reference, theme)
    for place, row in enumerate(rows.itertuples()):
        _numbers(margin, place, row, theme)
    return made


def over_temperature(frame: pd.DataFrame, theme: Theme, *, narrow: bool = False) -> Figure | None:
    """All losses above, each loss's difference to the reference below; None with fewer than two
    temperatures."""
    context = results.contexts(frame)[0]
    accepted = results.select(frame, measure="acceptance", context=context)
    temperatures = sorted(accepted["temperature"].unique())
    if len(temperatures) < 2:
        return None
    ranked = results_table.summary(frame, context=context)
    compared = [
        row.loss
        for row in ranked.itertuples()
        if not math.isnan(row.difference) and row.verdict != "floor"
    ]
    columns = min(2 if narrow else PANELS_A_ROW, len(compared)) or 1
    rows = math.ceil(len(compared) / columns)
    made = style.figure(
        4.2 + 1.9 * rows,
        title="Acceptance over temperature"
        if narrow
        else "Acceptance over the sampling temperature",
        subtitle=f"{'' if narrow else f'Sampled drafts, {results_table.describe(context)}. '}Bands and bars: 95% intervals.",
        theme=theme,
        width=style.NARROW if narrow else style.WIDTH,
    )
    grid = made.add_gridspec(1 + rows, columns, height_ratios=[3.2, *[1.9] * rows])
    overview = made.add_subplot(grid[0, :])
    _lines(overview, accepted, "temperature", ranked, theme, place=_steps(temperatures))
    _temperature_axis(overview, temperatures)
    overview.set(ylabel="accepted, %", xlabel="temperature of teacher and student")
    _panels(made, grid, frame, compared, context, temperatures, theme)
    return made


def by_position(frame: pd.DataFrame, theme: Theme, *, narrow: bool = False) -> Figure | None:
    """How far drafts get: one panel for each of the teacher's own texts."""
    counted = results.select(frame, measure="acceptance_at")
    shown = [name for name in results.contexts(frame) if name in set(counted["context"])]
    if not shown:
        return None
    rounds = "Rounds" if narrow else f"Rounds of {counted['gamma'].max():g} drafts"
    made = style.figure(
        1.0 + 3.2 * len(shown) if narrow else 4.6,
        title="How far drafts get",
        subtitle=f"{rounds} whose draft at this position is accepted.",
        theme=theme,
        width=style.NARROW if narrow else style.WIDTH,
    )
    shape = (len(shown), 1) if narrow else (1, len(shown))
    panels = made.subplots(*shape, sharey=True, squeeze=False)
    for axes, context in zip(panels.flat, shown, strict=True):
        ranked = results_table.summary(frame, context=context)
        _lines(axes, counted[counted["context"].eq(context)], "gamma", ranked, theme)
        axes.set(title=_PANEL_TITLES.get(context, context), xlabel="position in the draft")
        axes.set_xticks(sorted(counted["gamma"].unique()))
    for axes in panels[:, 0]:
        axes.set(ylabel="accepted, % of rounds", ylim=(0, None))
    return made


def _dots(axes, rows, reference, theme, **length):
    reach = _reach(_size(row) for row in rows.itertuples() if row.verdict != "floor")
    for place, row in enumerate(rows.itertuples()):
        _difference(axes, place, row, reach, theme)
    axes.axvline(0, color=theme.ink, linewidth=1, zorder=0.9)
    axes.set(
        ylim=(len(rows) - 0.4, -0.6),
        xlabel=f"percentage points more than {style.short(reference, **length)}",
    )
    names = [style.short(name, **length) for name in rows["loss"]]
    axes.set_yticks(range(len(rows)), names, fontsize=10.5, color=theme.ink)
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")


def _size(row):
    """Of a difference with its interval; NaN where there is none."""
    return np.max(np.abs([row.difference, row.difference_low, row.difference_high]))


def _reach(sizes):
    """The largest of `sizes` that is not far beyond the rest."""
    sizes = sorted(size for size in sizes if math.isfinite(size) and size > 10 * results.ROUNDING)
    return max(
        (size for size in sizes if size <= _FAR * sizes[(len(sizes) - 1) // 2]), default=math.inf
    )


def _off_the_scale(axes, place, row, color, theme):
    left = row.difference < 0
    words = axes.text(
        0.01 if left else 0.99,
        place,
        "◀ off the scale" if left else "off the scale ▶",
        transform=axes.get_yaxis_transform(),
        va="center",
        ha="left" if left else "right",
    )
    words.set(color=color, bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 1})


def _difference(axes, place, row, reach, theme):
    if row.verdict == "reference":
        axes.plot(0, place, "D", color=theme.ink, markersize=7)
        return
    color = {1: theme.better, -1: theme.worse, 0: theme.muted}[results_table.side(row)]
    if _size(row) > reach:
        _off_the_scale(axes, place, row, color, theme)
        return
    filled = color if row.verdict == "real" else theme.paper
    low, high, middle = (
        100 * value for value in (row.difference_low, row.difference_high, row.difference)
    )
    axes.plot([low, high], [place, place], color=color, linewidth=3, solid_capstyle="round")
    axes.plot(
        100 * np.array(row.by_seed),
        np.full(len(row.by_seed), place + 0.3),
        ".",
        color=color,
        markersize=4.5,
    )
    axes.plot(
        middle,
        place,
        "o",
        markersize=9,
        markerfacecolor=filled,
        markeredgecolor=color,
        markeredgewidth=2,
    )


def _numbers(margin, place, row, theme):
    """What the table says of a loss, beside its dot."""
    at = {"transform": margin.get_yaxis_transform(), "va": "center", "fontsize": 9.5}
    if place == 0:
        margin.set_axis_off()
        for x, head, side in (
            (0.17, "accepted", "right"),
            (0.62, "difference", "right"),
            (0.68, "verdict", "left"),
        ):
            margin.text(x, -0.85, head, **at, ha=side, color=theme.muted)
    margin.text(0.17, place, f"{results_table.percent(row.acceptance)}%", **at, ha="right")
    if row.verdict not in ("reference", "floor"):
        bold = "bold" if row.verdict == "real" else "normal"
        words = results_table.points(row.difference, row.difference_low, row.difference_high)
        margin.text(0.62, place, words, **at, ha="right", fontweight=bold)
    margin.text(0.68, place, row.verdict.replace(" only", "\nonly"), **at, color=theme.muted)


def _lines(axes: Axes, rows, across, ranked, theme, place=lambda x: x):
    """A line a loss: the best, the reference, the last and the floor by name, the others gray."""
    ends, named = [], style.named(ranked, theme)
    for loss in ranked["loss"]:
        line = rows[rows["loss"].eq(loss)].sort_values(across)
        if line.empty:
            continue
        x, y = place(line[across].to_numpy()), 100 * line["value"].to_numpy()
        color = named.get(loss)
        if color is None:
            axes.plot(x, y, color=theme.quiet, linewidth=1.2, zorder=1.5)
            continue
        dashed = "--" if loss == results.UNTRAINED else "-"
        axes.plot(x, y, dashed, color=color, linewidth=2, marker="o", markersize=4)
        axes.fill_between(
            x, 100 * line["low"], 100 * line["high"], color=color, alpha=0.14, linewidth=0
        )
        ends.append((x[-1], y[-1], loss, color))
    style.label_ends(axes, ends)


def _panels(made, grid, frame, compared, context, temperatures, theme):
    """Those of like size share a scale; one far beyond the rest has its own, with colored
    numbers."""
    lines = {
        loss: results.select(frame, measure="difference", loss=loss, context=context).sort_values(
            "temperature"
        )
        for loss in compared
    }
    sizes = {loss: line[["low", "high"]].abs().to_numpy().max() for loss, line in lines.items()}
    reach, shared, labelled, place = _reach(sizes.values()), None, set(), _steps(temperatures)
    for i, (loss, line) in enumerate(lines.items()):
        own = sizes[loss] > reach
        axes = made.add_subplot(
            grid[1 + i // grid.ncols, i % grid.ncols], sharey=None if own else shared
        )
        shared = shared if own else axes
        x, y = place(line["temperature"].to_numpy()), 100 * line["value"].to_numpy()
        axes.axhline(0, color=theme.ink, linewidth=0.8)
        for above, color in ((True, theme.better), (False, theme.worse)):
            axes.fill_between(
                x,
                0,
                y,
                where=(y > 0) == above,
                interpolate=True,
                color=color,
                alpha=0.22,
                linewidth=0,
            )
        axes.errorbar(
            x,
            y,
            100 * np.array([line["value"] - line["low"], line["high"] - line["value"]]),
            color=theme.ink,
        )
        axes.set_title(style.short(loss, longest=style.PANEL_NAME), fontsize=9.5)
        _temperature_axis(
            axes, temperatures, every=2 if made.get_figwidth() / grid.ncols < _WIDE_PANEL else 1
        )
        row = i // grid.ncols
        axes.tick_params(labelleft=own or row not in labelled)
        labelled |= set() if own else {row}
        if own:
            axes.tick_params(axis="y", labelsize=7.5, labelcolor=theme.worse)
        if i % grid.ncols == 0:
            axes.set_ylabel(f"points above {style.short(results.reference(frame))}", fontsize=8.5)


def _steps(temperatures):
    """Temperatures in equal steps, as they were chosen; a logarithm has no place for 0."""
    order = {t: i for i, t in enumerate(temperatures)}
    return lambda values: np.array([order[value] for value in values], float)


def _temperature_axis(axes, temperatures, every=1):
    labels = [
        f"{t:g}" if i % every == 0 or t == temperatures[-1] else ""
        for i, t in enumerate(temperatures)
    ]
    axes.set_xticks(range(len(temperatures)), labels)
