"""Pictures of training: held-out acceptance and gradient norms of all losses, and each loss on its
own scale."""

import math

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from jaxdiv.reporting import results, results_table, style
from jaxdiv.reporting.style import Theme

PANELS_A_ROW = 5
_OVERVIEWS = {
    "acceptance": "Acceptance on held-out data, %",
    "gradient_norm": "Norm of the gradient, before clipping",
}


def draw(
    frame: pd.DataFrame, curves: pd.DataFrame, theme: Theme, *, narrow: bool = False
) -> Figure | None:
    """None without curves."""
    if curves.empty:
        return None
    ranked = results_table.summary(frame, context=results.contexts(frame)[0])
    overviews = [metric for metric in _OVERVIEWS if metric in set(curves["metric"])]
    own = curves[curves["metric"].eq("loss")]
    # In the order of the table; a student that failed has no row there, but its curve shows where.
    names = sorted(own["loss"].unique(), key=lambda loss: [*ranked["loss"], loss].index(loss))
    columns = 3 if narrow else PANELS_A_ROW
    rows, upper_rows = (
        math.ceil(len(names) / columns),
        len(overviews) if narrow else min(len(overviews), 1),
    )
    heights = [2.9 * upper_rows] * bool(overviews) + [1.55 * rows] * bool(rows)
    made = style.figure(
        0.95 + sum(heights),
        title="Over the training steps"
        if narrow
        else "Acceptance, gradients and losses over the steps",
        subtitle="Small: each loss in its own unit, seeds thin."
        if narrow
        else "Means over seeds. Small panels: each loss in its own unit and on its own scale, seeds thin.",
        theme=theme,
        width=style.NARROW if narrow else style.WIDTH,
    )
    parts = made.add_gridspec(len(heights), 1, height_ratios=heights)
    upper = parts[0].subgridspec(upper_rows or 1, 1 if narrow else len(overviews) or 1)
    lower = parts[-1].subgridspec(rows or 1, columns)
    for i, metric in enumerate(overviews):
        axes = made.add_subplot(upper[i])
        _overview(axes, curves[curves["metric"].eq(metric)], metric, ranked, theme)
    for i, loss in enumerate(names):
        axes = made.add_subplot(lower[i])
        _panel(axes, own[own["loss"].eq(loss)], theme)
        axes.set_title(style.short(loss, longest=style.PANEL_NAME), fontsize=9.5)
    return made


def _overview(axes, curves, metric, ranked, theme):
    """A line a loss; gradients of different losses are orders of magnitude apart."""
    scale = 100 if metric == "acceptance" else 1
    if metric == "gradient_norm" and (curves["value"] > 0).all():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.set_title(_OVERVIEWS[metric], fontsize=9.5)
    axes.set_xlabel("step")
    ends, named = [], style.named(ranked, theme)
    for loss, line in curves.groupby("loss", sort=False):
        mean = scale * line.groupby("step")["value"].mean()
        color = named.get(loss, theme.quiet)
        axes.plot(
            mean.index,
            mean,
            color=color,
            linewidth=1.3 if color == theme.quiet else 2,
            zorder=2 + (loss in named),
        )
        if loss in named:
            ends.append((mean.index[-1], mean.iloc[-1], loss, color))
    style.label_ends(axes, ends)


def _panel(axes, line, theme):
    for _, one in line.groupby("seed"):
        axes.plot(one["step"], one["value"], color=theme.better, linewidth=0.6, alpha=0.4)
    mean = line.groupby("step")["value"].mean()
    axes.plot(mean.index, mean, color=theme.better, linewidth=1.5)
    axes.tick_params(labelsize=7.5)
