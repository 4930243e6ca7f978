"""Each loss's contributions by the teacher's rank of the class: finding, tables and picture."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from jaxdiv.evaluation.contributions_by_rank import TEACHER
from jaxdiv.reporting import formats, style
from jaxdiv.reporting.style import LIGHT
from jaxdiv.reporting.tables import Table

_PROBABILITY = TEACHER[1]  # the gauge of the rows that hold the teacher's probabilities
_FIRST_RANKS = (1, 2, 3, 5, 9, 17, 33, 129)  # of the groups of bins that a picture has colors for
_LOSSES_A_TABLE = 10
_ROW, _WIDTH = 0.34, 10.5  # inches
_ROOM, _WIDE = 0.055, 0.14  # widths of a bar's segment that fit a number, or one with its interval


def finding(frame: pd.DataFrame) -> str:
    """Returns in one line which losses look most and least at the teacher's top class."""
    top = 100 * _shares(frame, "gradient").iloc[0]
    most, least = top.index[0], top.index[-1]
    words = f"{most} puts {top.iloc[0]:.0f}% of its gradient on the teacher's top class"
    return words if most == least else f"{words}, {least} {top.iloc[-1]:.0f}%"


def _shares(frame: pd.DataFrame, gauge: str, *, column: str = "share") -> pd.DataFrame:
    """Returns a column [bins, losses], the loss that looks most at the top class first."""
    rows = frame[frame["gauge"].eq(gauge)]
    wide = rows.pivot(index=["rank_low", "rank_high"], columns="loss", values=column)
    wide = wide.reindex(columns=rows["loss"].unique())
    if wide.empty:
        return wide
    return wide[wide.iloc[0].round(4).sort_values(ascending=False, kind="stable").index]


def tables(frame: pd.DataFrame) -> list[Table]:
    """Returns tables of ten losses each: shares of the gradient, %, a row a bin of ranks.

    The teacher's own probability comes first.
    """
    teacher, shares = _shares(frame, _PROBABILITY), _shares(frame, "gradient")
    results = []
    for start in range(0, len(shares.columns), _LOSSES_A_TABLE):
        part = shares.iloc[:, start : start + _LOSSES_A_TABLE]
        percents = 100 * pd.concat([teacher, part], axis=1)
        rows = [[_range(*ranks), *map("{:.1f}".format, row)] for ranks, row in percents.iterrows()]
        results.append(Table(["rank", *percents], rows))
    return results


def _range(low, high):
    return f"{low}" if low == high else f"{low}–{high}"


def draw(frame: pd.DataFrame, *, subtitle: str) -> Figure:
    """Draws a row a loss: the gradient's size, its direction, and the parts in the fixed gauge.

    Args:
      frame: `contributions_by_rank.rows`.
      subtitle: what was measured, in one line.
    """
    shares, teacher = (_group(_shares(frame, gauge)) for gauge in ("gradient", _PROBABILITY))
    rows = [*teacher, *shares]
    directions = _group(_shares(frame, "gradient", column="part")).reindex(columns=rows)
    fixed = _group(_shares(frame, "fixed")).reindex(columns=rows)
    top = frame[frame["gauge"].isin(["gradient", _PROBABILITY]) & frame["rank_low"].eq(1)]
    top_labels = {
        row.loss: formats.percent(row.share, row.share_low, row.share_high)
        for row in top.itertuples()
    }
    texts = {"title": finding(frame), "subtitle": subtitle}
    figure = style.figure(2.4 + _ROW * len(rows), **texts, theme=LIGHT, width=_WIDTH)
    panels = figure.subplots(1, 3, sharey=True, width_ratios=[1.7, 0.85, 1.4])
    _draw_bars(panels[0], pd.concat([teacher, shares], axis=1), top_labels)
    _draw_directions(panels[1], directions)
    _draw_bars(panels[2], fixed, {})
    for place, loss in enumerate(rows[1:], 1):
        if fixed[loss].isna().all():
            text = {"va": "center", "fontsize": 8.5, "color": LIGHT.muted}
            panels[2].text(0, place, "not split this way", **text)
    titles = ("Size of the gradient, %", "Direction", "The loss in parts ≥ 0, %")
    for axes, title in zip(panels, titles, strict=True):
        axes.set(title=title, xticks=[])
        axes.grid(False)
        axes.spines["bottom"].set_visible(False)
    names = ["teacher's own p", *(style.short(name) for name in shares)]
    panels[0].set_yticks(range(len(rows)), names, fontsize=10.5, color=LIGHT.ink)
    panels[0].get_yticklabels()[0].set_color(LIGHT.muted)
    panels[0].set_ylim(len(rows) - 0.45, -0.55)
    colors = _ramp(len(shares))
    handles = [
        Patch(facecolor=color, label=_range(*ranks))
        for color, ranks in zip(colors, shares.index, strict=True)
    ]
    legend = {"title": "teacher's rank of the class", "loc": "outside lower left"}
    legend |= {"alignment": "left", "frameon": False, "handlelength": 1.1, "fontsize": 9.5}
    figure.legend(handles=handles, ncols=len(handles), **legend)
    return figure


