"""Pictures of the study of gaps: ratios by cause and measure, acceptance over temperature."""

import math

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from jaxdiv.reporting import style
from jaxdiv.reporting.style import Theme

# Columns of the map: measure, temperature and heading.
_MEASURES = (
    ("acceptance", 1, "sampled, T=1"),
    ("acceptance", 5, "sampled, T=5"),
    ("acceptance", 20, "sampled, T=20"),
    ("greedy_match", 0, "greedy match"),
    ("acceptance_greedy_draft", 1, "greedy draft, T=1"),
    ("acceptance_exact_match", 1, "exact match, T=1"),
    ("acceptance_exact_match", 2, "exact match, T=2"),
    ("acceptance_exact_match", 20, "exact match, T=20"),
    ("acceptance_typical", 1, "threshold, T=1"),
    ("acceptance_own_text", 1, "own text, T=1"),
    ("acceptance_at_4", 1, "4th draft, T=1"),
    ("accepted_a_call", 1, "a call, T=1"),
    ("accepted_a_call", 0, "a call, T=0"),
)
_PANELS = {"ce": "cause in CE alone", "kl": "cause in KL alone", "both": "cause in both"}
_RULES = {
    "acceptance": "Sampled drafts, rejection sampling",
    "acceptance_exact_match": "Two samples that must be equal",
}
_DECADES = 2  # of the color scale on either side of 1
_NAMED = 4  # mis-trained students that the picture over temperature names


def ratios(frame: pd.DataFrame, theme: Theme) -> Figure:
    """KL over CE as a map of cause and measure."""
    causes = list(frame["cause"].unique())
    made = style.figure(
        2.4 + 0.235 * len(causes),
        title="How many times more often are KL's drafts accepted than CE's?",
        subtitle="Blue: KL above CE; orange: below; full color from 100 × on. Blank: no ratio.",
        theme=theme,
        width=19.0,
    )
    panels = made.subplots(1, len(_PANELS), sharey=True)
    colors = LinearSegmentedColormap.from_list("ratio", [theme.worse, theme.paper, theme.better])
    for axes, (applied_to, title) in zip(panels, _PANELS.items(), strict=True):
        values = _map(frame[frame["applied_to"].eq(applied_to)], causes)
        shown = np.log10(np.clip(values, 10.0**-_DECADES, 10.0**_DECADES))
        axes.imshow(shown, cmap=colors, vmin=-_DECADES, vmax=_DECADES, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if not math.isnan(value):
                ink = style.readable(colors(0.5 + shown[row, column] / (2 * _DECADES)), theme)
                axes.text(
                    column, row, _short(value), ha="center", va="center", fontsize=7, color=ink
                )
        axes.set_title(title)
        axes.set_xticks(
            range(len(_MEASURES)),
            [name for *_, name in _MEASURES],
            rotation=40,
            ha="right",
            fontsize=8,
        )
        axes.set_yticks(range(len(causes)), causes, fontsize=8)
        axes.grid(False)
    return made


def over_temperature(frame: pd.DataFrame, theme: Theme) -> Figure:
    """Acceptance of trained, untrained and mis-trained students, sampled and by exact match."""
    made = style.figure(
        4.6,
        title="What a sampling temperature does",
        subtitle="CE's students under each cause, held-out documents. Gray: the causes that are not named.",
        theme=theme,
        width=11.0,
    )
    students = {measure: _students(frame, measure) for measure in _RULES}
    sampled = students["acceptance"]
    by_acceptance = sampled[1.0].sort_values().index if 1.0 in sampled.columns else sampled.index
    worst = [cause for cause in by_acceptance if cause not in ("baseline", "untrained")][:_NAMED]
    for axes, (measure, title) in zip(made.subplots(1, len(_RULES)), _RULES.items(), strict=True):
        axes.set(title=title, xlabel="temperature of both", ylabel="accepted, %", yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        _lines(axes, students[measure], worst, theme)
    return made


def _map(rows, causes):
    values = np.full((len(causes), len(_MEASURES)), np.nan)
    known = rows.set_index(["cause", "measure", "temperature"])["ratio"]
    for i, cause in enumerate(causes):
        for j, (measure, temperature, _) in enumerate(_MEASURES):
            values[i, j] = known.get((cause, measure, float(temperature)), np.nan)
    return values


def _short(value):
    return f"{value:.2f}" if value < 9.95 else f"{value:.0f}"


def _students(frame, measure):
    """CE's acceptance, a row a cause in training, a column a temperature."""
    rows = frame[frame["measure"].eq(measure) & frame["applied_to"].eq("both")]
    rows = rows[~rows["cause"].str.contains(r"(?:^|\+)(?:measured|counted)_")]
    return rows.pivot(index="cause", columns="temperature", values="ce").dropna()


def _lines(axes, students, worst, theme):
    colors = dict.fromkeys(worst, theme.worse) | {
        "untrained": theme.muted,
        "baseline": theme.better,
    }
    steps, ends = np.arange(len(students.columns)), []
    for cause, line in students.iterrows():
        y, color = 100 * line.to_numpy(), colors.get(cause)
        axes.plot(
            steps,
            y,
            color=color or theme.quiet,
            linewidth=2 if color else 1,
            zorder=2 if color else 1.5,
        )
        if color:
            ends.append((steps[-1], y[-1], cause, color))
    axes.set_xticks(steps, [f"{t:g}" for t in students.columns])
    style.label_ends(axes, ends, size=8)
