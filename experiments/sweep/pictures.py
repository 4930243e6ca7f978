"""Pictures of a sweep: differences by factor, and the ranks that each loss can have."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.common import study_report
from experiments.sweep.cells import FACTOR_COLUMNS
from experiments.sweep.plan import REFERENCE
from jaxdiv.reporting import formats, style, verdicts
from jaxdiv.reporting.style import Theme

_TITLES = ("student", "teacher", "training context", "training T")  # of `FACTOR_COLUMNS`
_LINEAR, _LARGEST = 0.25, 5.0  # points: the color scale is linear below, and ends above


def differences(
    rows: pd.DataFrame, ranked: pd.DataFrame, base: Mapping[str, object], theme: Theme
) -> Figure:
    """Draws differences to the reference as a map of losses by cells: a panel a factor, and one for
    cells that change several.

    Args:
      rows: choose.csv of one measure.
      ranked: ranks.csv of it.
      base: the cell from which the panels' cells differ, by `FACTOR_COLUMNS`.
      theme: colors.
    """
    compared = rows[rows["difference"].notna()]
    names = set(compared["loss"])
    losses = [name for name in dict.fromkeys([*ranked["loss"], *compared["loss"]]) if name in names]
    panels = _panels(compared, base)
    widths = [len(cells) for cells in panels.values()]
    figure = style.figure(
        2.6 + 0.27 * len(losses),
        title=f"What is accepted more than under {style.short(REFERENCE)}?",
        subtitle="Percentage points, held-out documents, temperature 1. Bold: real (Holm, over all "
        "losses and cells).",
        theme=theme,
        width=max(style.WIDTH, 2.6 + 0.85 * sum(widths)),
    )
    tables = {
        column: compared.pivot(index="loss", columns="cell", values=column).reindex(index=losses)
        for column in ("difference", "verdict")
    }
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, (title, cells) in zip(all_axes, panels.items(), strict=True):
        values, verdict = (tables[name][list(cells)].to_numpy() for name in tables)
        values = 100 * values.astype(float)
        scaled = np.log1p(np.abs(values) / _LINEAR) / math.log1p(_LARGEST / _LINEAR)
        study_report.heat_map(
            axes,
            np.sign(values) * scaled,
            lambda *cell, values=values: formats.points(values[cell] / 100),
            theme,
            size=8,
            bold=lambda *cell, verdict=verdict: verdict[cell] == verdicts.REAL,
        )
        axes.set_title(title)
        axes.set_xticks(range(len(cells)), list(cells.values()), fontsize=8)
        axes.set_yticks(range(len(losses)), [style.short(loss) for loss in losses], fontsize=9)
    return figure


def _panels(rows: pd.DataFrame, base: Mapping[str, object]) -> dict[str, dict[str, str]]:
    """Returns for each title its cells, the base among them, by their level of that factor."""
    cells = rows.drop_duplicates("cell").set_index("cell")[list(FACTOR_COLUMNS)]
    differs = cells.ne(pd.Series(base)[list(FACTOR_COLUMNS)])
    panels = {}
    for factor, title in zip(FACTOR_COLUMNS, _TITLES, strict=True):
        levels = cells.loc[~differs.drop(columns=factor).any(axis=1), factor]
        if differs.loc[levels.index, factor].any():
            panels[title] = {
                cell: f"{level:g}" if isinstance(level, float) else style.short(str(level))
                for cell, level in levels.items()
            }
    changes = differs.sum(axis=1)
    if not panels:
        panels["base"] = {cell: cell for cell in cells.index[changes.eq(0)]}
    panels["several"] = {cell: cell.replace("-", "\n") for cell in cells.index[changes.gt(1)]}
    return {title: names for title, names in panels.items() if names}


def ranks(ranked: pd.DataFrame, sources: str, theme: Theme) -> Figure:
    """Draws the ranks that each loss can have, with its mean difference to the reference.

    Args:
      ranked: ranks.csv of one measure.
      sources: what intervals are over, in words.
      theme: colors.
    """
    count, losses = int(ranked["cells"].iloc[0]), len(ranked)
    cells = f"{count} cell" + "s" * (count != 1)
    figure = style.figure(
        1.9 + 0.32 * losses,
        title="Which rank can a loss have?",
        subtitle=f"Acceptance at temperature 1, mean over {cells}. Bars: 95%, over {sources}.",
        theme=theme,
    )
    axes, margin = figure.subplots(1, 2, sharey=True, width_ratios=[1.6, 1])
    margin.set_axis_off()
    words = {"transform": margin.get_yaxis_transform(), "va": "center", "fontsize": 9.5}
    against = f"against {style.short(REFERENCE)}"
    margin.text(0.6, -0.85, against, **words, ha="right", color=theme.muted)
    for y, row in enumerate(ranked.itertuples()):
        real, color = row.verdict == verdicts.REAL, theme.muted
        if real:
            color = theme.better if row.difference > 0 else theme.worse
        elif row.verdict == verdicts.REFERENCE:
            color = theme.ink
        bar = {"color": color, "linewidth": 3, "solid_capstyle": "round"}
        axes.plot([row.rank_low, row.rank_high], [y, y], **bar)
        axes.plot(row.rank, y, "o", color=color, markersize=7)
        if row.verdict != verdicts.REFERENCE:
            points = formats.points(row.difference, row.difference_low, row.difference_high)
            weight = "bold" if real else "normal"
            margin.text(0.6, y, points, **words, ha="right", fontweight=weight)
        margin.text(0.66, y, row.verdict.replace(" only", "\nonly"), **words, color=theme.muted)
    axes.set(ylim=(losses - 0.4, -0.6), xlim=(0.5, losses + 0.5), xlabel="rank")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    names = [style.short(loss) for loss in ranked["loss"]]
    axes.set_yticks(range(losses), names, fontsize=10, color=theme.ink)
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    return figure