def _group(values: pd.DataFrame) -> pd.DataFrame:
    """Returns [groups of bins, losses], sums over the bins of each group of ranks."""
    lows = values.index.get_level_values("rank_low")
    group = np.searchsorted(_FIRST_RANKS, lows, side="right")
    ranks = values.index.to_frame(index=False).groupby(group)
    ends = ranks.agg({"rank_low": "min", "rank_high": "max"})
    sums = values.groupby(group).sum(min_count=1)
    sums.index = pd.MultiIndex.from_frame(ends)
    return sums


def _draw_bars(axes: Axes, shares: pd.DataFrame, top_labels: Mapping[str, str]) -> None:
    """Draws stacked bars, a row a loss, with a number in each segment that has room for it."""
    colors = _ramp(len(shares))
    bar = {"height": 0.82, "color": colors, "edgecolor": LIGHT.paper, "linewidth": 0.8}
    for place, (loss, row) in enumerate(shares.items()):
        lefts = np.cumsum(row) - row
        axes.barh(place, row, left=lefts, **bar)
        for k, (value, left, color) in enumerate(zip(row, lefts, colors, strict=True)):
            label = f"{100 * value:.0f}"
            if k == 0 and value > _WIDE:
                label = top_labels.get(loss, label)
            if value >= _ROOM:
                size, ink = 8 if len(label) < 3 else 7.4, style.readable(color, LIGHT)
                text = {"ha": "center", "va": "center", "fontsize": size, "color": ink}
                axes.text(left + value / 2, place, label, **text)
    axes.set_xlim(0, 1)


def _draw_directions(axes: Axes, parts: pd.DataFrame) -> None:
    """Draws cells by rank: blue where the loss raises the logit, the stronger the deeper."""
    colors = LinearSegmentedColormap.from_list("", [LIGHT.better, LIGHT.paper, LIGHT.worse])
    for place, (_, row) in enumerate(parts.fillna(0).items()):
        strength = row.to_numpy() / max(row.abs().max(), 1e-30)
        cells = {"bottom": place - 0.41, "width": 0.94, "color": colors((1 + strength) / 2)}
        axes.bar(range(len(row)), 0.82, **cells)
    axes.set_xlabel("by rank; blue raises logits,\norange lowers them", fontsize=8.5)


def _ramp(count: int) -> list[str]:
    """Returns colors from deep to pale, the first ranks deepest."""
    mix = LinearSegmentedColormap.from_list
    deep = mix("", [LIGHT.better, LIGHT.ink])(0.85)
    pale = mix("", [LIGHT.better, LIGHT.paper])(0.88)
    ramp = mix("", [deep, LIGHT.better, pale])
    return [to_hex(ramp(x)) for x in np.linspace(0, 1, max(count, 2))[:count]]
