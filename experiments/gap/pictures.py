"""Pictures of the study of gaps: ratios by cause and measure, acceptance over temperature."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from experiments.common import study_report
from experiments.gap import causes
from experiments.gap.formulas import CE, KL
from experiments.gap.ratios import BOTH
from jaxdiv import schema
from jaxdiv.reporting import style
from jaxdiv.reporting.style import Theme

_BY_RULE = schema.ACCEPTANCE_BY_RULE
# Columns of the map: measure, temperature and heading.
_MEASURES = (
    (schema.ACCEPTANCE, 1, "sampled, T=1"),
    (schema.ACCEPTANCE, 5, "sampled, T=5"),
    (schema.ACCEPTANCE, 20, "sampled, T=20"),
    (schema.GREEDY_MATCH, 0, "greedy match"),
    (_BY_RULE[schema.GREEDY_DRAFT], 1, "greedy draft, T=1"),
    (_BY_RULE[schema.EXACT_MATCH], 1, "exact match, T=1"),
    (_BY_RULE[schema.EXACT_MATCH], 2, "exact match, T=2"),
    (_BY_RULE[schema.EXACT_MATCH], 20, "exact match, T=20"),
    (_BY_RULE[schema.TYPICAL], 1, "threshold, T=1"),
    (causes.OWN_TEXT, 1, "own text, T=1"),
    (causes.AT_4, 1, "4th draft, T=1"),
    (causes.ACCEPTED_PER_CALL, 1, "a call, T=1"),
    (causes.ACCEPTED_PER_CALL, 0, "a call, T=0"),
)
_PANELS = {CE: "cause in CE alone", KL: "cause in KL alone", BOTH: "cause in both"}
_RULES = {
    schema.ACCEPTANCE: "Sampled drafts, rejection sampling",
    _BY_RULE[schema.EXACT_MATCH]: "Two samples that must be equal",
}
_DECADES = 2  # of the color scale on either side of 1
_LABELED = 4  # mistrained students with a label in the picture over temperature


def ratios(frame: pd.DataFrame, theme: Theme) -> Figure:
    """Draws KL over CE as a map of cause and measure."""
    names = list(frame["cause"].unique())
    figure = style.figure(
        2.4 + 0.235 * len(names),
        title="How many times more often are KL's drafts accepted than CE's?",
        subtitle="Blue: KL above CE; orange: below; full color from 100 × on. Blank: no ratio.",
        theme=theme,
        width=19.0,
    )
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    columns = [(measure, float(temperature)) for measure, temperature, _ in _MEASURES]
    headings = [heading for *_, heading in _MEASURES]
    for axes, (applied_to, title) in zip(panels, _PANELS.items(), strict=True):
        rows = frame[frame["applied_to"].eq(applied_to)]
        table = rows.pivot(index="cause", columns=["measure", "temperature"], values="ratio")
        values = table.reindex(index=names, columns=columns).to_numpy(float)
        limit = 10.0**_DECADES
        study_report.heat_map(
            axes,
            np.log10(np.clip(values, 1 / limit, limit)) / _DECADES,
            lambda *cell, values=values: f"{values[cell]:.{2 if values[cell] < 9.95 else 0}f}",
            theme,
            size=7,
        )
        axes.set_title(title)
        axes.set_xticks(range(len(headings)), headings, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
    return figure


def over_temperature(frame: pd.DataFrame, theme: Theme) -> Figure:
    """Draws acceptance of trained, untrained and mistrained students, sampled and by exact
    match."""
    figure = style.figure(
        4.6,
        title="What a sampling temperature does",
        subtitle="CE's students under each cause, held-out documents. "
        "Gray: the causes that are not named.",
        theme=theme,
        width=11.0,
    )
    measured_alike = ~frame["cause"].str.contains(r"(?:^|\+)(?:measured|counted)_")
    rows = frame[measured_alike & frame["applied_to"].eq(BOTH)].set_index("measure")
    shape = {"index": "cause", "columns": "temperature", "values": "ce"}
    students = {measure: rows.loc[[measure]].pivot(**shape).dropna() for measure in _RULES}
    sampled = students[schema.ACCEPTANCE]
    order = sampled[1.0].sort_values().index if 1.0 in sampled.columns else sampled.index
    worst = [cause for cause in order if cause not in (causes.BASELINE, schema.UNTRAINED)][
        :_LABELED
    ]
    colors = {schema.UNTRAINED: theme.muted, causes.BASELINE: theme.better}
    colors |= dict.fromkeys(worst, theme.worse)
    for axes, (measure, title) in zip(figure.subplots(1, len(_RULES)), _RULES.items(), strict=True):
        axes.set(title=title, xlabel="temperature of both", ylabel="accepted, %", yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        temperatures, ends = students[measure].columns, []
        axes.set_xticks(range(len(temperatures)), [f"{t:g}" for t in temperatures])
        for cause, line in students[measure].iterrows():
            y, color = 100 * line.to_numpy(), colors.get(cause)
            width, order = (2, 2) if color else (1, 1.5)
            axes.plot(y, color=color or theme.quiet, linewidth=width, zorder=order)
            if color:
                ends.append((len(y) - 1, y[-1], cause, color))
        style.label_ends(axes, ends, size=8)
    return figure
