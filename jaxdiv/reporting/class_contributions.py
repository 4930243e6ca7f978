"""What each class of two given distributions adds to each loss: the finding in words, as a table
and as a picture."""

import itertools
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from jaxdiv.reporting import style
from jaxdiv.reporting.style import Theme

COLUMNS = ("loss", "gauge", "class", "p", "q", "part", "share")
_LOSSES_A_TABLE = 2
_MOST_CLASSES, _LANE = 10, 0.13  # that a picture has room for; inches of a loss among several
_SAME = 1e-4  # of the largest gradient; what float32 leaves between two ways to write one number is far less
_TITLES = {
    "raw": "Shares as written",
    "fixed": "Shares, no part below 0",
    "gradient": "What the logits feel",
}
_AXES = {
    "raw": "% of the sum of sizes",
    "fixed": "% of the sum",
    "gradient": "gradient by the student's logits",
}
_FURTHER = (
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
)  # colors after the theme's two, from their palette
_TINY = 1e-30


def finding(frame: pd.DataFrame) -> str:
    """In one line, how far the losses' shares and gradients lie apart."""
    losses = list(frame["loss"].unique())
    if len(losses) < 2:
        return f"What each class adds to {losses[0]}"
    gauge = shares_gauge(frame)
    apart = 100 * _apart(frame, gauge, "share") if gauge else 0.0
    words = (
        [f"shares up to {apart:.1f} points apart" if apart >= 0.05 else "one and the same shares"]
        if gauge
        else []
    )
    apart = _apart(frame, "gradient", "part")
    largest = frame.loc[frame["gauge"].eq("gradient"), "part"].abs().max()
    words.append(
        f"gradients up to {apart:.2g} apart"
        if apart > _SAME * largest
        else "one and the same gradient"
    )
    names = (
        f"{', '.join(losses[:-1])} and {losses[-1]}"
        if len(losses) <= 3
        else f"{len(losses)} losses"
    )
    return f"{names}: {', '.join(words)}"


def shares_gauge(frame: pd.DataFrame) -> str | None:
    """`raw`, or else `fixed`, where two losses can be compared in it."""
    return next(
        (gauge for gauge in ("raw", "fixed") if len(_wide(frame, gauge, "share").columns) > 1), None
    )


def tables(frame: pd.DataFrame) -> list[Table]:
    """One row a class, two losses a table: parts as written and their shares, and the gradient."""
    losses = list(frame["loss"].unique())
    return [
        _table(frame, losses[i : i + _LOSSES_A_TABLE])
        for i in range(0, len(losses), _LOSSES_A_TABLE)
    ]


def render(frame: pd.DataFrame, *, theme: Theme = style.LIGHT) -> bytes:
    """The picture of `draw` as a PNG file.

    Args:
      frame: columns `COLUMNS`, one row a loss, gauge and class.
      theme: `style.LIGHT` or `style.DARK`.
    """
    with matplotlib.rc_context(style.rc(theme)):
        return style.png(draw(frame, theme))


def draw(frame: pd.DataFrame, theme: Theme) -> Figure:
    """A panel a gauge, a row a class; of two losses a dot in a ring where they agree, of more a
    lane each."""
    losses, classes = list(frame["loss"].unique()), _largest(frame)
    gauges = [gauge for gauge in _TITLES if frame["gauge"].eq(gauge).any()]
    lane = 0 if len(losses) <= 2 else _LANE
    words = "A dot in a ring: the losses agree on that class." if len(losses) == 2 else ""
    if frame["class"].nunique() > len(classes):
        words += f" The {len(classes)} classes of largest gradient, of {frame['class'].nunique()}."
    height = 2.0 + len(classes) * max(0.52, lane * (len(losses) + 1))
    made = style.figure(height, title=finding(frame), subtitle=words.strip(), theme=theme)
    panels = made.subplots(1, len(gauges), sharey=True, squeeze=False)[0]
    marks = _marks(losses, theme)
    for axes, gauge in zip(panels, gauges, strict=True):
        _panel(axes, frame, gauge, classes, marks, theme)
    first = frame.drop_duplicates("class").set_index("class").loc[classes]
    names = [f"class {row.Index}\np = {row.p:.3g}\nq = {row.q:.3g}" for row in first.itertuples()]
    panels[0].set_yticks(range(len(classes)), names, fontsize=9, color=theme.ink)
    panels[0].set_ylim(len(classes) - 0.5, -0.5)
    handles = [
        panels[0].plot([], [], **mark, linestyle="none", label=style.short(loss))[0]
        for loss, mark in marks.items()
    ]
    made.legend(handles=handles, loc="outside lower left", ncols=6, frameon=False)
    return made


