"""Which classes each loss looks at, by the teacher's rank of the class: a table and a picture."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich import box
from rich.table import Table

from jaxdiv.reporting import style
from jaxdiv.reporting.style import Theme

COLUMNS = (
    "loss", "gauge", "rank_low", "rank_high",
    "share", "share_low", "share_high", "part", "part_low", "part_high", "n",
)  # fmt: skip
PROBABILITY = "probability"  # the gauge of the rows that hold the teacher's probabilities
_FIRST_RANKS = (1, 2, 3, 5, 9, 17, 33, 129)  # of the groups of bins that a picture has colors for
_LOSSES_A_TABLE = 10
_ROW, _WIDTH = 0.34, 10.5
_ROOM, _WIDE = 0.055, 0.14  # of a bar, for a number or one with its interval to stand in it


def finding(frame: pd.DataFrame) -> str:
    """In one line, which losses look most and least at the teacher's top class."""
    top = 100 * _shares(frame, "gradient").iloc[0]
    most, least = top.index[0], top.index[-1]
    words = f"{most} puts {top.iloc[0]:.0f}% of its gradient on the teacher's top class"
    return words if most == least else f"{words}, {least} {top.iloc[-1]:.0f}%"


def tables(frame: pd.DataFrame, *, gauge: str = "gradient") -> list[Table]:
    """Each loss's share, %, a row a bin of ranks, so many losses a table; the teacher's own
    probability comes first."""
    teacher, shares = _shares(frame, PROBABILITY), _shares(frame, gauge)
    count = len(shares.columns)
    return [
        _table(teacher, shares.iloc[:, i : i + _LOSSES_A_TABLE])
        for i in range(0, count, _LOSSES_A_TABLE)
    ]


def _table(teacher, shares):
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    made.add_column("rank", no_wrap=True)
    both = 100 * pd.concat([teacher, shares], axis=1)
    for name in both:
        made.add_column(name, justify="right", overflow="fold")
    for ranks, row in both.iterrows():
        made.add_row(_words(*ranks), *(f"{value:.1f}" for value in row))
    return made


def render(frame: pd.DataFrame, *, subtitle: str, theme: Theme = style.LIGHT) -> bytes:
    """The picture of `draw` as a PNG file.

    Args:
      frame: columns `COLUMNS`.
      subtitle: what was measured, in one line.
      theme: `style.LIGHT` or `style.DARK`.
    """
    with matplotlib.rc_context(style.rc(theme)):
        return style.png(draw(frame, theme, subtitle=subtitle))


def draw(frame: pd.DataFrame, theme: Theme, *, subtitle: str) -> Figure:
    """A row a loss: bars of 100% of the gradient's size, its direction, and bars of the parts in
    the fixed gauge."""
    shares = _grouped(_shares(frame, "gradient"))
    teacher = _grouped(_shares(frame, PROBABILITY))
    rows = [*teacher, *shares]
    made = style.figure(
        2.4 + _ROW * len(rows), title=finding(frame), subtitle=subtitle, theme=theme, width=_WIDTH
    )
    size, direction, fixed = made.subplots(1, 3, sharey=True, width_ratios=[1.7, 0.85, 1.4])
    _bars(size, pd.concat([teacher, shares], axis=1).T, theme, tops=_tops(frame))
    _directions(
        direction,
        _grouped(_shares(frame, "gradient", column="part")).reindex(columns=rows).T,
        theme,
    )
    _bars(fixed, _grouped(_shares(frame, "fixed")).reindex(columns=rows).T, theme)
    for place, loss in enumerate(rows):
        if place and loss not in set(frame.loc[frame["gauge"].eq("fixed"), "loss"]):
            fixed.text(0, place, "not split this way", va="center", fontsize=8.5, color=theme.muted)
    for axes, title in (
        (size, "Size of the gradient, %"),
        (direction, "Direction"),
        (fixed, "The loss in parts ≥ 0, %"),
    ):
        axes.set_title(title)
        axes.grid(False)
        axes.spines["bottom"].set_visible(False)
        axes.set_xticks([])
    names = ["teacher's own p", *(style.short(name) for name in shares)]
    size.set_yticks(range(len(rows)), names, fontsize=10.5, color=theme.ink)
    size.get_yticklabels()[0].set_color(theme.muted)
    size.set_ylim(len(rows) - 0.45, -0.55)
    handles = [
        Patch(facecolor=color, label=_words(*ranks))
        for ranks, color in zip(shares.index, _ramp(theme, len(shares)), strict=True)
    ]
    words = {
        "title": "teacher's rank of the class",
        "loc": "outside lower left",
        "ncols": len(handles),
    }
    made.legend(
        handles=handles, **words, alignment="left", frameon=False, handlelength=1.1, fontsize=9.5
    )
    return made


