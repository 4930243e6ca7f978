"""Each class's part in each loss, for two given distributions: finding, tables and picture."""

import itertools
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxdiv.contributions import contributions, gauges, shares
from jaxdiv.reporting import style
from jaxdiv.reporting.style import LIGHT
from jaxdiv.reporting.tables import Table

_LOSSES_A_TABLE = 2
_MOST_CLASSES = 10  # that a picture has room for
_LANE = 0.13  # inches for each loss where more than two share a row
_SAME = 1e-4  # of the largest gradient; two forms of one gradient differ far less in float32
_PANELS = {
    "raw": ("Shares as written", "% of the sum of sizes"),
    "fixed": ("Shares, no part below 0", "% of the sum"),
    "gradient": ("What the logits feel", "gradient by the student's logits"),
}
# Okabe and Ito's, after the theme's two.
_COLORS = (LIGHT.better, LIGHT.worse, "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


def split(losses: Sequence[str], p: np.ndarray, q: np.ndarray) -> pd.DataFrame:
    """Returns a row for each loss, gauge and class, with its `part` and its `share` of the sizes.

    Args:
      losses: names that `jaxdiv.get` takes.
      p, q: [V], the probabilities of teacher and student.
    """
    with np.errstate(divide="ignore"):
        teacher_logits, student_logits = jnp.log(p), jnp.log(q)
    frames = []
    pairs = [(loss, gauge) for loss in losses for gauge in gauges(loss)]
    for loss, gauge in pairs:
        parts = contributions(loss, student_logits, teacher_logits, gauge=gauge)
        columns = {"loss": loss, "gauge": gauge, "class": np.arange(len(p)), "p": p, "q": q}
        columns["part"] = np.asarray(parts, float)
        columns["share"] = np.asarray(shares(parts), float)
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def finding(frame: pd.DataFrame) -> str:
    """Returns in one line how far the losses' shares and gradients lie apart."""
    losses = list(frame["loss"].unique())
    if len(losses) < 2:
        return f"What each class adds to {losses[0]}"
    phrases = []
    for gauge in ("raw", "fixed"):
        shares = _by_loss(frame, gauge, "share")
        if len(shares.columns) > 1:
            gap = 100 * _largest_gap(shares)
            apart = f"shares up to {gap:.1f} points apart"
            phrases.append(apart if gap >= 0.05 else "one and the same shares")
            break
    gradients = _by_loss(frame, "gradient", "part")
    gap, largest = _largest_gap(gradients), gradients.abs().max().max()
    apart = f"gradients up to {gap:.2g} apart"
    phrases.append(apart if gap > _SAME * largest else "one and the same gradient")
    few = f"{', '.join(losses[:-1])} and {losses[-1]}"
    return f"{few if len(losses) <= 3 else f'{len(losses)} losses'}: {', '.join(phrases)}"


def _by_loss(frame: pd.DataFrame, gauge: str, column: str) -> pd.DataFrame:
    """Returns a column [classes, losses], losses in the frame's order."""
    rows = frame[frame["gauge"].eq(gauge)]
    values = rows.pivot(index="class", columns="loss", values=column)
    return values.reindex(columns=rows["loss"].unique())


def _largest_gap(values: pd.DataFrame) -> float:
    """Returns the largest difference of any class between any two losses."""
    return float((values.max(axis=1, skipna=False) - values.min(axis=1, skipna=False)).max())


def tables(frame: pd.DataFrame) -> list[Table]:
    """Returns tables of two losses each, a row a class: parts and shares, and the gradient.

    The last row has the sums of the parts.
    """

    def decimal(value: float) -> str:
        return f"{round(value, 6) + 0.0:.6f}"  # adding 0 turns -0.0 into 0.0

    results, losses, classes = [], frame["loss"].unique(), frame.drop_duplicates("class")
    for start in range(0, len(losses), _LOSSES_A_TABLE):
        columns = {"\nclass": classes["class"].map(str)}
        columns["teacher\np"] = classes["p"].map("{:g}".format)
        columns["student\nq"] = classes["q"].map("{:g}".format)
        sums, gradients = {}, {}
        for loss in losses[start : start + _LOSSES_A_TABLE]:
            by_gauge = dict(list(frame[frame["loss"].eq(loss)].groupby("gauge")))
            gauge = next((gauge for gauge in ("raw", "fixed") if gauge in by_gauge), None)
            if gauge:
                rows = by_gauge[gauge]
                columns[f"{loss}\n{gauge}"] = rows["part"].map(decimal)
                columns[f"{loss}\nshare"] = rows["share"].map("{:.2%}".format)
                sums[f"{loss}\n{gauge}"] = decimal(rows["part"].sum())
            gradients[f"{loss}\ngradient"] = by_gauge["gradient"]["part"].map(decimal)
        columns |= gradients
        cells = [list(row) for row in zip(*columns.values(), strict=True)]
        if sums:
            cells.append(["sum", *(sums.get(name, "") for name in list(columns)[1:])])
        results.append(Table(list(columns), cells, left=(), sums=bool(sums)))
    return results


def draw(frame: pd.DataFrame) -> Figure:
    """Draws a panel a gauge, a row a class, under `style.rc(LIGHT)`."""
    losses = list(frame["loss"].unique())
    sizes = _by_loss(frame, "gradient", "part").abs().max(axis=1)
    classes = sorted(sizes.nlargest(_MOST_CLASSES).index)
    gauges = [gauge for gauge in _PANELS if frame["gauge"].eq(gauge).any()]
    subtitle = "A dot in a ring: the losses agree on that class." if len(losses) == 2 else ""
    if len(sizes) > len(classes):
        subtitle += f" The {len(classes)} classes of largest gradient, of {len(sizes)}."
    lanes = _LANE * (len(losses) + 1) if len(losses) > 2 else 0
    height = 2.0 + len(classes) * max(0.52, lanes)
    figure = style.figure(height, title=finding(frame), subtitle=subtitle.strip(), theme=LIGHT)
    panels = figure.subplots(1, len(gauges), sharey=True, squeeze=False)[0]
    colors = itertools.cycle(_COLORS)
    marks = {loss: {"color": next(colors), "marker": "o", "markersize": 6.5} for loss in losses}
    if len(losses) == 2:  # a ring, so that both show where they agree
        marks[losses[1]] |= {"markersize": 12, "markerfacecolor": "none", "markeredgewidth": 2}
    for loss in losses[len(_COLORS) :]:
        marks[loss]["marker"] = "^"
    for axes, gauge in zip(panels, gauges, strict=True):
        column = "part" if gauge == "gradient" else "share"
        _draw_panel(axes, _by_loss(frame, gauge, column).reindex(index=classes), gauge, marks)
    first = frame.drop_duplicates("class").set_index("class").loc[classes]
    names = [f"class {row.Index}\np = {row.p:.3g}\nq = {row.q:.3g}" for row in first.itertuples()]
    panels[0].set_yticks(range(len(classes)), names, fontsize=9, color=LIGHT.ink)
    panels[0].set_ylim(len(classes) - 0.5, -0.5)
    handles = [
        panels[0].plot([], [], **mark, linestyle="none", label=style.short(loss))[0]
        for loss, mark in marks.items()
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=6, frameon=False)
    return figure


def _draw_panel(axes: Axes, values: pd.DataFrame, gauge: str, marks: Mapping[str, dict]) -> None:
    """Draws values [classes, losses]; more than two losses get a lane each."""
    values = values if gauge == "gradient" else 100 * values
    places, several = np.arange(len(values)), len(marks) > 2
    shifts = np.linspace(-0.5, 0.5, len(marks) + 2)[1:-1] if several else np.zeros(len(marks))
    if len(marks) == 2:
        line = {"color": LIGHT.quiet, "linewidth": 3, "zorder": 1.5}
        axes.hlines(places, values.min(axis=1), values.max(axis=1), **line)
    for shift, (loss, mark) in zip(shifts, marks.items(), strict=True):
        if loss in values:
            axes.plot(values[loss], places + shift, **mark, linestyle="none", zorder=2.5)
            if several:
                axes.hlines(places + shift, 0, values[loss], color=mark["color"], linewidth=1.5)
    across = {"transform": axes.get_yaxis_transform(), "color": LIGHT.faint, "linewidth": 0.7}
    axes.hlines(places[:-1] + 0.5, 0, 1, **across)
    title, label = _PANELS[gauge]
    axes.set(title=title, xlabel=label, xlim=(-5, 105))
    if gauge == "gradient":
        reach = 1.25 * max(values.abs().max().max(), 1e-30)
        axes.set_xlim(-reach, reach)
        axes.locator_params(axis="x", nbins=5)
    axes.axvline(0, color=LIGHT.ink, linewidth=0.8)
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
