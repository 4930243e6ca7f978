"""The picture of training: held-out acceptance, gradient norms, and each loss on its own scale."""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from jaxdiv.reporting import formats, style
from jaxdiv.reporting.acceptance_pictures import PANELS_A_ROW, highlights
from jaxdiv.reporting.style import LIGHT, Drawing
from jaxdiv.reporting.summary import Summary

_TITLE = "Acceptance, gradients and losses over the steps"
_SUBTITLE = (
    "Means over seeds. Small panels: each loss in its own unit and on its own scale, seeds thin."
)
# Metric to the title of its overview and its words in the alternative text.
_METRICS = {
    "acceptance": ("Acceptance on held-out data, %", "acceptance on held-out data"),
    "gradient_norm": ("Norm of the gradient, before clipping", "norm of the gradient"),
    "loss": ("", "loss"),
}


def draw(summary: Summary) -> Drawing | None:
    """Draws overviews of all losses above, and a small panel a loss below."""
    curves, table = summary.curves, summary.headline
    if curves.empty:
        return None
    overviews = [m for m in _METRICS if m != "loss" and curves["metric"].eq(m).any()]
    losses = curves[curves["metric"].eq("loss")]
    # The table's order; a student that failed has no row there, but its curve shows where it did.
    ranked = [row.loss for row in table.rows]
    names = sorted(losses["loss"].unique(), key=lambda loss: [*ranked, loss].index(loss))
    rows = math.ceil(len(names) / PANELS_A_ROW)
    heights = [2.9] * bool(overviews) + [1.55 * rows] * bool(rows)
    figure = style.figure(0.95 + sum(heights), title=_TITLE, subtitle=_SUBTITLE, theme=LIGHT)
    parts = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    upper = parts[0].subgridspec(1, len(overviews) or 1)
    lower = parts[-1].subgridspec(rows or 1, PANELS_A_ROW)
    for i, metric in enumerate(overviews):
        axes = figure.add_subplot(upper[i])
        _draw_overview(axes, curves[curves["metric"].eq(metric)], metric, highlights(table))
    for i, loss in enumerate(names):
        axes, line = figure.add_subplot(lower[i]), losses[losses["loss"].eq(loss)]
        for _, seed in line.groupby("seed"):
            axes.plot(seed["step"], seed["value"], color=LIGHT.better, linewidth=0.6, alpha=0.4)
        mean = line.groupby("step")["value"].mean()
        axes.plot(mean.index, mean, color=LIGHT.better, linewidth=1.5)
        axes.tick_params(labelsize=7.5)
        axes.set_title(style.short(loss, longest=style.PANEL_TITLE), fontsize=9.5)
    return Drawing(
        figure,
        _TITLE,
        _SUBTITLE,
        "Whether training had settled: acceptance and gradients of all losses, and each loss in "
        "its own unit.",
        _alternative(curves),
    )


def _draw_overview(axes: Axes, curves: pd.DataFrame, metric: str, colors: dict[str, str]) -> None:
    """Draws a line a loss; gradients of different losses are orders of magnitude apart."""
    scale = 100 if metric == "acceptance" else 1
    if metric == "gradient_norm" and (curves["value"] > 0).all():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.set_title(_METRICS[metric][0], fontsize=9.5)
    axes.set_xlabel("step")
    ends = []
    for loss, line in curves.groupby("loss", sort=False):
        mean = scale * line.groupby("step")["value"].mean()
        color, named = colors.get(loss, LIGHT.quiet), loss in colors
        axes.plot(mean.index, mean, color=color, linewidth=2 if named else 1.3, zorder=2 + named)
        if named:
            ends.append((mean.index[-1], mean.iloc[-1], loss, color))
    style.label_ends(axes, ends)


def _alternative(curves: pd.DataFrame) -> str:
    metrics = ", ".join(_METRICS[name][1] for name in _METRICS if curves["metric"].eq(name).any())
    text = f"Lines over {curves['step'].max():g} training steps of {metrics}."
    rows = curves[curves["metric"].eq("acceptance")]
    if rows.empty:
        return text
    last = rows[rows["step"].eq(rows["step"].max())].groupby("loss", sort=False)["value"].mean()
    values = last.sort_values(ascending=False).items()
    numbers = ", ".join(f"{loss} {formats.percent(value)}%" for loss, value in values)
    return f"{text} Acceptance at the last measurement: {numbers}."