def _bars(axes, shares, theme, tops=None):
    """Stacked, a row a loss; with its number where a segment has room, of the top class also its
    interval."""
    colors = _ramp(theme, len(shares.columns))
    for place, (loss, row) in enumerate(shares.iterrows()):
        lefts = np.cumsum(row) - row
        axes.barh(
            place, row, left=lefts, height=0.82, color=colors, edgecolor=theme.paper, linewidth=0.8
        )
        for k, (value, left, color) in enumerate(zip(row, lefts, colors, strict=True)):
            words = tops[loss] if tops and k == 0 and value > _WIDE else f"{100 * value:.0f}"
            if value >= _ROOM:
                at = {
                    "ha": "center",
                    "va": "center",
                    "fontsize": 8 if len(words) < 3 else 7.4,
                    "color": style.readable(color, theme),
                }
                axes.text(left + value / 2, place, words, **at)
    axes.set_xlim(0, 1)


def _tops(frame):
    """The top class's share of each loss, with half the width of its interval."""
    rows = frame[frame["gauge"].isin(["gradient", PROBABILITY]) & frame["rank_low"].eq(1)]
    halves = np.maximum(rows["share"] - rows["share_low"], rows["share_high"] - rows["share"])
    words = zip(rows["loss"], 100 * rows["share"], 100 * halves, strict=True)
    return {
        loss: f"{share:.1f}" + (f" ±{half:.1f}" if np.isfinite(half) else "")
        for loss, share, half in words
    }


def _directions(axes, parts, theme):
    """Cells by rank: in the color of `better` where the loss raises the logit, the stronger the
    deeper."""
    for place, row in enumerate(parts.fillna(0).to_numpy()):
        strength = row / max(np.abs(row).max(), 1e-30)
        colors = [
            _mixed(theme.paper, theme.worse if value > 0 else theme.better, abs(value))
            for value in strength
        ]
        axes.bar(range(len(row)), 0.82, bottom=place - 0.41, width=0.94, color=colors)
    axes.set_xlabel("by rank; blue raises logits,\norange lowers them", fontsize=8.5)


def _shares(frame, gauge, *, column="share"):
    """[bins, losses]: the one that looks most at the top class first, those that look alike in the
    frame's order."""
    rows = frame[frame["gauge"].eq(gauge)]
    wide = rows.pivot(index=["rank_low", "rank_high"], columns="loss", values=column)
    wide = wide.reindex(columns=rows["loss"].unique())
    return (
        wide[wide.iloc[0].round(4).sort_values(ascending=False, kind="stable").index]
        if len(wide)
        else wide
    )


def _grouped(shares):
    """Sums over the bins of each group of ranks."""
    lows = shares.index.get_level_values("rank_low")
    group = np.searchsorted(_FIRST_RANKS, lows, side="right")
    ends = (
        shares.index.to_frame(index=False)
        .groupby(group)
        .agg({"rank_low": "min", "rank_high": "max"})
    )
    summed = shares.groupby(group).sum(min_count=1)
    summed.index = pd.MultiIndex.from_frame(ends)
    return summed


def _words(low, high):
    return f"{low}" if low == high else f"{low}–{high}"


def _ramp(theme, count):
    """From deep to pale, the first ranks deepest."""
    deep, pale = _mixed(theme.better, theme.ink, 0.85), _mixed(theme.better, theme.paper, 0.88)
    steps = np.linspace(0, 1, max(count, 2))[:count]
    return [
        _mixed(deep, theme.better, 2 * x) if x < 0.5 else _mixed(theme.better, pale, 2 * x - 1)
        for x in steps
    ]


def _mixed(a, b, weight):
    return to_hex((1 - weight) * np.array(to_rgb(a)) + weight * np.array(to_rgb(b)))
