"""Pictures of the study of losses: differences by factor, and the ranks that each loss can have."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxdiv.reporting import formats, style
from jaxdiv.reporting.style import Theme

FACTORS = (
    "student",
    "teacher",
    "training_context",
    "temperature_of_training",
)  # columns of choose.csv
_TITLES = dict(zip(FACTORS, ("student", "teacher", "training context", "training T"), strict=True))
_NEAR, _FAR = 0.25, 5.0  # points: where the color scale bends, and where it ends


def differences(
    rows: pd.DataFrame,
    ranked: pd.DataFrame,
    reference: str,
    base: Mapping[str, object],
    theme: Theme,
) -> Figure:
    """Differences to `reference` as a map, losses by cells: a panel a factor, one for cells that
    change several.

    Args:
      rows: choose.csv of one measure.
      ranked: ranks.csv of it.
      reference: the loss that they are to.
      base: the cell from which the panels depart, by `FACTORS`.
      theme: colors.
    """
    compared = rows[rows["difference"].notna()]
    losses = [
        loss
        for loss in dict.fromkeys([*ranked["loss"], *compared["loss"]])
        if loss in set(compared["loss"])
    ]
    panels = _panels(compared, base)
    made = style.figure(
        2.6 + 0.27 * len(losses),
        title=f"What is accepted more than under {style.short(reference)}?",
        subtitle="Percentage points, held-out documents, temperature 1. Bold: real (Holm, over all losses and cells).",
        theme=theme,
        width=max(style.WIDTH, 2.6 + 0.85 * sum(len(cells) for cells in panels.values())),
    )
    widths = [len(cells) for cells in panels.values()]
    drawn = made.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=widths)[0]
    known = compared.set_index(["loss", "cell"])
    for axes, (title, cells) in zip(drawn, panels.items(), strict=True):
        _map(axes, known, losses, cells, theme)
        axes.set_title(title)
        axes.set_yticks(range(len(losses)), [style.short(loss) for loss in losses], fontsize=9)
    return made


def _panels(rows, base):
    """Title to cells by the level that they have of the title's factor, the base's own in each."""
    cells = rows.drop_duplicates("cell").set_index("cell")[list(FACTORS)]
    departs = cells.ne(pd.Series(base)[list(FACTORS)])
    panels = {}
    for factor in FACTORS:
        alone = cells[departs.drop(columns=factor).sum(axis=1).eq(0)]
        if departs.loc[alone.index, factor].any():
            panels[_TITLES[factor]] = {cell: _level(level) for cell, level in alone[factor].items()}
    if not panels:
        panels["base"] = {cell: cell for cell in cells.index[departs.sum(axis=1).eq(0)]}
    if len(several := cells.index[departs.sum(axis=1).gt(1)]):
        panels["several"] = {cell: cell.replace("-", "\n") for cell in several}
    return {title: found for title, found in panels.items() if found}


def _level(level):
    return f"{level:g}" if isinstance(level, float) else style.short(str(level))


def _map(axes, known, losses, cells, theme):
    values = np.array(
        [
            [100 * _get(known, loss, cell, "difference", math.nan) for cell in cells]
            for loss in losses
        ]
    )
    colors = LinearSegmentedColormap.from_list(
        "difference", [theme.worse, theme.paper, theme.better]
    )
    shade = np.sign(values) * np.log1p(np.abs(values) / _NEAR) / math.log1p(_FAR / _NEAR)
    axes.imshow(shade, cmap=colors, vmin=-1, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if math.isnan(value):
            continue
        real = _get(known, losses[row], list(cells)[column], "verdict", "") == "real"
        axes.text(
            column,
            row,
            formats.points(value / 100),
            ha="center",
            va="center",
            fontsize=8,
            fontweight="bold" if real else "normal",
            color=style.readable(colors((1 + shade[row, column]) / 2), theme),
        )
    axes.set_xticks(range(len(cells)), list(cells.values()), fontsize=8)
    axes.grid(False)


def _get(known, loss, cell, column, otherwise):
    return known.at[(loss, cell), column] if (loss, cell) in known.index else otherwise


def ranks(ranked: pd.DataFrame, reference: str, sources: str, theme: Theme) -> Figure:
    """The ranks that each loss can have, with its mean difference to `reference`.

    Args:
      ranked: ranks.csv of one measure.
      reference: the loss that they are to.
      sources: what intervals are over, in words.
      theme: colors.
    """
    made = style.figure(
        1.9 + 0.32 * len(ranked),
        title="Which rank can a loss have?",
        subtitle=f"Acceptance at temperature 1, mean over {_count(ranked)}. Bars: 95%, over {sources}.",
        theme=theme,
    )
    axes, margin = made.subplots(1, 2, sharey=True, width_ratios=[1.6, 1])
    for place, row in enumerate(ranked.itertuples()):
        color = theme.ink if row.verdict == "reference" else theme.muted
        if row.verdict == "real":
            color = theme.better if row.difference > 0 else theme.worse
        axes.plot(
            [row.rank_low, row.rank_high],
            [place, place],
            color=color,
            linewidth=3,
            solid_capstyle="round",
        )
        axes.plot(row.rank, place, "o", color=color, markersize=7)
        _numbers(margin, place, row, reference, theme)
    axes.set(ylim=(len(ranked) - 0.4, -0.6), xlim=(0.5, len(ranked) + 0.5), xlabel="rank")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_yticks(
        range(len(ranked)),
        [style.short(loss) for loss in ranked["loss"]],
        fontsize=10,
        color=theme.ink,
    )
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    return made


def _count(ranked):
    count = int(ranked["cells"].iloc[0])
    return f"{count} cell" + "s" * (count != 1)


def _numbers(margin, place, row, reference, theme):
    at = {"transform": margin.get_yaxis_transform(), "va": "center", "fontsize": 9.5}
    if place == 0:
        margin.set_axis_off()
        margin.text(
            0.6, -0.85, f"against {style.short(reference)}", **at, ha="right", color=theme.muted
        )
    if row.verdict != "reference":
        words = formats.points(row.difference, row.difference_low, row.difference_high)
        margin.text(
            0.6,
            place,
            words,
            **at,
            ha="right",
            fontweight="bold" if row.verdict == "real" else "normal",
        )
    margin.text(0.66, place, row.verdict.replace(" only", "\nonly"), **at, color=theme.muted)