def _marks(losses, theme):
    """The second of two losses is a ring, so that both are seen where they agree."""
    colors = itertools.cycle((theme.better, theme.worse, *_FURTHER))
    marks = {
        loss: {"color": color, "marker": "o", "markersize": 6.5}
        for loss, color in zip(losses, colors, strict=False)
    }
    if len(losses) == 2:
        marks[losses[1]] |= {"markersize": 12, "markerfacecolor": "none", "markeredgewidth": 2}
    for loss in losses[2 + len(_FURTHER) :]:
        marks[loss] |= {"marker": "^"}
    return marks


def _panel(axes, frame, gauge, classes, marks, theme):
    scale, column = (1, "part") if gauge == "gradient" else (100, "share")
    values = scale * _wide(frame, gauge, column).reindex(index=classes)
    places = np.arange(len(classes))
    shifts = np.zeros(2) if len(marks) <= 2 else np.linspace(-0.5, 0.5, len(marks) + 2)[1:-1]
    if len(marks) == 2:
        axes.hlines(
            places,
            values.min(axis=1),
            values.max(axis=1),
            color=theme.quiet,
            linewidth=3,
            zorder=1.5,
        )
    for shift, (loss, mark) in zip(shifts, marks.items(), strict=False):
        if loss in values:
            axes.plot(values[loss], places + shift, **mark, linestyle="none", zorder=2.5)
            if len(marks) > 2:
                axes.hlines(places + shift, 0, values[loss], color=mark["color"], linewidth=1.5)
    axes.hlines(
        places[:-1] + 0.5,
        0,
        1,
        color=theme.faint,
        linewidth=0.7,
        transform=axes.get_yaxis_transform(),
    )
    axes.set(title=_TITLES[gauge], xlabel=_AXES[gauge], xlim=(-5, 105))
    if gauge == "gradient":
        reach = 1.25 * max(values.abs().max().max(), _TINY)
        axes.set_xlim(-reach, reach)
        axes.locator_params(axis="x", nbins=5)
    axes.axvline(0, color=theme.ink, linewidth=0.8)
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")


def _largest(frame):
    sizes = (
        frame[frame["gauge"].eq("gradient")]
        .assign(part=lambda rows: rows["part"].abs())
        .groupby("class")["part"]
    )
    return sorted(sizes.max().nlargest(_MOST_CLASSES).index)


def _wide(frame, gauge, column):
    """[classes, losses]."""
    rows = frame[frame["gauge"].eq(gauge)]
    return rows.pivot(index="class", columns="loss", values=column).reindex(
        columns=rows["loss"].unique()
    )


def _apart(frame, gauge, column):
    """The largest difference of any class between any two losses."""
    values = _wide(frame, gauge, column).to_numpy()
    return float(np.max(values.max(axis=1) - values.min(axis=1)))


def _table(frame, losses: Sequence[str]) -> Table:
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    first = frame.drop_duplicates("class")
    columns = {
        "\nclass": [str(i) for i in first["class"]],
        "teacher\np": [f"{value:g}" for value in first["p"]],
        "student\nq": [f"{value:g}" for value in first["q"]],
    }
    sums = {}
    for loss in losses:
        gauge = next((g for g in ("raw", "fixed") if not _rows(frame, loss, g).empty), None)
        if gauge:
            rows = _rows(frame, loss, gauge)
            columns[f"{loss}\n{gauge}"] = [_decimal(value) for value in rows["part"]]
            columns[f"{loss}\nshare"] = [f"{value:.2%}" for value in rows["share"]]
            sums[f"{loss}\n{gauge}"] = _decimal(rows["part"].sum())
    for loss in losses:
        columns[f"{loss}\ngradient"] = [
            _decimal(value) for value in _rows(frame, loss, "gradient")["part"]
        ]
    for name in columns:
        made.add_column(name, justify="right", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        made.add_row(*cells)
    if sums:
        made.add_section()
        made.add_row("sum", *(sums.get(name, "") for name in list(columns)[1:]))
    return made


def _rows(frame, loss, gauge):
    return frame[frame["loss"].eq(loss) & frame["gauge"].eq(gauge)]


def _decimal(value):
    return f"{round(value, 6) + 0.0:.6f}"  # no -0.000000
